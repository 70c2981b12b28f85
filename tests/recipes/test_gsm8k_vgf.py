# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The math recipe: its command line, its YAML files, and the whole of it at a small size."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from benchmarks import estimate
from benchmarks.sizes import build_policy
from eval.tasks import Task
from recipes import gsm8k_vgf
from recipes.embedded_math import BASE_DIR, make_problems
from tests.distributed.launch import free_port
from tests.trainer.engines import stand_in
from vgf_llm import VGFModel, cli
from vgf_llm.trainer.choose.schedule import Schedule

ROOT = Path(gsm8k_vgf.__file__).parents[1]
CONFIGS = sorted((Path(gsm8k_vgf.__file__).parent / "configs").glob("gsm8k_*.yaml"))
ON_GPUS = [path for path in CONFIGS if "qwen" in path.name]
# A CPU has no bf16 arithmetic that the trainer accepts.
ON_CPU = ["--bf16", "false", "--dtype", "float32", "--gradient_checkpointing", "false"]
SMALL = [
    *("--num_validation_problems", "4", "--num_test_problems", "6", "--budget_steps", "0", "2"),
    *("--eval_particles", "2", "--eval_baseline_samples", "2", "--max_steps", "2", "--logging_steps", "1"),
    *("--per_device_train_batch_size", "8", "--steps_per_generation", "8", "--disable_tqdm", "true"),
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_without_arguments_the_embedded_configuration_is_used() -> None:
    args, training_args, model_args = gsm8k_vgf.parse([])
    assert args.dataset_name == gsm8k_vgf.EMBEDDED
    assert model_args.model_name_or_path is None
    assert training_args.value_backbone == "copy"
    assert training_args.transport.transport_steps * training_args.transport.step_size == 1.0
    assert (BASE_DIR / "model.safetensors").stat().st_size < 5e6


def test_the_command_line_wins_over_the_configuration() -> None:
    args, training_args, _ = gsm8k_vgf.parse(["--num_test_problems", "7", "--learning_rate", "0.5", "--seed", "3"])
    assert (args.num_test_problems, training_args.learning_rate, training_args.seed) == (7, 0.5, 3)


def test_a_dataset_of_the_users_own_leaves_the_embedded_configuration_out() -> None:
    args, training_args, model_args = gsm8k_vgf.parse(
        ["--dataset_name", "openai/gsm8k", "--model_name_or_path", "some/model", "--use_peft", "true", *ON_CPU]
    )
    assert (args.dataset_name, model_args.model_name_or_path) == ("openai/gsm8k", "some/model")
    assert model_args.use_peft
    assert training_args.value_backbone == "lora"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_parse(path: Path) -> None:
    args, training_args, _ = gsm8k_vgf.parse(["--config", str(path), *ON_CPU])
    assert training_args.output_dir == f"outputs/{path.stem}"
    assert args.dataset_name in (*gsm8k_vgf.EMBEDDED_TASKS, "openai/gsm8k")
    command = shlex.split(path.read_text(encoding="utf-8").splitlines()[1].removeprefix("# "))
    launch = launch_command_parser().parse_args(command[2:])
    assert command[:2] == ["accelerate", "launch"] and launch.training_script == "recipes/gsm8k_vgf.py"
    assert launch.training_script_args == ["--config", f"recipes/configs/{path.name}"]
    assert launch.config_file is None or (ROOT / launch.config_file).is_file()


@pytest.mark.parametrize("path", ON_GPUS, ids=lambda path: path.stem)
def test_configurations_for_gpus_open_with_their_estimate_and_what_they_were_run_on(path: Path) -> None:
    header = path.read_text(encoding="utf-8").split("model_name_or_path")[0].splitlines()
    assert header[2] == "# Run on: nothing so far."
    words = shlex.split(header[3].removeprefix("# Estimate (").removesuffix("):"))
    assert words[:4] == ["python", "-m", "benchmarks.estimate", f"recipes/configs/{path.name}"]
    options = {"gpus": 8, "zero3": True} if words[4:] == ["--gpus", "8", "--zero3"] else {}
    assert bool(options) == ("accelerate_configs/zero3.yaml" in header[1]) == bool(words[4:])
    lines = estimate.estimate(str(path), **options)
    assert header[4:] == [f"#   {line}" for line in lines]
    (row,) = re.findall(rf"`{path.name}` \|(.*)", (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8"))
    figures = re.findall(r"most \d+|(?:sampling|fitting|table) \d\.\d", " ".join(lines[2:]))
    assert re.findall(r"[\d.]+", row)[-4:] == [figure.split()[1] for figure in figures]


@pytest.mark.parametrize("path", ON_GPUS, ids=lambda path: path.stem)
def test_configurations_for_gpus_sample_as_much_as_grpo(path: Path) -> None:
    """What GRPO samples in one epoch of eight completions each, with the same rounds."""
    script, args, _ = gsm8k_vgf.parse(["--config", str(path), *ON_CPU])
    gpus = 8 if "zero3" in path.stem else 1
    size = args.per_device_train_batch_size * args.steps_per_generation * gpus
    problems = 7473 - script.num_validation_problems
    schedule = Schedule(
        num_generations=args.num_generations,
        samples_from=args.samples_from,
        round_steps=args.steps_per_generation,
        rollout_fraction=args.rollout_fraction,
    )
    rounds = int(args.num_train_epochs) * (problems // (size // args.num_generations))
    sampled = schedule.sampled_steps(rounds * args.steps_per_generation) // args.steps_per_generation
    assert sampled == problems // (size // 8) and size == 256
    assert size % (args.gradient_accumulation_steps * args.per_device_train_batch_size * gpus) == 0


def test_parameters_of_the_estimate_are_those_of_the_model() -> None:
    for size in ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b"):
        policy = build_policy(size, "meta", "float32")
        found = estimate.counts(size)
        assert found["parameters"] == policy.num_parameters()
        lora = LoraConfig(r=estimate.LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = get_peft_model(policy, lora, low_cpu_mem_usage=True)
        assert found["adapter"] == sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n)


def test_a_missing_model_and_an_unknown_reward_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`reward` must be one of auto, gsm8k, math; got 'judge'"):
        gsm8k_vgf.choose_reward("judge", "#### 3")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        gsm8k_vgf.main(["--dataset_name", str(tmp_path / "nowhere"), "--model_name_or_path", str(BASE_DIR), *ON_CPU])


def test_the_table_is_as_large_as_the_bound_allows(capsys: pytest.CaptureFixture[str]) -> None:
    problems = Dataset.from_dict({"prompt": [str(i) for i in range(10)]})
    task = Task("toy", problems, lambda completions, **columns: [0.0] * len(completions))
    console = Console(width=200)
    assert len(gsm8k_vgf.affordable(task, 6, 60, 8, console).problems) == 10
    assert "10 problems x 6 responses = 60, of up to 8 tokens\n" in capsys.readouterr().out
    assert gsm8k_vgf.affordable(task, 6, 47, 8, console).problems["prompt"] == [str(i) for i in range(7)]
    assert "7 problems x 6 responses = 42" in (printed := capsys.readouterr().out)
    assert "3 problems are left out (`max_eval_responses` 47)" in printed
    with pytest.raises(ValueError, match="`max_eval_responses` is 11, but one problem takes 6 responses"):
        gsm8k_vgf.affordable(task, 6, 11, 8, console)


def _on_two_processes(folder: Path, launcher: list[str], options: list[str]) -> dict[str, float]:
    """Runs the recipe on two CPU processes; returns the scores of its table."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # DeepSpeed looks for ninja there
    script = ROOT / "recipes" / "gsm8k_vgf.py"
    command = [sys.executable, "-m", *launcher, str(script), "--output_dir", str(folder), "--use_cpu", "true", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("One transported sample (L=2") == 1  # the first process alone prints
    return {row["method"]: row["score"] for row in json.loads((folder / "results.json").read_text())["rows"]}


TWO = [
    *("--num_train_problems", "24", "--num_validation_problems", "3", "--num_test_problems", "5"),
    *("--budget_steps", "0", "2", "--eval_particles", "2", "--eval_baseline_samples", "2", "--eval_rows", "4"),
    *("--per_device_train_batch_size", "8", "--steps_per_generation", "2", "--max_steps", "1"),
    *("--disable_tqdm", "true"),
]


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_print_the_table_of_one(tmp_path: Path) -> None:
    still = ["--learning_rate", "1e-30", "--value_holdout_ratio", "0"]  # the value stays where it starts
    two = _on_two_processes(
        tmp_path / "two",
        ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())],
        [*TWO, *still],
    )
    gsm8k_vgf.main(["--output_dir", str(tmp_path / "one"), "--use_cpu", "true", *TWO, *still])
    one = json.loads((tmp_path / "one" / "results.json").read_text(encoding="utf-8"))
    assert two == {row["method"]: row["score"] for row in one["rows"]}


@pytest.mark.distributed
@pytest.mark.deepspeed
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sharded_weights_are_evaluated_on_every_process(tmp_path: Path) -> None:
    config = ROOT / "recipes" / "accelerate_configs" / "zero3.yaml"
    launcher = ["accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
    launcher += ["--mixed_precision", "no", "--main_process_port", str(free_port())]
    scores = _on_two_processes(tmp_path, launcher, [*TWO, "--value_backbone", "lora", "--rollout_fraction", "1.0"])
    assert "VGF, one particle, L=2" in scores


def _check_results(folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    methods = [row["method"] for row in results["rows"]]
    for method in ("greedy", "majority@2", "best-of-2 by value", "VGF, one particle, L=2", "random direction, L=2"):
        assert method in methods
    assert all(0 <= row["score"] <= 1 and row["tokens"] > 0 and row["seconds"] > 0 for row in results["rows"])
    assert (folder / "results.md").read_text(encoding="utf-8").count("\n") == len(methods) + 2
    assert (folder / "accuracy_over_budget.png").read_bytes().startswith(b"\x89PNG")
    return results


def test_the_embedded_recipe_runs_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gsm8k_vgf.main(["--output_dir", str(tmp_path), "--num_train_problems", "24", "--num_threads", "1", *SMALL])
    results = _check_results(tmp_path)
    assert results["meta"]["L"] == 2
    printed = capsys.readouterr().out
    assert "One transported sample (L=2" in printed
    for name, row in json.loads(gsm8k_vgf.REFERENCE.read_text(encoding="utf-8")).items():
        assert f"  {name}, mean of {row['seeds']} seeds:\n    greedy {row['greedy']}, " in printed
    model = VGFModel.from_pretrained(tmp_path)
    assert (model.transport.transport_steps, model.value.parametrization) == (2, "log_ratio")
    alone, base = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path, BASE_DIR))
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), base.parameters(), strict=True))
    assert f"vgf export {tmp_path} OUT" in printed
    # The last lines have a problem with both answers, and a command that gives the second one.
    shown = printed[printed.index("Test problem") :]
    assert "base, L=0: " in shown and "VGF, L=2: " in shown
    words = shlex.split(next(line for line in shown.splitlines() if line.startswith("vgf generate")))
    assert words[2] == str(tmp_path) and words[3] in make_problems(6, seed=0, split="test")["question"]
    assert cli.main([*words[1:], "--max_new_tokens", "54"]) == 0
    answer = capsys.readouterr().out.strip()
    cells = [line.split("│")[2].strip() for line in shown.splitlines() if line.startswith("│")]
    assert "".join(cells).replace(" ", "") == "".join(answer.split())
    assert cli.main(["export", str(tmp_path), str(tmp_path / "plain")]) == 0
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), base.parameters(), strict=True))


def test_without_matplotlib_the_recipe_leaves_plots_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`pip install "vgf-llm[demo]"` brings none, and `vgf demo --embedded` trains with this recipe."""
    monkeypatch.setattr(gsm8k_vgf, "is_matplotlib_available", lambda: False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    gsm8k_vgf.main(["--output_dir", str(tmp_path), "--num_threads", "1", *TWO, "--num_generations", "2"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "model, results.json, results.md are in" in printed and "total: " in printed
    assert VGFModel.from_pretrained(tmp_path) and not (tmp_path / "plots").exists()


def _tiny_qwen2(folder: Path, texts: list[str]) -> None:
    """Saves a tiny random Qwen2 with a byte-level tokenizer that knows the data's words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=len(fast),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)


def _tiny_run(path: Path, folder: Path, data: Path, **options: Any) -> list[str]:
    """Arguments that put a tiny model of the same architecture and a few short completions in a configuration."""
    given = {
        "config": path,
        "model_name_or_path": folder / "qwen",
        "dataset_name": data,
        "output_dir": folder / "out",
        "num_train_problems": 24,
        "max_completion_length": 12,
        "steps_per_generation": 4,
        "num_threads": 1,
        **options,
    }
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


@pytest.mark.parametrize("path", ON_GPUS, ids=lambda path: path.stem)
def test_configurations_for_gpus_train_a_tiny_model(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every setting of the file but the weights, the data, the precision and the engine, for which one stands in."""
    stand_in(monkeypatch)
    problems = [{"question": f"What is {a} + {a + 1}?", "answer": f"#### {2 * a + 1}"} for a in range(40)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    _tiny_qwen2(tmp_path / "qwen", [row["question"] for row in problems])
    monkeypatch.setattr(gsm8k_vgf, "choose_reward", lambda name, answer: odd_first_token)
    options = {"num_validation_problems": 4, "max_steps": 2, "logging_steps": 1, "skip_evaluation": True}
    gsm8k_vgf.main([*_tiny_run(path, tmp_path, tmp_path, **options), "--disable_tqdm", "true", *ON_CPU])
    out = tmp_path / "out"
    assert (out / "value" / "adapter_model.safetensors").is_file()
    assert VGFModel.from_pretrained(out).transport.transport_steps == 2


def odd_first_token(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [float(ids[0] % 2) for ids in completion_ids]


@pytest.mark.data
def test_the_qwen_configuration_runs_on_gsm8k(tmp_path: Path, data_dir: Path) -> None:
    gsm8k = data_dir / "gsm8k"
    lines = (gsm8k / "train.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    _tiny_qwen2(tmp_path / "qwen", [json.loads(line)["question"] for line in lines])
    config, out = ON_GPUS[0], tmp_path / "out"
    given = _tiny_run(config, tmp_path, gsm8k, save_steps=1, use_vllm=False)
    gsm8k_vgf.main([*given, *SMALL, *ON_CPU])
    results = _check_results(out)
    assert results["meta"]["dataset"] == str(gsm8k)
    assert (out / "checkpoint-2" / "trainer_state.json").is_file()
    assert (out / "value" / "adapter_model.safetensors").is_file()
