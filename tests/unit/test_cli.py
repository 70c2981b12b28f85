# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The console script on a tiny saved model."""

import io
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import types
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from eval import run as eval_run
from eval import tune_budget
from recipes.embedded_math import BASE_DIR
from recipes.embedded_math.problems import NUM_STEPS
from tests.layouts import VOCAB, tiny_model, vgf_model
from tests.unit.eval.models import save_vgf
from tests.unit.recipes.test_embedded_math import read_steps
from vgf_llm import VGFModel, __version__
from vgf_llm.cli import COMMANDS, EMBEDDED_PROMPT, main, make_parser
from vgf_llm.generation import TRANSPORT_OPTIONS
from vgf_llm.models import TransportConfig

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and message['content'] == 'no' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ message['role'] }} {{ message['content'] }} {% endfor %}assistant{% if quiet %} w9{% endif %}"
)
ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ["--max_new_tokens", "5", "--seed", "3", "--device", "cpu"]


def word_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", "user", "assistant", "system"]
    words += [f"w{index}" for index in range(len(words), VOCAB)]
    raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=chat_template, **tokens)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    transport = TransportConfig(transport_steps=4, step_size=0.5, top_k_candidates=10, min_candidate_prob=0.0)
    vgf_model(tiny_model("llama"), "bilinear", transport=transport).save_pretrained(directory)
    word_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log-ratio value over a policy that is named, not saved, with a chat template."""
    root = tmp_path_factory.mktemp("adapted")
    base = tiny_model("llama")
    base.save_pretrained(root / "base")
    word_tokenizer(CHAT_TEMPLATE).save_pretrained(root / "base")
    base.config._name_or_path = str(root / "base")
    vgf_model(base, "log_ratio", "lora").save_pretrained(root / "value", save_policy=False)
    return root / "value"


def run(capsys: pytest.CaptureFixture[str], *argv: Any) -> tuple[int, str, str]:
    status = main([str(argument) for argument in argv])
    out, err = capsys.readouterr()
    lines = re.split(r"[\r\n]+", err)
    return (
        status,
        out,
        "".join(line + "\n" for line in lines if line and "Loading weights" not in line),
    )  # no progress bar


def test_every_transport_setting_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(TRANSPORT_OPTIONS) == [item.name for item in fields(TransportConfig)]
    defaults = TransportConfig()
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, option in TRANSPORT_OPTIONS.items():
        default = getattr(defaults, name)
        assert option.kind in (int, float, bool, str) and (default is None or type(default) is option.kind)
        assert f"--{name}" in shown and " ".join(option.text.split()[:4]) in shown


def test_help_and_version_import_no_models() -> None:
    code = "import sys; from vgf_llm.cli import main; main(['version']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "version") == (0, f"vgf-llm {__version__}\n", "")
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"vgf-llm {__version__}\n"


def test_inspect_names_the_parts(saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = run(capsys, "inspect", saved)
    assert status == 0
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if line.count("│") > 2}
    assert "bilinear" in rows["parametrization"]
    assert "in this folder" in rows["policy weights"]
    assert rows["transport_steps"].split("│")[2].strip() == "4"
    assert rows["transport_steps * step_size"].split("│")[2].strip() == "2"
    # W and b of b(h) + (W h) . E[v]: 16 * 16 + 16 + 1
    head = [cell.strip() for cell in rows["value_head.safetensors"].split("│")]
    assert head[2:4] == ["value head", "273"]
    assert "policy" in rows["model.safetensors"]


def test_inspect_leaves_out_what_training_left(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(saved, tmp_path / "run")
    expected = run(capsys, "inspect", tmp_path / "run")
    shutil.copytree(saved, tmp_path / "run" / "checkpoint-2")
    (tmp_path / "run" / "value_buffer.safetensors").write_bytes(b"not weights")
    assert run(capsys, "inspect", tmp_path / "run") == expected and expected[0] == 0


def test_inspect_of_an_adapter(adapted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = run(capsys, "inspect", adapted)
    assert status == 0
    assert "log_ratio" in out and "value adapter (LoRA)" in out and "not here" in out


def test_generate_prints_what_the_model_says(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "generate", saved, "w8 w9", *SAMPLE, "--transport_steps", "2", "--top_k", "0")
    assert status == 0
    tokenizer = word_tokenizer()
    ids = tokenizer("w8 w9", return_tensors="pt").input_ids
    model = VGFModel.from_pretrained(saved)
    torch.manual_seed(3)
    sequences = model.generate(ids, transport_steps=2, do_sample=True, max_new_tokens=5, top_k=0)
    assert out == tokenizer.decode(sequences[0, 2:], skip_special_tokens=True) + "\n"


def test_generate_warns_of_unknown_tokens(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "generate", saved, "w8 whales w9", *SAMPLE)
    assert status == 0 and out and err.count("\n") == 1
    assert err.startswith("vgf: warning: 1 of the prompt's 3 tokens are unknown to the tokenizer (<unk>)")
    assert run(capsys, "generate", saved, "w8 w9", *SAMPLE)[2] == ""


def test_the_seed_decides_and_the_budget_matters(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", saved, "w8 w9", *SAMPLE, "--num_particles", "4", "--selection", "none"]
    first, again = run(capsys, *command), run(capsys, *command)
    assert first == again and first[1].count("\n\n") == 3
    assert run(capsys, *command, "--transport_steps", "0")[1] != first[1]


def test_all_shows_values_and_marks_the_chosen(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "generate", saved, "w8 w9", *SAMPLE, "--num_particles", "4", "--all")
    heads = [line for line in out.splitlines() if line.startswith("[")]
    values = [float(line.split("value ")[1].split(",")[0]) for line in heads]
    assert len(heads) == 4
    assert ["chosen" in line for line in heads].index(True) == values.index(max(values))
    assert sum("chosen" in line for line in heads) == 1


def test_answers_are_what_votes_compare(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", saved, "w8 w9", *SAMPLE, "--num_particles", "6", "--selection", "majority"]
    _, out, _ = run(capsys, *command, "--all", "--answer_regex", r"w(\d)")
    blocks = [block.splitlines() for block in out.strip().split("\n\n")]
    # Single digits alone: the most frequent first digit of the last word wins.
    digits = [[word[1] for word in text[0].split() if word.startswith("w")][-1:] for _, *text in blocks]
    chosen = next(i for i, (head, *_) in enumerate(blocks) if "chosen" in head)
    counts = [sum(digit == other for other in digits) for digit in digits if digit]
    assert counts[chosen] == max(counts)


def test_stream_prints_the_same_tokens(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", saved, "w8 w9", *SAMPLE]
    assert run(capsys, *command, "--stream")[1].split() == run(capsys, *command)[1].split()


def test_prompt_from_standard_input(saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    expected = run(capsys, "generate", saved, "w8 w9", *SAMPLE)[1]
    monkeypatch.setattr("sys.stdin", io.StringIO("w8 w9"))
    assert run(capsys, "generate", saved, "-", *SAMPLE)[1] == expected


def test_export_writes_a_plain_model_with_its_tokenizer(
    adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, "export", adapted, tmp_path / "plain")
    assert status == 0 and "L * epsilon = 1" in out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    ids = tokenizer("w8 w9", return_tensors="pt").input_ids
    expected = VGFModel.from_pretrained(adapted).merge_value()
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, expected(ids).logits)
    assert model.generation_config.epsilon_cutoff == TransportConfig().min_candidate_prob
    status, _, err = run(capsys, "export", adapted, tmp_path / "plain")
    assert status == 1 and "is there already and not an empty folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_export_of_other_budgets(adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "export", adapted, tmp_path / "half", "--budget", "0.5")
    assert status == 0 and "weights 0.5 of the way" in out
    expected, half = VGFModel.from_pretrained(adapted).merge_value(0.5), tmp_path / "half"
    pairs = zip(AutoModelForCausalLM.from_pretrained(half).parameters(), expected.parameters(), strict=True)
    assert all(torch.equal(found, other) for found, other in pairs)
    status, _, err = run(capsys, "export", adapted, tmp_path / "two", "--budget", "2")
    assert status == 1 and "distillation needs `--prompts`" in err
    status, _, err = run(capsys, "export", adapted, tmp_path / "two", "--budget", "0.5", "--max_steps", "3")
    assert status == 1 and "`--max_steps`" in err and not (tmp_path / "two").exists()
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "w{i} w{i + 1}"}}\n' for i in range(8)))
    options = ["--prompts", prompts, "--max_steps", "1", "--max_completion_length", "4"]
    options += ["--reward_funcs", "tests.unit.test_cli.length"]
    status, out, _ = run(capsys, "export", adapted, tmp_path / "two", "--budget", "2", *options)
    assert status == 0 and out.count("KL from transport") == out.count("mean reward") == 2
    assert "L * epsilon = 2, distilled" in out
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "two").generation_config.do_sample


def length(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def test_an_export_that_fails_leaves_nothing(
    adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
    status, _, err = run(capsys, "export", adapted, tmp_path / "plain")
    assert status == 1 and "No space left on device" in err
    assert list(tmp_path.iterdir()) == []


def test_export_refuses_a_value_without_a_model_behind_it(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run(capsys, "export", saved, tmp_path / "plain")
    assert status == 1 and "has a bilinear value" in err and "vgf serve" in err
    assert not (tmp_path / "plain").exists()


def test_chat_template_and_tokenizer_of_the_base(adapted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = run(capsys, "generate", adapted, "w8", *SAMPLE, "--greedy", "--system_prompt", "w9")
    raw = run(capsys, "generate", adapted, "system w9 user w8 assistant", *SAMPLE, "--greedy", "--raw")
    assert chat == raw and chat[0] == 0 and chat[1].strip()


def test_switches_of_the_chat_template(adapted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = ["--chat_template_kwargs", '{"quiet": true}']
    chat = run(capsys, "generate", adapted, "w8", *SAMPLE, "--greedy", *quiet)
    raw = run(capsys, "generate", adapted, "user w8 assistant w9", *SAMPLE, "--greedy", "--raw")
    assert chat == raw and chat[0] == 0
    assert chat != run(capsys, "generate", adapted, "w8", *SAMPLE, "--greedy")
    status, _, err = run(capsys, "generate", adapted, "w8", *SAMPLE, "--system_prompt", "no")
    assert status == 1 and err == "vgf: error: The tokenizer's chat template refuses these messages: no system\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--transport_steps", "-1"], "`transport_steps` must be an integer >= 0 and finite, got -1"),
        (["--selection", "best"], "`selection` must be one of 'value', 'weighted_vote', 'majority', 'none'"),
        (["--greedy", "--num_particles", "2"], "pass `do_sample=True`"),
        (["--stream", "--num_particles", "2"], "`streamer` needs `num_particles=1`"),
        (["--space", "hidden"], "`space` must be one of 'logit'"),
        (["--system_prompt", "w9"], "`--system_prompt` needs a tokenizer with a chat template"),
        (["--chat_template_kwargs", "{}"], "`--chat_template_kwargs` needs a tokenizer with a chat template"),
        (["--dtype", "float99"], "`dtype` must be `auto` or a torch dtype"),
        (["--device", "nowhere"], "`device` must be a torch device"),
    ],
)
def test_wrong_settings_are_explained(
    saved: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "generate", saved, "w8 w9", "--max_new_tokens", "5", *options)
    assert (status, out) == (1, "")
    assert err.startswith("vgf: error: ") and message in err


def test_wrong_folders_are_explained(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no saved VGF model" in run(capsys, "inspect", tmp_path)[2]
    for command in (["generate", "outputs/gone", "w8"], ["export", "outputs/gone", "out"], ["inspect", "outputs/gone"]):
        status, out, err = run(capsys, *command)
        assert (status, out) == (1, "") and err.startswith("vgf: error: ") and "outputs/gone" in err
    assert str(tmp_path / "gone") in run(capsys, "generate", tmp_path / "gone", "w8")[2]
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    head = tmp_path / "value_head.safetensors"
    head.write_bytes(head.read_bytes()[:20])
    status, _, err = run(capsys, "inspect", tmp_path)
    assert status == 1 and "truncated" in err and head.name in err


@pytest.mark.parametrize(
    "command",
    [
        "--nothing",
        "generate",
        "generate model",
        "inspect a b",
        "generate a b --answer_regex (",
        "generate a b --all --stream",
        "generate a b --chat_template_kwargs [1]",
        "generate a b --chat_template_kwargs thinking",
    ],
)
def test_wrong_command_lines_exit_with_two(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(command.split())
    assert exit_info.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("vgf") and "error: " in err and "--help` has the options and examples" in err


def test_without_a_command_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([])
    out, err = capsys.readouterr()
    assert (exit_info.value.code, out) == (2, "")
    listed = {line.split()[0] for line in err.split("commands:")[1].splitlines() if line}
    assert err.startswith("usage: vgf") and set(COMMANDS) <= listed


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("genrate", "Did you mean generate?"),
        ("info my-value", "`vgf info` is `vgf inspect` now."),
        (
            "generate a b --transport_setps 2",
            "--transport_setps 2. Did you mean --transport_steps?",
        ),
        ("chat a --raw", "vgf chat: error: unrecognized arguments: --raw."),
        ("completion bsh", "Did you mean bash?"),
    ],
)
def test_a_wrong_name_gets_the_right_one(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(command.split())
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 2


@pytest.mark.parametrize("name", set(COMMANDS) - {"train", "version"})
def test_every_command_has_help_with_examples_that_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([name, "--help"])
    out = capsys.readouterr().out
    assert exit_info.value.code == 0 and f"vgf {name}" in out
    examples = out.split("examples:\n")[1].splitlines()
    assert examples == [f"  vgf {name} {example}" for example in COMMANDS[name].examples]
    for example in COMMANDS[name].examples if not COMMANDS[name].hands_on else ():
        typed = shlex.split(example.partition(" > ")[0].partition(" < ")[0])
        assert make_parser([name]).parse_args([name, *typed]).command == name


def typed_in(page: Path) -> list[list[str]]:
    """The lines of a page's shell blocks that call `vgf`, without pipes and files."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.startswith("vgf ")]
    return [shlex.split(re.split(r" [<>|] ", line)[0], comments=True)[1:] for line in lines]


