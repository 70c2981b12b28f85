# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Chooses a saved model's budget on validation problems and writes it into its generation defaults.

    python -m eval.tune_budget --model outputs/gsm8k_embedded --task embedded_math --steps 1 2 4 8 16 \
        --output_dir outputs/tuned --write

The budget is chosen by the gold score (the held-out reward, where a task has a proxy). Without `--write` the choice is
only printed. `vgf_config.json` is replaced in one step, and nothing else of the model changes.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from eval import run
from eval.methods import SPACES, abilities
from eval.metrics import TurnOver, mean_and_error, paired_difference, turn_over
from eval.sampling import Draw, Samples
from eval.store import write_json
from eval.tasks import load_task
from vgf_llm.command_line import Parser
from vgf_llm.models.config import CONFIG_NAME, VGFModelConfig


@dataclass(frozen=True)
class Budget:
    """One budget and what it scored.

    Attributes:
        steps: L.
        step_size: epsilon.
        gold: Mean gold score.
        gold_error: Its standard error over problems.
        proxy: Mean proxy score; `None` if the task has none.
        kl: Divergence to the reference, in nats per response.
    """

    steps: int
    step_size: float
    gold: float
    gold_error: float
    proxy: float | None
    kl: float

    @property
    def size(self) -> float:
        """L * epsilon."""
        return self.steps * self.step_size


@dataclass(frozen=True)
class Choice:
    """What was chosen, and the risk of having chosen by the proxy.

    Attributes:
        chosen: The budget.
        budgets: All that were tried, in order of size.
        risk: The turn-over of the curve.
        by_proxy: The budget that the proxy alone would have chosen; `None` without a proxy.
    """

    chosen: Budget
    budgets: list[Budget]
    risk: TurnOver
    by_proxy: Budget | None

    def warning(self) -> str:
        """Says in one sentence whether the proxy can be trusted beyond the chosen budget."""
        if self.by_proxy is not None and self.by_proxy.gold < self.chosen.gold:
            lost = self.chosen.gold - self.by_proxy.gold
            text = f"The proxy alone would have chosen L*epsilon = {self.by_proxy.size:g}, {lost:.3f} lower in gold"
            return text + (": it is over-optimised there." if self.risk.over_optimized else ", within noise.")
        if self.risk.over_optimized:
            return f"Beyond the chosen budget gold falls by {self.risk.gold_lost:.3f}."
        return "No over-optimisation within the budgets tried."


def choose(
    sampler: Callable[..., Samples],
    budgets: Sequence[tuple[int, float]],
    *,
    space: str,
    num_samples: int = 2,
    seed: int = 0,
    cautious: bool = False,
) -> Choice:
    """Samples every budget on validation problems and chooses one by gold.

    Args:
        sampler: `sample` bound to model and validation problems.
        budgets: Pairs of L and epsilon.
        space: One of `SPACES`.
        num_samples: Responses per problem.
        seed: Seed of the sampling.
        cautious: Whether the smallest budget within one paired standard error of the best is taken, and not the best.

    Returns:
        A `Choice`. Equal scores go to the smaller budget.

    Raises:
        ValueError: Without budgets.
    """
    if not budgets:
        raise ValueError("`budgets` is empty: name at least one L and one epsilon.")
    ordered = sorted(set(budgets), key=lambda budget: (budget[0] * budget[1], budget[0]))
    golds, proxies, tried = [], [], []
    for steps, step_size in ordered:
        options: dict[str, Any] = {"do_sample": True}
        if steps > 0:
            options |= {**SPACES[space], "transport_steps": steps, "step_size": step_size}
        name = f"VGF {space} L={steps} epsilon={step_size:g}" if steps > 0 else "base"
        samples = sampler(draw=Draw(name, options), num_samples=num_samples, seed=seed)
        golds.append(samples.gold.mean(dim=-1))
        gold, error = mean_and_error(golds[-1])
        proxy = None
        if samples.proxy is not None:
            proxies.append(samples.proxy.mean(dim=-1))
            proxy = float(proxies[-1].mean())
        tried.append(Budget(steps, step_size, gold, error, proxy, float(samples.kl.mean())))
    best = max(range(len(tried)), key=lambda i: tried[i].gold)
    if cautious:
        best = next(i for i in range(best + 1) if i == best or _as_good(golds[i], golds[best]))
    by_proxy = max(tried, key=lambda budget: budget.proxy or 0.0) if proxies else None
    return Choice(tried[best], tried, turn_over(golds, proxies or None), by_proxy)


def _as_good(smaller: torch.Tensor, best: torch.Tensor) -> bool:
    found = paired_difference(best, smaller)
    return found.mean <= found.standard_error


