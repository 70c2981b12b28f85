# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Iterated rejection-sampling SFT: what every step trains on, and that one training goes through all rounds."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval import baselines, compare
from eval.baselines import Job
from eval.iterated import Rounds, RoundsTrainer
from eval.sampling import Samples
from eval.tasks import Task
from vgf_llm import VGFConfig

BASE = str(compare.RECIPES["embedded_math"].base)
# Rounds of four prompts, two completions each, in two steps; four rounds are sampled, and two are not.
SETTINGS: dict[str, Any] = {
    "num_generations": 2,
    "per_device_train_batch_size": 4,
    "steps_per_generation": 2,
    "prompt_selection": "unsolved",
    "rollout_fraction": 0.667,
    "replay_ratio": 0.5,
    "value_backbone": "copy",
    "warmup_steps": 1,
    "lr_scheduler_type": "cosine",
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
}


def task(count: int) -> Task:
    prompts = Dataset.from_dict({"prompt": [f"Ann has {i} apples." for i in range(count)]})
    return Task("toy", prompts, lambda completions, **kwargs: [0.0] * len(completions))


def answers(rewards: torch.Tensor, text: str = "#### 7") -> Samples:
    tokens = torch.full_like(rewards, 5.0)
    rows, columns = rewards.shape
    nothing: list[list[str | None]] = [[None] * columns] * rows
    return Samples(rewards, tokens, tokens, tokens, tokens, tokens, nothing, [[text] * columns] * rows)


class Sampler:
    """The base is wrong, and the trained model right, wherever the problem's number is not among `failing`."""

    def __init__(self, failing: set[int]) -> None:
        self.failing = failing
        self.calls: list[tuple[str, list[int], int, int]] = []

    def __call__(self, who: str, asked: Task, num_samples: int, number: int) -> Samples:
        problems = [int(prompt.split()[2]) for prompt in asked.problems["prompt"]]
        self.calls.append((who, problems, num_samples, number))
        right = [[float(who != "base" and problem not in self.failing)] * num_samples for problem in problems]
        return answers(torch.tensor(right))


def rounds(sampler: Any, count: int = 8, **changes: Any) -> Rounds:
    args = VGFConfig("unused", use_cpu=True, seed=3, num_train_epochs=3, **{**SETTINGS, **changes})
    return Rounds(args, task(count), AutoTokenizer.from_pretrained(BASE), sampler)


def test_rounds_follow_the_schedule() -> None:
    sampler = Sampler(failing={0, 1, 2})
    made = rounds(sampler)
    assert made.num_steps == 12  # three epochs of two rounds of two steps
    sizes = [len(made.rows(step)) for step in range(made.num_steps)]
    assert [(who, count, number) for who, _, count, number in sampler.calls] == [
        (who, 1, number) for number in range(4) for who in ("base", "value")
    ]
    asked = [sorted(problems) for _, problems, _, _ in sampler.calls[::2]]
    assert sorted(asked[0] + asked[1]) == list(range(8))
    # What has no success is asked again, in every round that follows.
    assert set(asked[2]) > {0, 1, 2}
    assert set(asked[3]) > {0, 1, 2}
    assert made.num_tokens == 4 * 4 * 2 * 5
    assert made.prompts.solved_fraction == 5 / 8
    # Fresh successes and two earlier prompts; six earlier prompts where nothing is sampled.
    fresh = [sum(problem > 2 for problem in problems) for _, problems, _, _ in sampler.calls[::2]]
    totals = [sizes[start] + sizes[start + 1] for start in range(0, 12, 2)]
    assert totals == [fresh[0], *(count + 2 for count in fresh[1:]), 6, 6]


def test_the_trained_model_can_sample_alone() -> None:
    sampler = Sampler(failing=set())
    made = rounds(sampler, num_base_generations=0)
    made.rows(0)
    assert [(who, count) for who, _, count, _ in sampler.calls] == [("value", 2)]
    # Both completions of every prompt are right: nothing says what is better, as in VGF.
    assert [set(row["labels"]) for row in made.rows(1)] == [{-100}]


def test_a_contrast_of_the_run_lets_every_success_teach() -> None:
    made = rounds(Sampler(failing={0}), num_base_generations=0, contrast="run")
    sizes = [sum(set(row["labels"]) != {-100} for row in made.rows(step)) for step in range(4)]
    # Problem 0 fails in one of the two rounds; from then on all successes teach, two earlier ones beside them.
    assert sizes[2] + sizes[3] >= 6


def test_rows_teach_the_completion_and_its_end() -> None:
    made = rounds(Sampler(failing=set()))
    tokenizer = made.tokenizer
    row = made.rows(0)[0]
    learned = [token for token in row["labels"] if token != -100]
    assert tokenizer.decode(learned, skip_special_tokens=True) == "#### 7"
    assert learned[-1] == tokenizer.eos_token_id
    assert row["input_ids"][-len(learned) :] == learned
    start = row["input_ids"][: -len(learned)]
    assert tokenizer.decode(start, skip_special_tokens=True).startswith("Ann has ")
    assert row["labels"][: len(start)] == [-100] * len(start)


def test_what_cannot_be_trained_on_is_refused() -> None:
    with pytest.raises(ValueError, match="`prompt_selection` is 'dataset', and iterated rejection sampling needs"):
        rounds(Sampler(failing=set()), prompt_selection="dataset")
    made = rounds(Sampler(failing=set(range(8))))
    for step in range(8):
        assert [set(row["labels"]) for row in made.rows(step)] == [{-100}]
    with pytest.raises(ValueError, match="No response is right"):
        made.rows(8)


def test_one_training_goes_through_all_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "vgf.yaml"
    config.write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    trainers: list[RoundsTrainer] = []
    seen: dict[str, list[torch.Tensor]] = {"base": [], "value": []}

    class Kept(RoundsTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            trainers.append(self)

    def fake(model: Any, job: Job, draw: Any, num_samples: int) -> Samples:
        who = draw.name.split(",")[0]
        weights = model.policy.get_input_embeddings().weight.detach().clone()
        seen[who].append(weights)
        if who == "value":  # those of the optimizer step that was made last, of no earlier one
            torch.testing.assert_close(weights, trainers[0].model.get_input_embeddings().weight, rtol=0, atol=0)
        return answers(torch.full((len(job.task.problems), num_samples), float(who == "value")))

    monkeypatch.setattr(baselines, "RoundsTrainer", Kept)
    monkeypatch.setattr(baselines, "_sample", fake)
    job = Job(BASE, task(8), tmp_path / "out", learning_rate=1e-3, vgf_config=config, seed=3)
    baselines.train_iterated_rft(job)
    start = AutoModelForCausalLM.from_pretrained(BASE).get_input_embeddings().weight
    for weights in (*seen["base"], seen["value"][0]):
        torch.testing.assert_close(weights, start, rtol=0, atol=0)
    assert len(seen["base"]) == len(seen["value"]) == 4
    assert all(not torch.equal(a, b) for a, b in zip(seen["value"], seen["value"][1:], strict=False))
    saved = AutoModelForCausalLM.from_pretrained(job.directory).get_input_embeddings().weight
    assert not torch.equal(saved, seen["value"][-1])
    trainer = trainers[0]
    assert trainer.state.global_step == 12
    assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {12}
    assert trainer.lr_scheduler.get_last_lr() == [0.0, 0.0]
