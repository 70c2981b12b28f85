# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Trains and measures VGF and its baselines side by side: same base, prompts, reward and number of completions.

    python -m eval.compare --recipe embedded_math --seeds 0 1 2 --output_dir outputs/compare

Every run of a method, a learning rate and a seed is one JSON file, so that a comparison can be made in pieces
(`--methods grpo rloo`) and goes on where it stopped. A baseline's learning rate, and then its passes over its
completions, are chosen by sampled responses to validation problems with the first seed; the sweep is printed. Test
problems are the same for every seed.
"""

import argparse
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils import is_matplotlib_available

from eval import compare_measure as measured
from eval import compare_report
from eval.baselines import TRAINABLE, Job, recipe_init_kwargs, recipe_settings, sample_base
from eval.compare_measure import UNTRAINED
from eval.loading import tokenizer_mark
from eval.sampling import PLAIN_SAMPLING, Samples
from eval.store import differences, fingerprint, write_json
from eval.tasks import TASKS, Task, TaskOptions, load_task

RECIPE_DIR = Path(__file__).parent.parent / "recipes"
REFERENCE = RECIPE_DIR / "embedded_math" / "reference.json"
METHODS = (UNTRAINED, *TRAINABLE)


@dataclass(frozen=True)
class CompareRecipe:
    """What a comparison is made on.

    Attributes:
        task: Name of the task.
        vgf_config: The recipe's YAML file.
        num_train: Training prompts of the published comparison, as in the recipe.
    """

    task: str
    vgf_config: Path
    num_train: int

    @property
    def base(self) -> str:
        """Folder of the base model."""
        entry = TASKS[self.task]
        folder = entry.base_model or RECIPE_DIR / self.task / "base"
        return str(folder)


RECIPES = {
    "embedded_math": CompareRecipe("embedded_math", RECIPE_DIR / "configs" / "gsm8k_embedded.yaml", 3600),
    "embedded_chains": CompareRecipe("embedded_chains", RECIPE_DIR / "configs" / "gsm8k_chains.yaml", 3600),
    "embedded_preference": CompareRecipe(
        "embedded_preference", RECIPE_DIR / "configs" / "preference_embedded.yaml", 2000
    ),
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", required=True, help=f"one of {', '.join(RECIPES)}")
    parser.add_argument("--methods", nargs="+", default=["all"], help=f"all, or some of {', '.join(METHODS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learning_rates", type=float, nargs="+", help="instead of each method's own sweep")
    parser.add_argument("--num_train", type=int, help="training prompts; as many as the recipe has by default")
    parser.add_argument("--num_validation", type=int, default=200)
    parser.add_argument("--num_test", type=int, default=500)
    parser.add_argument("--num_generations", type=int, default=4, help="training completions per prompt")
    parser.add_argument("--num_votes", type=int, default=8, help="responses of votes and best-of rows")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="budgets L; validation chooses")
    parser.add_argument("--batch_size", type=int, default=64, help="completions per optimizer step of the baselines")
    parser.add_argument("--offline_epochs", type=int, nargs="+", default=[2, 4, 8, 16],
                        help="of dpo and rft over the base's samples: swept after the learning rate, which the first "
                        "of them decides")  # fmt: skip
    parser.add_argument("--num_iterations", type=int, nargs="+", default=[1, 2, 4],
                        help="of grpo and rloo: updates with each batch of completions, swept likewise")  # fmt: skip
    parser.add_argument("--test_sweeps", action="store_true",
                        help="measure a sweep's runs on test problems too, as points of the frontier")  # fmt: skip
    parser.add_argument("--vgf_config", type=Path, help="another YAML file of VGF settings")
    parser.add_argument("--reward_model", help="proxy of embedded_preference; the one that ships with it by default")
    parser.add_argument("--num_threads", type=int, help="CPU threads")
    parser.add_argument("--write_reference", action="store_true", help="keep rows for the math recipe to print")
    parser.add_argument("--output_dir", type=Path, required=True)
    return parser.parse_args(argv)


def check_arguments(args: argparse.Namespace) -> list[str]:
    """Refuses bad input before anything is trained; returns the methods.

    Raises:
        ValueError: For unknown recipes and methods, and sizes that cannot be.
        FileNotFoundError: If the recipe's files are missing.
    """
    if args.recipe not in RECIPES:
        raise ValueError(f"`--recipe` must be one of {', '.join(RECIPES)}; got {args.recipe!r}.")
    every = args.methods == ["all"]
    names = list(METHODS) if every else list(dict.fromkeys(args.methods))
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ValueError(f"`--methods` must be among {', '.join(METHODS)}, or all; got {', '.join(unknown)}.")
    recipe = RECIPES[args.recipe]
    config = args.vgf_config or recipe.vgf_config
    for path in (Path(recipe.base), config):
        if not path.exists():
            raise FileNotFoundError(f"The recipe {args.recipe!r} needs {path}, which does not exist.")
    for name, least in (("num_train", 2), ("num_validation", 2), ("num_test", 2), ("num_generations", 2),
                        ("num_votes", 2), ("batch_size", 2), ("offline_epochs", 1), ("num_iterations", 1)):  # fmt: skip
        given = getattr(args, name)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value < least:
                raise ValueError(f"`--{name}` must be at least {least}, got {value}.")
    if args.batch_size % args.num_generations:
        raise ValueError(
            f"`--batch_size` {args.batch_size} must be a multiple of `--num_generations` {args.num_generations}."
        )
    if any(name in TRAINABLE and TRAINABLE[name].reads_recipe for name in names):
        settings = recipe_settings(config, args.num_generations)
        scheduled = [name for name in names if name in TRAINABLE and TRAINABLE[name].scheduled]
        if scheduled and settings.get("prompt_selection") != "unsolved":
            if not every:
                raise ValueError(
                    f"`--methods` {', '.join(scheduled)} takes prompts without a success first, and {config} "
                    "does not set `prompt_selection: unsolved`. Leave it out, or name a recipe that does."
                )
            names = [name for name in names if name not in scheduled]
    if args.write_reference and args.recipe != "embedded_math":
        raise ValueError("`--write_reference` is for --recipe embedded_math, whose recipe prints it.")
    return names


class Stopwatch:
    """Measures wall and processor seconds from its creation to `stop`; the latter hardly depend on other jobs."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()
        self.wall = self.cpu = 0.0

    def stop(self) -> "Stopwatch":
        """Fixes both times."""
        self.wall, self.cpu = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        return self

    def add(self, other: "Stopwatch") -> None:
        """Adds the times of another."""
        self.wall, self.cpu = self.wall + other.wall, self.cpu + other.cpu


