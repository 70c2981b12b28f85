# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The demo: what it computes, and its page in a browser."""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.layouts import VOCAB, tiny_model, vgf_model
from vgf_llm.cli import main
from vgf_llm.demo import Comparison, Particle, _pieces, answer_html, check_address, particles_html
from vgf_llm.generation.prompts import unknown_tokens_note
from vgf_llm.models import TransportConfig

ROOT = Path(__file__).resolve().parents[2]
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
OPTIONS = {"max_new_tokens": 6, "pad_token_id": 0}


def word_tokenizer(word: str = "w{}") -> PreTrainedTokenizerFast:
    words = [*SPECIAL.values(), *(word.replace("{}", str(index)) for index in range(VOCAB - len(SPECIAL)))]
    raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, **SPECIAL)


def comparison(parametrization: str = "bilinear", backbone: str = "policy", **options: Any) -> Comparison:
    transport = TransportConfig(transport_steps=4, step_size=0.5, top_k_candidates=10, min_candidate_prob=0.0)
    model = vgf_model(tiny_model("llama"), parametrization, backbone, transport=transport)
    tokenizer = word_tokenizer()
    encode = lambda prompt: tokenizer(prompt, return_tensors="pt")  # noqa: E731
    return Comparison(model, tokenizer, encode, **{**OPTIONS, **options})


def text(particle: Particle) -> str:
    return "".join(particle.pieces)


@pytest.mark.parametrize("steps", [0, 4])
def test_particles_are_those_of_generate(steps: int) -> None:
    shown = comparison()
    found = shown.particles("w8 w9", steps, 3, 5)
    torch.manual_seed(5)
    ids = shown.tokenizer("w8 w9", return_tensors="pt").input_ids
    output = shown.model.generate(
        ids, transport_steps=steps, num_particles=3, do_sample=True, return_dict_in_generate=True, **OPTIONS
    )
    for index, one in enumerate(found):
        length = int(output.lengths[0, index])
        assert text(one) == shown.tokenizer.decode(output.particle_sequences[0, index, 2 : 2 + length])
        assert len(one.pieces) == len(one.scores) == len(one.kl) == length
        assert one.value == float(output.values[0, index])
        torch.testing.assert_close(torch.tensor(one.kl), output.kl[0, index, :length])
        assert (sum(one.kl) > 0) == (steps > 0)
    assert [one.chosen for one in found] == [one.value == max(x.value for x in found) for one in found]


def test_the_same_question_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, calls = comparison(), []
    generate = shown.model.generate

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["transport_steps"])
        return generate(*args, **kwargs)

    monkeypatch.setattr(shown.model, "generate", counted)
    shown.curve("w8 w9", 2, 2, 0)
    shown.curve("w8 w9", 3, 2, 0)
    assert shown.budgets == [0, 2, 4, 8, 16] and calls == [0, 2, 4, 8, 16, 3]
    shown.particles("w8 w9", 3, 2, 1)
    assert calls[6:] == [3]


def test_the_curve_is_the_mean_of_the_particles() -> None:
    shown = comparison("log_ratio", "lora")
    curve = shown.curve("w8 w9", 4, 3, 0)
    assert list(curve["L"]) == [0, 2, 4, 8, 16]  # numbers: as text 16 stands before 2
    particles = shown.particles("w8 w9", 8, 3, 0)
    assert curve["value"][3] == pytest.approx(sum(sum(one.scores) for one in particles) / 3, abs=1e-5)
    assert curve["KL"][3] == pytest.approx(sum(sum(one.kl) for one in particles) / 3)
    assert curve["KL"][0] == 0 and curve["KL"].is_monotonic_increasing


def test_colours_are_relative_to_the_largest_number_shown() -> None:
    one = Particle(("a", "\n"), (1.0, -2.0), (0.0, 0.5), -1.0, True)
    other = Particle(("b",), (4.0,), (0.25,), 4.0, True)
    assert answer_html("T", one, [one, other]) == (
        '<h3>T</h3><div class="vgf-note">value -1.000, KL to the base 0.500 nats, 2 tokens</div>'
        '<div class="vgf-answer">'
        '<span style="background: rgba(0, 114, 178, 0.15); border-bottom-color: rgba(204, 0, 119, 0.00)" '
        'title="value +1.000, KL 0.000 nats">a</span>'
        '<span style="background: rgba(230, 159, 0, 0.30); border-bottom-color: rgba(204, 0, 119, 1.00)" '
        'title="value -2.000, KL 0.500 nats">↵\n</span></div>'
    )
    empty = Particle((), (), (), 0.0, True)
    assert "0 tokens" in answer_html("T", empty, [empty])


def test_texts_are_escaped() -> None:
    one = Particle(("<script>", '"&'), (1.0, 1.0), (0.0, 0.0), 1.0, True)
    for html in (answer_html("<b>", one, [one]), particles_html("<b>", [one])):
        assert "&lt;b&gt;" in html and "&lt;script&gt;" in html and "&quot;&amp;" in html
        assert "<script" not in html and "<b>" not in html


def test_the_table_has_the_chosen_response_first() -> None:
    rows = (("low", 0.0, False), ("twin", 1.0, False), ("high", 1.0, True))
    table = particles_html("T", [Particle((name,), (value,), (0.0,), value, chosen) for name, value, chosen in rows])
    assert re.findall(r"<td>(\w+)</td></tr>", table) == ["high", "twin", "low"]
    assert re.findall(r'<tr class="(\w*)">', table) == ["chosen", "", ""]


