# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The adapter for lm-evaluation-harness on a task of local files, through the harness's own command line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

lm_eval = pytest.importorskip(
    "lm_eval", reason="lm-evaluation-harness is not installed (pip install 'vgf-llm[lm-eval]')"
)

from eval import lm_eval_adapter  # noqa: E402
from recipes.embedded_math import BASE_DIR, make_problems  # noqa: E402
from tests.unit.eval.models import save_vgf  # noqa: E402
from vgf_llm import VGFModel  # noqa: E402

ROOT = Path(lm_eval_adapter.__file__).parents[1]
GENERATE = """
task: vgf_generate
dataset_path: json
dataset_kwargs:
  data_files: {test: FILE}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}\\n"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], do_sample: false, max_gen_toks: 12}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
CHOOSE = """
task: vgf_choose
dataset_path: json
dataset_kwargs:
  data_files: {test: FILE}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}\\n"
doc_to_choice: ["Ann has", "Eva has"]
doc_to_target: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("harness")
    rows = path / "test.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in make_problems(3, split="test")), encoding="utf-8")
    for name, text in (("generate", GENERATE), ("choose", CHOOSE)):
        (path / f"{name}.yaml").write_text(text.replace("FILE", str(rows)), encoding="utf-8")
    save_vgf(path / "model")
    return path


def test_the_command_line_transports(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    real = VGFModel.generate

    def spy(self: VGFModel, *args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(VGFModel, "generate", spy)
    arguments = f"pretrained={folder / 'model'},transport_steps=3,num_particles=2,step_size=1"
    monkeypatch.setattr("sys.argv", [
        "lm_eval", "run", "--model", "vgf", "--model_args", arguments, "--tasks", "vgf_generate", "--include_path",
        str(folder), "--output_path", str(tmp_path), "--log_samples", "--batch_size", "2", "--device", "cpu",
    ])  # fmt: skip
    lm_eval_adapter.main()
    assert [call["num_particles"] for call in seen] == [2, 2]
    assert all(call["transport_steps"] == 3 and call["do_sample"] and call["step_size"] == 1.0 for call in seen)
    results = json.loads(next(tmp_path.rglob("results_*.json")).read_text(encoding="utf-8"))
    assert results["results"]["vgf_generate"]["exact_match,none"] == 0.0
    lines = next(tmp_path.rglob("samples_*.jsonl")).read_text(encoding="utf-8").splitlines()
    assert all(json.loads(line)["resps"][0][0] for line in lines)


def test_the_module_is_a_command(folder: Path) -> None:
    command = [sys.executable, "-m", "eval.lm_eval_adapter", "run", "--model", "vgf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={folder / 'model'},num_particles=2", "--tasks", "vgf_generate"]
    done = subprocess.run(
        [*command, "--include_path", str(folder), "--limit", "1"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "vgf_generate" in done.stdout


def evaluate(folder: Path, model: str, task: str, **arguments: Any) -> dict[str, Any]:
    manager = lm_eval.tasks.TaskManager(include_path=str(folder))
    return lm_eval.simple_evaluate(
        model=model, model_args={"device": "cpu", **arguments}, tasks=[task], task_manager=manager, log_samples=True
    )


def answers(results: dict[str, Any], task: str) -> list[Any]:
    return [sample["resps"] for sample in results["samples"][task]]


def test_no_transport_is_the_harness_on_the_base(folder: Path) -> None:
    path = str(folder / "model")
    ours = evaluate(folder, "vgf", "vgf_generate", pretrained=path, transport_steps=0, num_particles=1)
    theirs = evaluate(folder, "hf", "vgf_generate", pretrained=str(BASE_DIR))
    moved = evaluate(folder, "vgf", "vgf_generate", pretrained=path, transport_steps=8, step_size=2.0)
    assert answers(ours, "vgf_generate") == answers(theirs, "vgf_generate") != answers(moved, "vgf_generate")


def test_each_response_ends_at_its_own_stop_string() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE_DIR)
    prompt, number, stop = (tokenizer(text, add_special_tokens=False)["input_ids"][-1] for text in ("9", "5", ">>"))
    rows = torch.tensor([[prompt, number, number], [prompt, number, stop], [stop, number, number]])
    assert lm_eval_adapter.StopsAt([">>"], tokenizer, 1)(rows, None).tolist() == [False, True, False]
    assert not lm_eval_adapter.StopsAt([], tokenizer, 1)(rows, None).any()


def test_log_likelihoods_are_the_policys(folder: Path) -> None:
    path = str(folder / "model")
    ours = evaluate(folder, "vgf", "vgf_choose", pretrained=path, transport_steps=8)
    theirs = evaluate(folder, "hf", "vgf_choose", pretrained=str(BASE_DIR))
    pairs = zip(answers(ours, "vgf_choose"), answers(theirs, "vgf_choose"), strict=True)
    for mine, base in pairs:
        assert [x[0][0] for x in mine] == pytest.approx([x[0][0] for x in base], abs=1e-4)


def test_settings_of_a_model_without_a_value_are_refused() -> None:
    with pytest.raises(ValueError, match="has no learned value"):
        lm_eval_adapter.VGFLM(str(BASE_DIR), transport_steps=4, device="cpu")