def test_what_the_documentation_types_parses() -> None:
    lines = [line for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) for line in typed_in(page)]
    assert {name for name, *_ in lines} == set(COMMANDS) - {"version"}
    for name, *options in lines:
        if not COMMANDS[name].hands_on:
            assert make_parser([name]).parse_args([name, *options]).command == name
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert not [name for name, command in COMMANDS.items() if f"`vgf {name}`" not in page]


@pytest.mark.parametrize(("name", "module"), [("eval", eval_run), ("tune-budget", tune_budget)])
def test_evaluation_has_the_options_of_its_modules(name: str, module: Any) -> None:
    of_module = module.parse(["--model", "a", "--task", "embedded_math", "--output_dir", "b"])
    of_command = make_parser([name]).parse_args([name, "a", "--task", "embedded_math", "--output_dir", "b"])
    assert vars(of_command) == {**vars(of_module), "command": name}


def test_eval_measures_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_vgf(tmp_path / "model")
    small = ["--num_problems", 2, "--max_new_tokens", 3, "--methods", "greedy", "vgf_logit", "--num_particles", 1]
    command = ["eval", model, "--task", "embedded_math", "--steps", 0, 1, "--seeds", 0, *small]
    status, out, _ = run(capsys, *command, "--output_dir", tmp_path / "out")
    assert status == 0 and "VGF, one particle" in out and (tmp_path / "out" / "results.json").is_file()
    status, _, err = run(
        capsys, "tune-budget", model, "--task", "embedded_math", "--split", "test", "--output_dir", "x"
    )
    assert status == 1 and err.startswith("vgf: error: `--split test` would choose the budget")


