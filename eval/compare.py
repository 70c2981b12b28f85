# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Trains and measures VGF and its baselines side by side: same base, prompts, reward and number of completions.

    python -m eval.compare --recipe embedded_math --seeds 0 1 2 --output_dir outputs/compare

Every run of a method, a learning rate and a seed is one JSON file, so that a comparison can be made in pieces
(`--methods grpo rloo`) and goes on where it stopped. A baseline's learning rate is chosen by sampled responses to
validation problems with the first seed; the sweep is printed. Test problems are the same for every seed.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval import compare_report
from eval.baselines import TRAINABLE, Job
from eval.methods import Method, PlanOptions, abilities, plan
from eval.run import PLAIN_SAMPLING
from eval.sampling import Samples, sample
from eval.scaling import Scaling, choose_steps, measure
from eval.store import fingerprint, write_json
from eval.tasks import TASKS, Task, TaskOptions, load_task
from vgf_llm.models import VGFModel

RECIPE_DIR = Path(__file__).parent.parent / "recipes"
GRPO_REFERENCE = RECIPE_DIR / "embedded_math" / "grpo_reference.json"
# Methods that sample the base, all measured in one run.
UNTRAINED = "base"
METHODS = (UNTRAINED, *TRAINABLE)


@dataclass(frozen=True)
class CompareRecipe:
    """What a comparison is made on.

    Attributes:
        task: Name of the task.
        vgf_config: The recipe's YAML file.
        num_train: Training prompts of the published comparison.
    """

    task: str
    vgf_config: Path
    num_train: int = 3600

    @property
    def base(self) -> str:
        """Folder of the base model."""
        entry = TASKS[self.task]
        folder = entry.base_model or RECIPE_DIR / self.task / "base"
        return str(folder)


RECIPES = {
    "embedded_math": CompareRecipe("embedded_math", RECIPE_DIR / "configs" / "gsm8k_embedded.yaml"),
    "embedded_preference": CompareRecipe("embedded_preference", RECIPE_DIR / "configs" / "preference_embedded.yaml"),
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
    parser.add_argument("--num_train", type=int, help="training prompts; the 3600 of the recipe by default")
    parser.add_argument("--num_validation", type=int, default=200)
    parser.add_argument("--num_test", type=int, default=500)
    parser.add_argument("--num_generations", type=int, default=4, help="training completions per prompt")
    parser.add_argument("--num_votes", type=int, default=8, help="responses of votes and best-of rows")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="budgets L; validation chooses")
    parser.add_argument("--batch_size", type=int, default=64, help="completions per optimizer step of the baselines")
    parser.add_argument("--vgf_config", type=Path, help="another YAML file of VGF settings")
    parser.add_argument("--reward_model", help="proxy of embedded_preference; the one that ships with it by default")
    parser.add_argument("--num_threads", type=int, help="CPU threads")
    parser.add_argument("--write_reference", action="store_true", help="keep GRPO's rows for the math recipe to print")
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
    names = list(METHODS) if args.methods == ["all"] else list(dict.fromkeys(args.methods))
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ValueError(f"`--methods` must be among {', '.join(METHODS)}, or all; got {', '.join(unknown)}.")
    recipe = RECIPES[args.recipe]
    config = args.vgf_config or recipe.vgf_config
    for path in (Path(recipe.base), config):
        if not path.exists():
            raise FileNotFoundError(f"The recipe {args.recipe!r} needs {path}, which does not exist.")
    for name, least in (("num_train", 2), ("num_validation", 2), ("num_test", 2), ("num_generations", 2),
                        ("num_votes", 2), ("batch_size", 2)):  # fmt: skip
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"`--{name}` must be at least {least}, got {value}.")
    if args.batch_size % args.num_generations:
        raise ValueError(
            f"`--batch_size` {args.batch_size} must be a multiple of `--num_generations` {args.num_generations}."
        )
    if args.write_reference and args.recipe != "embedded_math":
        raise ValueError("`--write_reference` is for --recipe embedded_math, whose recipe prints it.")
    return names