def test_a_character_of_several_tokens_stands_at_the_last() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    ids = tokenizer("aéb").input_ids
    assert _pieces(tokenizer, ids) == ("a", "", "é", "b")
    assert _pieces(tokenizer, ids[:2]) == ("a", "\ufffd")  # cut within a character


def test_unknown_tokens_are_told() -> None:
    tokenizer = word_tokenizer()
    note = unknown_tokens_note(tokenizer, tokenizer("w8 what now").input_ids)
    assert note.startswith("2 of the prompt's 3 tokens are unknown to the tokenizer (<unk>)") and "\n" not in note
    assert unknown_tokens_note(tokenizer, tokenizer("w8 w9").input_ids) == ""
    assert comparison().note("what w9").startswith("1 of the prompt's 2")
    tokenizer.unk_token = "</s>"  # as GPT-2's: the end of a text, within a prompt of several texts
    assert unknown_tokens_note(tokenizer, [5, tokenizer.eos_token_id, 6]) == ""


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "no-such-folder"]) == 1
    assert capsys.readouterr().err == 'vgf: error: The demo needs gradio: pip install "vgf-llm[demo]".\n'


def test_an_address_that_is_taken_is_told_before_weights_are_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", ModuleType("gradio"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        assert main(["demo", "no-such-folder", "--port", port]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"vgf: error: A server cannot listen on `--port` {port} of `--host` 127.0.0.1: ")
    assert "Address already in use. Name another, or leave both out" in err
    check_address("127.0.0.1", int(port))  # free again
    with pytest.raises(ValueError, match="`--port` 70000"):
        check_address("127.0.0.1", 70000)


def save_hostile(directory: Path) -> None:
    """A model whose every word is markup, a script and a template."""
    transport = TransportConfig(transport_steps=4, step_size=0.5, top_k_candidates=10, min_candidate_prob=0.0)
    vgf_model(tiny_model("llama"), "bilinear", transport=transport).save_pretrained(directory)
    word_tokenizer("<img/src=x/onerror=document.title='w{}'>${1+1}{{value}}").save_pretrained(directory)


@pytest.mark.slow
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    """The slider changes the answer, text stays text, and nothing is fetched from elsewhere.

    With a model of the embedded math recipe it takes the picture of docs/demo.md:

        VGF_DEMO_MODEL=outputs/gsm8k_embedded pytest -m slow tests/unit/test_demo.py
    """
    pytest.importorskip("gradio", reason='needs gradio: pip install "vgf-llm[demo]"')
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs Chromium on the PATH")
    model, picture, prompt = tmp_path / "tiny", tmp_path / "demo.png", "unknown words"
    if trained := os.environ.get("VGF_DEMO_MODEL"):
        model, picture = Path(trained), ROOT / "docs" / "images" / "demo.png"
        prompt = (
            "Gus has 13 marbles. Gus gives 4 of them to Eva. Gus buys 7 more. Ben has 2 more than Gus. Ben sells half "
            "of them. How many marbles does Ben have now?"
        )
    else:
        save_hostile(model)
    command = [sys.executable, "-m", "vgf_llm.cli", "demo", str(model), "--prompt", prompt]
    process = subprocess.Popen(
        [*command, "--max_new_tokens", "60" if trained else "12", "--device", "cpu"], stdout=subprocess.PIPE, text=True
    )
    stop = threading.Timer(200, process.kill)
    stop.start()
    try:
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        assert address is not None
        with api.sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            page = chromium.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(60_000)
            requests: list[str] = []
            page.on("request", lambda request: requests.append(request.url))
            page.goto(address[0])
            own = page.locator("#steps input[type=range]").input_value()
            page.locator(f"#transported h3:text-is('Transported, L = {own}')").wait_for()
            page.locator("#curve-KL canvas, #curve-KL svg.marks").first.wait_for()
            base, moved = (page.locator(f"{side} .vgf-answer").inner_text() for side in ("#base", "#transported"))
            assert base != moved
            page.wait_for_timeout(1000)  # the curves are drawn
            page.screenshot(path=picture, full_page=True)
            assert picture.stat().st_size > 20_000
            assert ("2 of the prompt's 2 tokens" in page.locator("#note").inner_text()) == (not trained)
            if not trained:
                assert "<img/src=x/onerror=document.title='w" in base and ">${1+1}{{value}}" in base
                assert page.locator("#base img, #transported img, #base-particles img").count() == 0
                assert page.title().startswith("vgf demo")
            page.locator("#steps input[type=range]").press("Home")  # to 0
            page.locator("#transported h3:text-is('Transported, L = 0')").wait_for()
            assert page.locator("#transported .vgf-answer").inner_text() == base
            page.locator("#particles input[type=range]").press("Home")
            page.locator("#base-particles tr").nth(2).wait_for(state="detached")
            assert page.locator("#base-particles tr").count() == 2  # the head and one response
            assert requests and all(url.startswith((address[0], "data:", "blob:")) for url in requests)
            chromium.close()
    finally:
        stop.cancel()
        process.kill()
        process.wait()
