# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What a plain model of a budget is worth: scaled weights and distillation beside transport itself.

    python -m eval.exported_budgets --model outputs/my-lora-value --budgets 0.25 0.5 0.75 1 2 4

Problems of the split `train` are distilled on, those of `test` are scored. The KL from transport is measured on the
states that each plain model visits in its own samples of held-out training problems.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from eval.metrics import mean_and_error
from eval.sampling import Draw, sample
from eval.store import write_json
from eval.tasks import TASKS, TaskOptions, load_task
from vgf_llm import VGFModel
from vgf_llm.export import distil_budget


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="eval.exported_budgets", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a VGFModel with a log_ratio value")
    parser.add_argument("--task", choices=TASKS, default="embedded_math")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0, 2.0, 4.0])
    parser.add_argument("--num_prompts", type=int, default=600, help="problems to distil on")
    parser.add_argument("--num_problems", type=int, default=200, help="problems to score")
    parser.add_argument("--num_samples", type=int, default=2, help="sampled responses to each")
    parser.add_argument("--max_steps", type=int, default=60, help="steps of distillation")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write every figure")
    return parser.parse_args(argv)


def score(model: VGFModel, tokenizer: Any, task: Any, sampling: dict[str, Any], args: argparse.Namespace) -> Any:
    """Mean gold score of sampled and of greedy responses, each with its standard error over problems."""
    draws = {"sampled": {"do_sample": True, **sampling}, "greedy": {"do_sample": False, **sampling}}
    take = partial(sample, model, tokenizer, task, seed=args.seed, with_likelihood=False)
    found = {}
    for name, options in draws.items():
        gold = take(Draw(name, options), num_samples=args.num_samples if name == "sampled" else 1).gold
        found[name] = mean_and_error(gold.mean(dim=-1))
    return found


def rows_of(model: VGFModel, tokenizer: Any, budget: float, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The rows of one budget: scores, and the KL from transport in nats per token."""
    options = {split: TaskOptions(split=split, num_problems=n) for split, n in
               (("train", args.num_prompts), ("test", args.num_problems))}  # fmt: skip
    train, test = (load_task(args.task, options[split]) for split in ("train", "test"))
    distil = partial(
        distil_budget,
        model,
        tokenizer,
        budget,
        train.problems,
        learning_rate=args.learning_rate,
        per_device_train_batch_size=args.batch_size,
        max_completion_length=train.max_new_tokens,
        gradient_checkpointing=False,
        disable_tqdm=True,
        seed=args.seed,
    )

    def plain(policy: PreTrainedModel) -> dict[str, Any]:
        limits = {name: getattr(policy.generation_config, name) for name in ("top_k", "epsilon_cutoff")}
        return score(VGFModel(policy).eval(), tokenizer, test, limits, args)

    distilled, before, after = distil(max_steps=args.max_steps)
    transport = {"transport_steps": 1, "step_size": budget}
    return {
        "transport": {"kl": 0.0, **score(model, tokenizer, test, transport, args)},
        "weights": {"kl": before.kl, **plain(model.merge_value(min(budget, 1.0)))},
        "distilled": {"kl": after.kl, **plain(distilled)},
    }


def markdown(rows: dict[float, dict[str, dict[str, Any]]]) -> list[str]:
    """The table, a line for each budget and model."""
    lines = ["| budget | model | KL from transport, nats per token | one sample | greedy |", "|---|---|---|---|---|"]
    for budget, models in rows.items():
        for name, row in models.items():
            scores = [f"{mean:.3f} ± {error:.3f}" for mean, error in (row["sampled"], row["greedy"])]
            lines.append(f"| {budget:g} | {name} | {row['kl']:.4f} | {' | '.join(scores)} |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    model = VGFModel.from_pretrained(args.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    rows: dict[float, dict[str, dict[str, Any]]] = {}
    for budget in args.budgets:
        rows[budget] = rows_of(model, tokenizer, budget, args)
        print("\n".join(markdown({budget: rows[budget]})), flush=True)
    print("\n".join(markdown(rows)))
    if args.json is not None:
        write_json(args.json, {"arguments": {**vars(args), "json": None}, "rows": rows})


if __name__ == "__main__":
    main()