class Comparison:
    """The runs of one results folder.

    Args:
        args: What `parse` returned.

    Raises:
        ValueError: If the folder holds runs of another base, tokenizer, attention, problems, rewards or sizes.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.recipe = RECIPES[args.recipe]
        self.runs = Path(args.output_dir) / "runs"
        self.runs.mkdir(parents=True, exist_ok=True)
        self.num_train = args.num_train or self.recipe.num_train
        self.validation = self._task("validation", args.num_validation, 0)
        self.test = self._task("test", args.num_test, 0)
        self.settings = {
            "recipe": args.recipe,
            "base": fingerprint(self.recipe.base),
            "tokenizer": tokenizer_mark(AutoTokenizer.from_pretrained(self.recipe.base)),
            "attention": recipe_init_kwargs(self.vgf_config).get("attn_implementation", "the default"),
            "sampling": PLAIN_SAMPLING,
            "validation": self.validation.marks,
            "test": self.test.marks,
            "num_train": self.num_train,
            **{name: getattr(args, name) for name in ("num_validation", "num_test", "num_generations", "num_votes",
                                                      "steps", "batch_size")},
        }  # fmt: skip
        self._claim()
        self._base_samples: dict[int, tuple[Samples, Stopwatch]] = {}
        self._chosen: dict[str, tuple[float | None, int | None]] = {}

    def _claim(self) -> None:
        path = Path(self.args.output_dir) / "compare.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            pairs = differences(found, self.settings)
            if pairs:
                raise ValueError(f"{self.args.output_dir} holds another comparison ({pairs}). Name another folder.")
        elif any(self.runs.glob("*.json")):
            raise ValueError(f"{self.runs} holds runs, and no {path.name} says what they are of. Name another folder.")
        write_json(path, self.settings)

    def _task(self, split: str, size: int, seed: int) -> Task:
        options = TaskOptions(split=split, num_problems=size, problem_seed=seed, reward_model=self.args.reward_model)
        return load_task(self.recipe.task, options)

    def training_task(self, seed: int) -> Task:
        """Training problems, whose gold is what training may see."""
        return self._task("train", self.num_train, seed).for_training()

    def base_samples(self, job: Job) -> tuple[Samples, Stopwatch]:
        """Samples of the base that offline methods train on, drawn once per seed, and what drawing them took."""
        if job.seed not in self._base_samples:
            watch = Stopwatch()
            self._base_samples[job.seed] = sample_base(job), watch.stop()
        return self._base_samples[job.seed]

    def choose(self, name: str) -> tuple[float | None, int | None]:
        """Sweeps a method with the first seed; returns the learning rate and passes that validation problems chose."""
        method = TRAINABLE[name]
        if method.swept_as is not None:
            return self.choose(method.swept_as)
        if not method.learning_rates:
            return None, None
        if name not in self._chosen:
            self._chosen[name] = self._sweep(name)
        return self._chosen[name]

    def _sweep(self, name: str) -> tuple[float | None, int | None]:
        method = TRAINABLE[name]
        passes = [None] if method.passes is None else getattr(self.args, method.passes)
        scores: dict[tuple[float | None, int | None], float] = {}

        def score(rate: float | None, count: int | None) -> None:
            run = self.run(name, self.args.seeds[0], rate, count, tested=self.args.test_sweeps)
            mean, error = run["validation"]
            tried = method.settings_text(rate, count)
            print(f"{method.label}, lr {tried}: {mean:.3f} ± {error:.3f} on validation problems", flush=True)
            scores[rate, count] = mean

        for rate in self.args.learning_rates or method.learning_rates:
            score(rate, passes[0])
        best, _ = max(scores, key=lambda key: scores[key])
        for count in passes[1:]:
            score(best, count)
        return max(scores, key=lambda key: scores[key])

    def run(
        self, name: str, seed: int, rate: float | None = None, passes: int | None = None, *, tested: bool = True
    ) -> dict[str, Any]:
        """Returns one run; trains and measures what its file does not hold yet.

        Args:
            name: Method.
            seed: Seed.
            rate: Learning rate, for methods that have a sweep.
            passes: Over the completions, for methods that have them swept.
            tested: Whether test problems are wanted; a sweep is decided without them.
        """
        parts = [name, rate and f"lr{rate:g}", passes and f"passes{passes}", f"seed{seed}"]
        key = "-".join(part for part in parts if part)
        path, folder = self.runs / f"{key}.json", Path(self.args.output_dir) / "models" / key
        run = self._find(path, name)
        if run is None:
            print(f"{key} ...", flush=True)
            run = self._train(name, seed, rate, passes, folder)
            run |= {"rows": {}, **measured.validate(self, name, folder, seed)}
            write_json(path, run)
        if tested and not run["rows"]:
            run["rows"] = measured.test(self, name, folder, seed, run)
            write_json(path, run)
        return run

    @property
    def vgf_config(self) -> Path:
        """The YAML file of VGF's settings."""
        return self.args.vgf_config or self.recipe.vgf_config

    def _mark(self, name: str) -> str | None:
        """Returns what tells settings of VGF apart."""
        if name == UNTRAINED or not TRAINABLE[name].reads_recipe:
            return None
        return hashlib.sha256(self.vgf_config.read_bytes()).hexdigest()[:16]

    def _find(self, path: Path, name: str) -> dict[str, Any] | None:
        if not path.is_file():
            return None
        run = json.loads(path.read_text(encoding="utf-8"))
        if run["vgf_config"] != self._mark(name):
            raise ValueError(
                f"{path} was made with other settings than {self.vgf_config} has now. Remove it to train again, or "
                "name another `--output_dir`."
            )
        return run

    def _train(self, name: str, seed: int, rate: float | None, passes: int | None, folder: Path) -> dict[str, Any]:
        taken, completions = Stopwatch(), 0
        if name != UNTRAINED:
            folder.mkdir(parents=True, exist_ok=True)
            job = Job(
                base=self.recipe.base,
                task=self.training_task(seed),
                directory=folder,
                seed=seed,
                learning_rate=rate,
                vgf_config=self.vgf_config,
                num_generations=self.args.num_generations,
                batch_size=self.args.batch_size,
                passes=passes or 1,
            )
            drawing = Stopwatch()
            if TRAINABLE[name].offline:
                samples, drawing = self.base_samples(job)
                job = replace(job, samples=samples)
            taken = Stopwatch()
            TRAINABLE[name].train(job)
            taken.stop().add(drawing)
            completions = job.completions
        return {
            "method": name,
            "learning_rate": rate,
            "passes": passes,
            "seed": seed,
            "train_seconds": taken.wall,
            "train_cpu_seconds": taken.cpu,
            "completions": completions,
            "versions": {package: version(package) for package in ("torch", "transformers", "trl")},
            "threads": torch.get_num_threads(),
            "vgf_config": self._mark(name),
        }