class Comparison:
    """The runs of one results folder.

    Args:
        args: What `parse` returned.

    Raises:
        ValueError: If the folder holds runs of another base or other sizes.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.recipe = RECIPES[args.recipe]
        self.runs = Path(args.output_dir) / "runs"
        self.runs.mkdir(parents=True, exist_ok=True)
        self.num_train = args.num_train or self.recipe.num_train
        self.settings = {
            "recipe": args.recipe,
            "base": fingerprint(self.recipe.base),
            "num_train": self.num_train,
            **{name: getattr(args, name) for name in ("num_validation", "num_test", "num_generations", "num_votes",
                                                      "steps", "batch_size")},
        }  # fmt: skip
        self._claim()
        self.validation = self._task("validation", args.num_validation, 0)
        self.test = self._task("test", args.num_test, 0)

    def _claim(self) -> None:
        path = Path(self.args.output_dir) / "compare.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            names = [name for name in self.settings if found.get(name) != self.settings[name]]
            if names:
                pairs = "; ".join(f"{name}: {found.get(name)!r} there, {self.settings[name]!r} now" for name in names)
                raise ValueError(f"{self.args.output_dir} holds another comparison ({pairs}). Name another folder.")
        write_json(path, self.settings)

    def _task(self, split: str, size: int, seed: int) -> Task:
        options = TaskOptions(split=split, num_problems=size, problem_seed=seed, reward_model=self.args.reward_model)
        return load_task(self.recipe.task, options)

    def training_task(self, seed: int) -> Task:
        """Training problems, whose gold is what training may see."""
        task = self._task("train", self.num_train, seed)
        if task.proxy is not None:
            task = replace(task, gold=task.proxy, proxy=None, _runners={})
        return task

    def learning_rate(self, name: str) -> float | None:
        """Sweeps a method with the first seed; returns the learning rate that validation problems chose."""
        method = TRAINABLE[name]
        if method.swept_as is not None:
            return self.learning_rate(method.swept_as)
        rates = self.args.learning_rates or method.learning_rates
        if not method.learning_rates:
            return None
        runs = {rate: self.run(name, self.args.seeds[0], rate) for rate in rates}
        for rate, run in runs.items():
            mean, error = run["validation"]
            print(f"{method.label}, lr {rate:g}: {mean:.3f} ± {error:.3f} on validation problems", flush=True)
        return max(runs, key=lambda rate: runs[rate]["validation"][0])

    def run(self, name: str, seed: int, rate: float | None = None) -> dict[str, Any]:
        """Returns one run, trained and measured unless its file is there."""
        key = f"{name}-seed{seed}" if rate is None else f"{name}-lr{rate:g}-seed{seed}"
        path = self.runs / f"{key}.json"
        config = self.args.vgf_config or self.recipe.vgf_config
        mark = None
        if name != UNTRAINED and TRAINABLE[name].has_value:
            mark = hashlib.sha256(config.read_bytes()).hexdigest()[:16]
        if path.is_file():
            run = json.loads(path.read_text(encoding="utf-8"))
            if run["vgf_config"] != mark:
                raise ValueError(
                    f"{path} was made with other settings than {config} has now. Remove it to train again, or name "
                    "another `--output_dir`."
                )
            return run
        print(f"{key} ...", flush=True)
        folder = Path(self.args.output_dir) / "models" / key
        began = time.perf_counter()
        completions = 0
        if name != UNTRAINED:
            folder.mkdir(parents=True, exist_ok=True)
            job = Job(
                base=self.recipe.base,
                task=self.training_task(seed),
                directory=folder,
                seed=seed,
                learning_rate=rate,
                vgf_config=config,
                num_generations=self.args.num_generations,
                batch_size=self.args.batch_size,
            )
            TRAINABLE[name].train(job)
            completions = job.completions
        trained = time.perf_counter() - began
        found = _measure_base(self, seed) if name == UNTRAINED else _measure_trained(self, name, folder, seed)
        run = {
            "method": name,
            "learning_rate": rate,
            "seed": seed,
            "train_seconds": trained,
            "completions": completions,
            "versions": {package: version(package) for package in ("torch", "transformers", "trl")},
            "threads": torch.get_num_threads(),
            "vgf_config": mark,
            **found,
        }
        write_json(path, run)
        return run


def _sampler(model: VGFModel, tokenizer: Any, task: Task) -> Callable[..., Samples]:
    options = {"cache_implementation": "static", "disable_compile": True, "pad_token_id": tokenizer.pad_token_id}
    return partial(sample, model, tokenizer, task, batch_size=512, **options)


def _rows(result: Scaling, methods: Sequence[Method], labels: dict[str, str]) -> dict[str, Any]:
    """Per-problem scores and costs by mode."""
    rows = {}
    for method in methods:
        row = result.row(method.label)
        rows[labels[method.label]] = {
            "scores": [round(x, 6) for x in result.scores[method.label].tolist()],
            "seconds": row.seconds,
            "tokens": row.tokens,
            "kl": row.kl,
            "proxy": row.proxy,
        }
    return rows


def _plain_methods(model: VGFModel, task: Task, votes: int, temperatures: Sequence[float]) -> dict[str, Method]:
    """Greedy, sampled and voted rows of a policy, by mode."""
    able = abilities(model, task, has_value=False)
    options = PlanOptions(num_particles=(1, votes), temperatures=temperatures, sampling=PLAIN_SAMPLING)
    names = [name for name in ("greedy", "temperature", "majority", "best_of_n_proxy") if able.missing(name) is None]
    modes = {}
    for method in plan(names, able, options):
        mode = method.label.replace("sampled, T=1", "sampled")
        modes[mode] = method
    return modes


def _measure_plain(model: VGFModel, tokenizer: Any, comparison: Comparison, seed: int, temperatures: Sequence[float],
                   ) -> dict[str, Any]:  # fmt: skip
    task = comparison.test
    modes = _plain_methods(model, task, comparison.args.num_votes, temperatures)
    result = measure(_sampler(model, tokenizer, task), list(modes.values()), seeds=[seed])
    return _rows(result, list(modes.values()), {method.label: mode for mode, method in modes.items()})


def _validation_score(
    model: VGFModel, tokenizer: Any, comparison: Comparison, seed: int, **options: Any
) -> list[float]:
    """Mean and standard error of sampled responses to validation problems."""
    task = comparison.validation
    able = abilities(model, task, has_value=bool(options))
    settings = PlanOptions(num_particles=(1, 4), temperatures=(1.0,), sampling=PLAIN_SAMPLING, **options)
    name = f"vgf_{able.spaces[0]}" if options else "temperature"
    methods = [m for m in plan([name], able, settings) if m.selection == "single" and m.draw.options.get("do_sample")]
    result = measure(_sampler(model, tokenizer, task), methods[-1:], seeds=[seed])
    return [result.rows[0].score, result.rows[0].standard_error]


def _measure_base(comparison: Comparison, seed: int) -> dict[str, Any]:
    base = comparison.recipe.base
    model = VGFModel(AutoModelForCausalLM.from_pretrained(base)).eval()
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    rows = _measure_plain(model, tokenizer, comparison, seed, (0.3, 0.7, 1.0))
    return {"validation": _validation_score(model, tokenizer, comparison, seed), "rows": {"base": rows}}


def _measure_trained(comparison: Comparison, name: str, folder: Path, seed: int) -> dict[str, Any]:
    """Measures a trained policy by itself, a VGF model under transport at the L that validation problems choose."""
    method = TRAINABLE[name]
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    rows: dict[str, Any] = {}
    if not method.has_value or method.distilled:
        # Divergences are to the base that every method started from.
        reference = AutoModelForCausalLM.from_pretrained(comparison.recipe.base)
        policy = VGFModel(AutoModelForCausalLM.from_pretrained(folder), ref_model=reference).eval()
        rows[name] = _measure_plain(policy, tokenizer, comparison, seed, (1.0,))
        validation = _validation_score(policy, tokenizer, comparison, seed)
    if not method.has_value:
        return {"validation": validation, "rows": rows}
    model = VGFModel.from_pretrained(folder)
    able = abilities(model, comparison.test)
    votes = comparison.args.num_votes
    options = PlanOptions(steps=comparison.args.steps, num_particles=(1, votes), sampling=PLAIN_SAMPLING)
    space = f"vgf_{able.spaces[0]}"
    sampler = _sampler(model, tokenizer, comparison.validation)
    steps = choose_steps(sampler, plan([space], able, options), seed=seed)
    transported = f"{name} + transport" if method.distilled else name
    modes = _transported_methods(plan([space], able, replace(options, steps=(steps,))), votes)
    base_values = plan(["best_of_n"], able, options) if not method.distilled else []
    methods = [*modes.values(), *base_values]
    result = measure(_sampler(model, tokenizer, comparison.test), methods, seeds=[seed])
    rows[transported] = _rows(result, list(modes.values()), {m.label: mode for mode, m in modes.items()})
    if base_values and name == "vgf":
        rows["base, chosen by VGF's value"] = _rows(result, base_values, {m.label: m.label for m in base_values})
    if not method.distilled:
        validation = _validation_score(model, tokenizer, comparison, seed, steps=(steps,))
    return {"validation": validation, "steps": steps, "rows": rows}


def _transported_methods(methods: Sequence[Method], votes: int) -> dict[str, Method]:
    names = {"single": "sampled", "value": f"best-of-{votes} by value", "majority": f"majority@{votes}",
             "weighted_vote": f"value-weighted vote of {votes}"}  # fmt: skip
    return {names[method.selection] if method.draw.options.get("do_sample") else "greedy": method for method in methods}


def compare(args: argparse.Namespace) -> str:
    """Runs what is missing, writes and returns the report.

    Args:
        args: What `parse` returned.

    Returns:
        Markdown.
    """
    names = check_arguments(args)
    if args.num_threads is not None:
        torch.set_num_threads(args.num_threads)
    comparison = Comparison(args)
    for name in names:
        rate = None if name == UNTRAINED else comparison.learning_rate(name)
        for seed in args.seeds:
            comparison.run(name, seed, rate)
    command = "python -m eval.compare " + " ".join(sys.argv[1:])
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(comparison.runs.glob("*.json"))]
    labels = {UNTRAINED: "base", **{name: method.label for name, method in TRAINABLE.items()}}
    text = compare_report.render(runs, labels, comparison.settings, command, comparison.test.score_name)
    path = Path(args.output_dir) / "results.md"
    path.write_text(text, encoding="utf-8")
    compare_report.plot(runs, labels, Path(args.output_dir) / "comparison.png", comparison.test.score_name)
    if args.write_reference:
        write_json(GRPO_REFERENCE, compare_report.grpo_reference(runs, command))
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, or 1 after an error that was printed."""
    args = parse(argv)
    try:
        print(compare(args))
    except (ValueError, OSError) as error:
        print(f"eval.compare: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
