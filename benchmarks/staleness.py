# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What the value learns where its rounds are sampled ahead: k rounds before they are due, with what is known then.

    python -m benchmarks.staleness --seeds 0 1 2 --staleness 0 1 2 4 --json staleness.json

The embedded math recipe, sampled by transformers. Completions of round r are drawn with the weights at the start of
round r - k, or the first ones, and its prompts are chosen by the outcomes of the rounds before that one; what was asked
for since counts as tried. k = 0 is the recipe itself. Seeds are the outer loop, and runs that the JSON holds are not
run again. Test problems and their rows are those of `eval.compare`.
"""

import argparse
import json
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.harness import hardware, write_json
from benchmarks.harness import measure as seconds_of
from eval.baselines import Job, vgf_settings
from eval.compare import RECIPES
from eval.compare_measure import CANDIDATE_DEFAULTS, task_sampler
from eval.methods import PlanOptions, abilities, plan
from eval.tasks import TaskOptions, load_task
from vgf_llm import VGFModel, VGFTrainer
from vgf_llm.trainer.choose.schedule import UnsolvedFirst
from vgf_llm.trainer.sample import Request, Sampler, Samples

STEPS = 4  # the budget L of the rows beside the exported model's
DRAWS = 8  # sampled responses to a test problem, whose mean is one sample's accuracy


class LatePrompts(UnsolvedFirst):
    """Chooses prompts before the outcomes of the last `late` rounds are known; that they were tried is known."""

    def __init__(self, num_prompts: int, seed: int, late: int = 0) -> None:
        super().__init__(num_prompts, seed)
        self.late = late
        self._waiting: deque[tuple[Sequence[int], Tensor]] = deque()

    def choose(self, count: int, waiting: Sequence[Sequence[int]] = ()) -> list[int]:
        """Returns the indices of a round's prompts."""
        return super().choose(count, [*(indices for indices, _ in self._waiting), *waiting])

    def record(self, indices: Sequence[int], rewards: Tensor) -> None:
        """Takes the outcomes of a round, and notes those of `late` rounds ago."""
        self._waiting.append((indices, rewards))
        if len(self._waiting) > self.late:
            super().record(*self._waiting.popleft())

    def restart(self) -> None:
        """Forgets all outcomes."""
        self.__init__(len(self._tries), self.seed, self.late)  # type: ignore[misc]


class StaleSampler(Sampler):
    """Samples training rounds with the trainable weights of `staleness` rounds ago."""

    def __init__(self, sampler: Sampler, model: Callable[[], nn.Module], staleness: int) -> None:
        self.sampler = sampler
        self.model = model
        self._kept: deque[list[Tensor]] = deque(maxlen=staleness + 1)

    def __call__(self, request: Request) -> Samples:
        """Samples the rows of a request."""
        if request.mode != "train":
            return self.sampler(request)
        trained = [parameter.data for parameter in self.model().parameters() if parameter.requires_grad]
        self._kept.append([weights.clone() for weights in trained])
        try:
            _put(trained, self._kept[0])
            return self.sampler(request)
        finally:
            _put(trained, self._kept[-1])


def _put(places: list[Tensor], values: list[Tensor]) -> None:
    for place, value in zip(places, values, strict=True):
        place.copy_(value)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.staleness", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4], help="rounds")
    parser.add_argument("--num_train", type=int, default=RECIPES["embedded_math"].num_train)
    parser.add_argument("--num_test", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True, metavar="OUT", help="written after each run")
    return parser.parse_args(argv)


def build_trainer(job: Job, staleness: int) -> VGFTrainer:
    """Builds the recipe's trainer, whose rounds are as old as those sampled `staleness` rounds ahead."""
    trainer = VGFTrainer(
        model=job.base,
        reward_funcs=job.task.gold,
        args=vgf_settings(job),
        train_dataset=job.task.problems,
        processing_class=job.tokenizer,
    )
    trainer.schedule.prompts = LatePrompts(len(job.task.problems), job.seed, staleness)
    trainer.sampler = StaleSampler(trainer.sampler, lambda: trainer.vgf_model, staleness)
    return trainer


def score(model: VGFModel, tokenizer: Any, num_test: int, seed: int) -> dict[str, float]:
    """Accuracy of greedy and of sampled responses, by the exported model and by transport with a budget of `STEPS`."""
    test = load_task("embedded_math", TaskOptions("test", num_test, problem_seed=0))
    able = abilities(model, test)
    options = PlanOptions(steps=(STEPS,), num_particles=(1,), temperatures=(1.0,))
    transported = plan([f"vgf_{able.spaces[0]}"], able, options)
    exported = VGFModel(model.merge_value()).eval()
    limits = {name: getattr(exported.policy.generation_config, name) for name in CANDIDATE_DEFAULTS}
    of_export = PlanOptions(num_particles=(1, DRAWS), temperatures=(1.0,), sampling=limits)
    plain = plan(["greedy", "temperature"], abilities(exported, test, has_value=False), of_export)
    found = {}
    for name, one, methods in (("exported", exported, plain), (f"L={STEPS}", model, transported)):
        take = task_sampler(one, tokenizer, test)
        for method in methods:
            sampled = method.draw.options.get("do_sample", False)
            gold = take(method.draw, num_samples=DRAWS if sampled else 1, seed=seed).gold
            found[f"{name}, {'one sample' if sampled else 'greedy'}"] = gold.mean().item()
    return found


def run(staleness: int, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains and scores one run."""
    recipe = RECIPES["embedded_math"]
    task = load_task(recipe.task, TaskOptions("train", args.num_train, problem_seed=seed)).for_training()
    with tempfile.TemporaryDirectory() as folder:
        job = Job(recipe.base, task, Path(folder), seed=seed, vgf_config=recipe.vgf_config)
        trainer = build_trainer(job, staleness)
        seconds = seconds_of(trainer.train)
    found = {"seed": seed, "staleness": staleness, "cpu_seconds": seconds.cpu}
    return {**found, **score(trainer.vgf_model.eval(), job.tokenizer, args.num_test, seed)}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is missing, and prints each run and the means."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    settings = {"num_train": args.num_train, "num_test": args.num_test, "hardware": hardware("cpu")}
    rows = json.loads(args.json.read_text(encoding="utf-8"))["rows"] if args.json.is_file() else []
    for seed in args.seeds:
        for staleness in args.staleness:
            if all((row["seed"], row["staleness"]) != (seed, staleness) for row in rows):
                rows.append(run(staleness, seed, args))
                write_json(args.json, {**settings, "rows": rows})
    names = [name for name in rows[0] if name not in ("seed", "staleness")]
    view = Table("rounds old", "seeds", *names, title=f"embedded math, {settings}")
    for staleness in args.staleness:
        own = [row for row in rows if row["staleness"] == staleness]
        means = [f"{sum(row[name] for row in own) / len(own):.3f}" for name in names]
        view.add_row(str(staleness), " ".join(str(row["seed"]) for row in own), *means)
    Console(width=160).print(view)


if __name__ == "__main__":
    main()