def compare(args: argparse.Namespace, argv: Sequence[str] | None = None) -> str:
    """Runs what is missing, writes and returns the report.

    Args:
        args: What `parse` returned.
        argv: What it was given, for the report to name; the process's own arguments if `None`.

    Returns:
        Markdown.
    """
    names = check_arguments(args)
    if args.num_threads is not None:
        torch.set_num_threads(args.num_threads)
    comparison = Comparison(args)
    for name in names:
        rate, passes = (None, None) if name == UNTRAINED else comparison.choose(name)
        for seed in args.seeds:
            comparison.run(name, seed, rate, passes)
    command = shlex.join(["python", "-m", "eval.compare", *(sys.argv[1:] if argv is None else argv)])
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(comparison.runs.glob("*.json"))]
    labels = {UNTRAINED: "base", **{name: method.label for name, method in TRAINABLE.items()}}
    text = compare_report.render(runs, labels, comparison.settings, command, comparison.test.score_name)
    path = Path(args.output_dir) / "results.md"
    path.write_text(text, encoding="utf-8")
    if is_matplotlib_available():
        compare_report.plot(runs, labels, Path(args.output_dir) / "comparison.png", comparison.test.score_name)
        compare_report.plot_frontier(runs, labels, Path(args.output_dir) / "frontier.png", comparison.test.score_name)
    if args.write_reference:
        kept = json.loads(REFERENCE.read_text(encoding="utf-8"))
        write_json(REFERENCE, kept | compare_report.reference(runs, labels, command))
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, or 1 after an error that was printed."""
    args = parse(argv)
    try:
        print(compare(args, argv))
    except (ValueError, OSError) as error:
        print(f"eval.compare: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