def write_defaults(directory: str | Path, budget: Budget, *, space: str = "logit") -> None:
    """Writes a budget into `vgf_config.json`; the file is the old one or the whole new one at every moment.

    Args:
        directory: The saved model.
        budget: L and epsilon.
        space: The space they were chosen in, one of `SPACES`.

    Raises:
        FileNotFoundError: If the folder holds no VGF model.
    """
    config = VGFModelConfig.load(directory)
    settings = {**SPACES[space], "transport_steps": budget.steps, "step_size": budget.step_size}
    data = asdict(replace(config, transport=replace(config.transport, **settings)))
    write_json(Path(directory) / CONFIG_NAME, dict(sorted(data.items())))


def add_arguments(parser: argparse.ArgumentParser, *, positional: bool = False) -> None:
    """Adds all options; `positional` as for `eval.run.add_model_arguments`."""
    run.add_model_arguments(parser, positional=positional)
    run.add_task_arguments(parser, split="validation")
    group = parser.add_argument_group("budget")
    group.add_argument("--steps", type=int, nargs="+", default=[0, 1, 2, 4, 8, 16], help="L to try")
    group.add_argument("--step_sizes", type=float, nargs="+", help="epsilon to try; the model's own by default")
    group.add_argument("--space", choices=sorted(SPACES), help="the first that the model can do, by default")
    group.add_argument("--num_samples", type=int, default=2, help="responses per problem")
    group.add_argument("--seed", type=int, default=0, help="seed of the sampling")
    group.add_argument("--cautious", action="store_true", help="the smallest budget within one standard error")
    group.add_argument("--write", action="store_true", help="make the choice the model's default")
    parser.add_argument("--output_dir", required=True, help="results folder; an interrupted run goes on there")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = Parser(prog="python -m eval.tune_budget", description=__doc__)
    add_arguments(parser)
    return parser.parse_args(argv)


def tune(args: argparse.Namespace) -> Choice:
    """Chooses, reports and, if asked, writes.

    Args:
        args: What `parse` returned.

    Returns:
        The choice.
    """
    run.check_arguments(args)
    if args.split == "test":
        raise ValueError("`--split test` would choose the budget on the problems that are reported; use validation.")
    if args.num_samples < 1 or any(steps < 0 for steps in args.steps):
        raise ValueError(f"`--num_samples` must be >= 1 and `--steps` >= 0, got {args.num_samples} and {args.steps}.")
    loaded = run.open_model(args)
    task = load_task(args.task, run.task_options(args))
    able = abilities(loaded.model, task, has_value=loaded.has_value)
    space = args.space or (able.spaces[0] if able.spaces else "logit")
    missing = able.missing(f"vgf_{space}")
    if missing is not None:
        raise ValueError(f"The budget of {args.model!r} in the space {space!r} cannot be tuned: it needs {missing}.")
    if args.write and not (Path(args.model) / CONFIG_NAME).is_file():
        raise ValueError(f"`--write` needs a local folder with {CONFIG_NAME}; {args.model!r} is none.")
    sampler, store = run.open_sampler(args, loaded, task.to(loaded.model.device), Path(args.output_dir))
    sizes = args.step_sizes or [args.step_size or loaded.model.transport.step_size]
    budgets = [(steps, size) for steps in args.steps for size in (sizes if steps else sizes[:1])]
    choice = choose(sampler, budgets, space=space, num_samples=args.num_samples, seed=args.seed, cautious=args.cautious)
    report = {"chosen": asdict(choice.chosen), "budgets": [asdict(b) for b in choice.budgets]}
    write_json(store.directory / "budget.json", {**report, "over_optimised": choice.risk.over_optimized})
    if args.write:
        write_defaults(args.model, choice.chosen, space=space)
    return choice


def execute(args: argparse.Namespace) -> None:
    """Chooses, reports, if asked writes, and prints the choice."""
    choice = tune(args)
    for budget in choice.budgets:
        mark = "*" if budget == choice.chosen else " "
        proxy = "" if budget.proxy is None else f", proxy {budget.proxy:.3f}"
        print(
            f"{mark} L={budget.steps:<3d} epsilon={budget.step_size:<6g} gold {budget.gold:.3f} ± "
            f"{budget.gold_error:.3f}{proxy}, KL {budget.kl:.2f}"
        )
    print(choice.warning())
    if args.write:
        print(json.dumps({"written": str(Path(args.model) / CONFIG_NAME), "transport_steps": choice.chosen.steps}))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, or 1 after an error that was printed."""
    args = parse(argv)
    try:
        execute(args)
    except (ValueError, OSError) as error:
        print(f"eval.tune_budget: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
