# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A conversation in the terminal: what it generates, and what its commands change."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.layouts import tiny_model, vgf_model
from tests.unit.test_cli import CHAT_TEMPLATE, SAMPLE, word_tokenizer
from vgf_llm.chat import Conversation, converse
from vgf_llm.cli import main
from vgf_llm.models import TransportConfig

KINDS = {"transport_steps": int, "num_particles": int, "selection": str, "interaction": bool, "temperature": float}


def encode(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast | None = None) -> Any:
    used = tokenizer or word_tokenizer(CHAT_TEMPLATE)
    return used.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")


def conversation(**settings: Any) -> Conversation:
    transport = TransportConfig(transport_steps=4, step_size=0.5, top_k_candidates=10, min_candidate_prob=0.0)
    model = vgf_model(tiny_model("llama"), "bilinear", transport=transport)
    options = {"kinds": KINDS, "do_sample": True, "max_new_tokens": 5, "pad_token_id": 0}
    return Conversation(model, word_tokenizer(CHAT_TEMPLATE), encode, **{**options, **settings})


@pytest.mark.parametrize("count", [1, 3])
def test_an_answer_is_that_of_generate_after_all_messages(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    chat = conversation(system_prompt="w9", num_particles=count)
    torch.manual_seed(3)
    notes = [chat.answer("w8"), chat.answer("w10 w11")]
    shown = capsys.readouterr().out.splitlines()

    torch.manual_seed(3)
    messages = [{"role": "system", "content": "w9"}]
    said = []
    for text in ("w8", "w10 w11"):
        messages.append({"role": "user", "content": text})
        inputs = encode(messages)
        out: Any = chat.model.generate(**inputs, return_dict_in_generate=True, **chat.settings)
        best = int(out.chosen[0])
        start, length = inputs["input_ids"].shape[1], int(out.lengths[0, best])
        ids = out.particle_sequences[0, best, start : start + length]
        said.append(chat.tokenizer.decode(ids, skip_special_tokens=True))
        messages.append({"role": "assistant", "content": said[-1]})
    assert chat.messages == messages
    assert [line.strip() for line in shown] == [line.strip() for line in said]
    kl = float(out.kl[0, best].sum())
    assert kl > 0 and notes[1] == f"[L * epsilon = 2, {length} tokens, KL to the base {kl:.2f} nats]"


def test_the_budget_is_exact_whatever_the_step_size() -> None:
    chat = conversation()
    assert chat.command("/budget") == "L * epsilon = 2"
    for budget, steps, size in ((3, 6, 0.5), (0.7, 1, 0.7), (0.1, 1, 0.1)):
        assert chat.command(f"/budget {budget}").startswith(f"L * epsilon = {budget}: ")
        assert chat.transport.transport_steps == steps and chat.transport.step_size == pytest.approx(size)
        chat.settings.pop("step_size")
    assert chat.command("/budget 0").startswith("L * epsilon = 0: transport_steps 0")


def test_lines_change_settings_by_their_names() -> None:
    chat = conversation()
    assert chat.command("/num_particles 4") == "num_particles 4"
    assert chat.command("/interaction on") == "interaction True"
    assert chat.command("/temperature") == "temperature as the model has it"
    assert chat.command("/temperature 0.5") == "temperature 0.5"
    assert {"num_particles 4", "interaction True", "temperature 0.5"} <= set(chat.command("/settings").splitlines())
    for line, message in {
        "/budgte 2": "There is no command /budgte. Did you mean /budget?",
        "/xyzzy": "There is no command /xyzzy. /help lists them.",
        "/budget two": "`budget` takes a number, got 'two'",
        "/budget -1": "`budget` must be >= 0 and finite, got -1",
        "/budget nan": "`budget` must be >= 0 and finite, got nan",
        "/num_particles 0": "`num_particles` must be an integer >= 1",
        "/interaction perhaps": "`interaction` takes true, on, yes, false, off, no, got 'perhaps'",
        "/selection none": "`selection` is 'none'",
    }.items():
        with pytest.raises(ValueError, match=message.replace("?", r"\?")):
            chat.command(line)
    assert chat.transport.num_particles == 4 and chat.transport.selection == "value"


def test_clear_keeps_the_system_prompt() -> None:
    chat = conversation(system_prompt="w9")
    chat.answer("w8")
    chat.command("/clear")
    assert chat.messages == [{"role": "system", "content": "w9"}]


def test_what_is_refused_is_forgotten_and_the_conversation_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat, plain = conversation(), encode

    def picky(messages: list[dict[str, str]]) -> Any:
        if messages[-1]["content"] == "bad":
            raise ValueError("no such message")
        if messages[-1]["content"] == "slow":
            raise KeyboardInterrupt
        return plain(messages)

    chat.encode = picky
    monkeypatch.setattr("sys.stdin", io.StringIO("bad\nslow\n\n/nothing\nw8 whales\n/quit\nw9\n"))
    converse(chat)
    out, err = capsys.readouterr()
    assert [message["content"] for message in chat.messages][::2] == ["w8 whales"]
    assert "error: no such message" in err and "There is no command /nothing" in err and "[stopped" in out
    assert "warning: 1 of the prompt's 2 tokens are unknown" in err


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    transport = TransportConfig(transport_steps=4, step_size=0.5, top_k_candidates=10, min_candidate_prob=0.0)
    vgf_model(tiny_model("llama"), "bilinear", transport=transport).save_pretrained(tmp_path)
    word_tokenizer(CHAT_TEMPLATE).save_pretrained(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("w8\n/budget 0\nw9\n"))
    assert main(["chat", str(tmp_path), *SAMPLE]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "epsilon" in line]
    assert [line.split(",")[0] for line in lines] == [
        "[L * epsilon = 2",
        "L * epsilon = 0: transport_steps 0",
        "[L * epsilon = 0",
    ]
    assert main(["chat", str(tmp_path), *SAMPLE, "--selection", "none"]) == 1
    assert "a conversation needs one answer" in capsys.readouterr().err
    word_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    assert main(["chat", str(tmp_path), *SAMPLE]) == 1
    assert "`vgf chat` needs a tokenizer with a chat template" in capsys.readouterr().err