def test_the_harness_gets_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    adapter = types.ModuleType("eval.lm_eval_adapter")
    adapter.main = lambda: seen.append(sys.argv)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "eval.lm_eval_adapter", adapter)
    monkeypatch.setattr(sys, "argv", [])
    assert main(["lm-eval", "run", "--model", "vgf"]) == 0
    assert seen == [["vgf lm-eval", "run", "--model", "vgf"]]


def test_completion_knows_commands_and_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    status, script, _ = run(capsys, "completion", "bash")
    assert status == 0
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    for name in (*COMMANDS, "--transport_steps", "--cautious", "--value_parametrization", "gsm8k_vgf"):
        assert name in script
    typed = 'source /dev/stdin <<< "$1"; COMP_WORDS=(vgf generate --transport_st); COMP_CWORD=2; '
    typed += '_shtab_vgf; echo "${COMPREPLY[@]}"'
    found = subprocess.run(["bash", "-c", typed, "bash", script], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["--transport_steps"]


def test_the_embedded_model_is_asked_a_problem_of_its_task() -> None:
    assert len(read_steps(EMBEDDED_PROMPT)[1]) in NUM_STEPS
    tokenizer = AutoTokenizer.from_pretrained(BASE_DIR)
    assert tokenizer.unk_token_id not in tokenizer(EMBEDDED_PROMPT).input_ids


@pytest.mark.parametrize("options", [[], ["my-value", "--embedded"]])
def test_demo_shows_one_model(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "demo", *options)
    assert status == 1 and "pass the `path` of a saved one, or `--embedded`" in err


def test_progress_bars_stay_out_of_log_files_and_follow_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TQDM_DISABLE", "TQDM_DYNAMIC_NCOLS"):
        monkeypatch.delenv(name, raising=False)
    code = "from vgf_llm.cli import main; main(); from tqdm import tqdm; bar = tqdm(range(2)); "
    code += "print(bar.disable, not bar.disable and bool(bar.dynamic_ncols))"
    command = [sys.executable, "-c", code, "version"]
    log = subprocess.run(command, capture_output=True, text=True, check=True)
    assert log.stdout.split()[-2:] == ["True", "False"] and log.stderr == ""
    ours, theirs = pty.openpty()
    terminal = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, text=True, check=True)
    os.close(theirs)
    os.close(ours)
    assert terminal.stdout.split()[-2:] == ["False", "True"]
