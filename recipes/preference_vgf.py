# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Preferences: a reward model of preference pairs moves reviews, and a hidden gold score says what that is worth.

Reviews in a small language, a base that writes them, and a proxy (a Bradley-Terry ensemble on pairs of base samples)
ship with the recipe. It trains a token-level value on the proxy, then spends the step budget in every space, gold
beside proxy, with the point where over-optimisation begins:

    accelerate launch recipes/preference_vgf.py
    accelerate launch recipes/preference_vgf.py --config recipes/configs/preference_embedded.yaml --seed 1

Every field of `VGFConfig` is an option; `--help` lists them.
"""

import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import is_matplotlib_available

from eval import plots, report, scaling
from eval.metrics import paired_difference
from eval.run import turn_over_text
from eval.sampling import sample
from eval.scaling import Sampler
from eval.tasks import Task
from recipes.embedded_preference import BASE_DIR, PROXY_DIR, gold_reward, make_prompts
from recipes.embedded_preference.proxy import sample_reviews
from recipes.gsm8k_vgf import use_all_cores
from recipes.preference_rows import SPACES, Budget, base_rows, control_rows, transported_rows
from reward_models.bradley_terry import load_reward_value
from reward_models.classifier import ClassifierReward
from vgf_llm import VGFConfig, VGFModel, VGFTrainer
from vgf_llm.trainer.config import VGFParser

CONFIG = Path(__file__).parent / "configs" / "preference_embedded.yaml"
MAX_NEW_TOKENS = 32


@dataclass
class PreferenceScriptArguments:
    """What to move with, how far, and what to measure on."""

    proxy: str = field(
        default=str(PROXY_DIR), metadata={"help": "Folder of a reward model that `reward_models/train.py` wrote."}
    )
    value: str | None = field(
        default=None,
        metadata={"help": "Folder of an earlier run, whose token-level value is taken instead of training."},
    )
    num_train_prompts: int = field(default=2000, metadata={"help": "Prompts that the token-level value learns from."})
    num_validation_prompts: int = field(default=64, metadata={"help": "Prompts that choose the budget of a space."})
    num_test_prompts: int = field(default=200, metadata={"help": "Prompts that the tables are measured on."})
    num_particles: int = field(default=4, metadata={"help": "Particles N."})
    spaces: list[str] = field(
        default_factory=lambda: list(SPACES), metadata={"help": f"Spaces to move in, of {', '.join(SPACES)}."}
    )
    logit_steps: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8, 16, 32], metadata={"help": "Budgets L in logit space."}
    )
    logit_step_size: float = field(default=0.5, metadata={"help": "Step size in logit space."})
    logit_min_prob: float = field(default=0.005, metadata={"help": "Least probability of a candidate in logit space."})
    embedding_steps: list[int] = field(
        default_factory=lambda: [2, 4, 8], metadata={"help": "Budgets L in the embedding space of responses."}
    )
    embedding_step_size: float = field(default=0.5, metadata={"help": "Step size there, in mean embedding norms."})
    embedding_decode_strength: float = field(default=5.0, metadata={"help": "What the tilt of a move is scaled by."})
    embedding_min_prob: float = field(default=0.01, metadata={"help": "Least probability of a candidate there."})
    soft_token_steps: list[int] = field(
        default_factory=lambda: [2, 4, 8], metadata={"help": "Budgets L in the logit space of responses."}
    )
    soft_token_step_size: float = field(default=8.0, metadata={"help": "Step size there."})
    soft_token_min_prob: float = field(default=0.005, metadata={"help": "Least probability of a candidate there."})
    temperatures: list[float] = field(
        default_factory=lambda: [0.5, 0.7], metadata={"help": "Temperatures of the base's samples, beside 1."}
    )
    baseline_samples: int = field(default=16, metadata={"help": "Samples of the largest plain best-of-N row."})
    eval_rows: int = field(default=256, metadata={"help": "Responses sampled at a time in evaluation."})
    num_threads: int | None = field(
        default=None, metadata={"help": "CPU threads of a run without a GPU; all cores if left out."}
    )

    def __post_init__(self) -> None:
        for name in ("num_train_prompts", "num_validation_prompts", "num_test_prompts", "num_particles"):
            if getattr(self, name) < 2:
                raise ValueError(f"`{name}` must be at least 2; got {getattr(self, name)}.")
        unknown = [name for name in self.spaces if name not in SPACES]
        if unknown or not self.spaces:
            raise ValueError(f"`spaces` must be one or more of {', '.join(SPACES)}; got {self.spaces}.")

    def budgets(self) -> list[Budget]:
        """The spaces with their settings, in the order of `SPACES`."""
        found = {
            "logit": Budget(
                "logit",
                self.logit_steps,
                {"step_size": self.logit_step_size, "min_candidate_prob": self.logit_min_prob},
            ),
            "sequence_embedding": Budget(
                "sequence_embedding",
                self.embedding_steps,
                {
                    "step_size": self.embedding_step_size,
                    "decode_strength": self.embedding_decode_strength,
                    "min_candidate_prob": self.embedding_min_prob,
                },
            ),
            "sequence_logit": Budget(
                "sequence_logit",
                self.soft_token_steps,
                {"step_size": self.soft_token_step_size, "min_candidate_prob": self.soft_token_min_prob},
            ),
        }
        return [found[name] for name in SPACES if name in self.spaces]


def parse(argv: list[str]) -> tuple[PreferenceScriptArguments, VGFConfig]:
    """Parses the command line; without a config of the user's the recipe's own comes first."""
    if not any(argument.split("=")[0] == "--config" for argument in argv):
        argv = ["--config", str(CONFIG), *argv]
    return VGFParser((PreferenceScriptArguments, VGFConfig)).parse_args_and_config(args=argv)


class StandardProxy:
    """The proxy's lower bound in standard deviations of base samples, so that it starts where gold starts.

    Args:
        folder: The reward model.
        prompts: Prompts that were sampled.
        reviews: [P][N] the base's reviews.
    """

    __name__ = "proxy"

    def __init__(self, folder: str, prompts: list[str], reviews: list[list[str]]) -> None:
        self._reward = ClassifierReward(folder, lower_bound_coef=1.0, batch_size=128)
        flat = [prompt for prompt, texts in zip(prompts, reviews, strict=True) for _ in texts]
        scores = torch.tensor(self._reward(flat, [text for texts in reviews for text in texts]))
        self.mean, self.std = float(scores.mean()), float(scores.std())
        if not self.std > 0:
            raise ValueError(f"`proxy` {folder!r} gives all base samples one score, so it is no reward to follow.")

    def __call__(self, prompts: list[Any], completions: list[Any], **kwargs: Any) -> list[float]:
        """Scores completions."""
        return [(score - self.mean) / self.std for score in self._reward(prompts, completions)]  # type: ignore


def train_value(
    args: PreferenceScriptArguments, training_args: VGFConfig, proxy: StandardProxy
) -> tuple[VGFTrainer, str]:
    """Trains the token-level value on the proxy's rewards and saves the model; returns the trainer and the accuracy."""
    trainer = VGFTrainer(
        model=str(BASE_DIR),
        reward_funcs=proxy,
        args=training_args,
        train_dataset=Dataset.from_dict({"prompt": make_prompts(args.num_train_prompts, seed=training_args.seed)}),
        processing_class=AutoTokenizer.from_pretrained(BASE_DIR),
    )
    trainer.train()
    trainer.save_model()
    return trainer, f"{trainer.gate.accuracy:.3f}"


def build_model(
    args: PreferenceScriptArguments, training_args: VGFConfig, proxy: StandardProxy
) -> tuple[VGFModel, str, VGFTrainer | None]:
    """Returns the base with a token-level value (where logit space needs one) and the proxy as its sequence value.

    The value's accuracy and its trainer, if it was trained, are returned beside it.
    """
    accuracy, trainer = "not measured in this run", None
    if args.value is not None:
        model = VGFModel.from_pretrained(args.value)
    elif "logit" in args.spaces:
        trainer, accuracy = train_value(args, training_args, proxy)
        model = trainer.vgf_model
    else:
        model = VGFModel(AutoModelForCausalLM.from_pretrained(BASE_DIR))
    model.sequence_value = load_reward_value(args.proxy)
    return model.eval(), accuracy, trainer


def make_task(split: str, count: int, seed: int, proxy: StandardProxy) -> Task:
    """Prompts of a split with gold and proxy."""
    problems = Dataset.from_dict({"prompt": make_prompts(count, seed=seed, split=split)})
    return Task("preference", problems, gold_reward, proxy, binary=False, max_new_tokens=MAX_NEW_TOKENS)


@dataclass(frozen=True)
class Choice:
    """What validation prompts chose for a space.

    Attributes:
        budget: The space.
        steps: L.
        matched: M, such that best-of-M costs what the best of N transported responses costs.
    """

    budget: Budget
    steps: int
    matched: int

    def label(self, n: int) -> str:
        """The row that the choice is about."""
        return f"{self.budget.title}, best of {n}, L={self.steps}"


def choose(sampler: Sampler, budget: Budget, n: int, seed: int, prompt_length: float) -> Choice:
    """Chooses L by the gold score of the best of N on validation prompts, and counts what it costs.

    Costs are tokens through the base and the proxy, a gradient at three forward passes. A plain sample costs its
    decoding and its value.
    """
    tried = scaling.measure(sampler, base_rows([n], ()) + transported_rows(budget, n), seeds=[seed])
    best = max((row for row in tried.rows if row.steps and row.num_samples == n), key=lambda row: row.score)
    spent, plain = best.forwards or 0.0, tried.row(f"best-of-{n}").forwards or 1.0
    if not budget.space.startswith("sequence"):  # there the value is on the way; here the proxy chooses afterwards
        spent += best.tokens + n * prompt_length
    assert best.steps is not None
    return Choice(budget, best.steps, max(n, round(n * spent / plain)))


def measure(
    model: VGFModel, tokenizer: PreTrainedTokenizerBase, args: PreferenceScriptArguments, seed: int, proxy: Any
) -> tuple[scaling.Scaling, list[Choice]]:
    """Chooses every space's budget on validation prompts and measures all rows on test prompts.

    Every process has to call it: the prompts are shared out among them.
    """
    samplers, n = {}, args.num_particles
    for split, size in (("validation", args.num_validation_prompts), ("test", args.num_test_prompts)):
        # Prompts do not depend on the seed: the tables of two seeds are of the same problems.
        task = make_task(split, size, 0, proxy)
        samplers[split] = partial(
            sample,
            model,
            tokenizer,
            task,
            batch_size=args.eval_rows,
            pad_token_id=tokenizer.pad_token_id,
            processes=PartialState(),
        )
    length = len(tokenizer(make_prompts(1, split="test")[0]).input_ids)
    choices = [choose(samplers["validation"], budget, n, seed, length) for budget in args.budgets()]
    methods = base_rows([n, args.baseline_samples, *(choice.matched for choice in choices)], args.temperatures)
    for choice in choices:
        methods += transported_rows(choice.budget, n) + control_rows(choice.budget, choice.steps, n)
    return scaling.measure(samplers["test"], methods, seeds=[seed]), choices


def differences(result: scaling.Scaling, choices: list[Choice], n: int) -> str:
    """Paired differences of gold, in Markdown: every space and its controls against the base's best-of rows."""
    lines = ["| best of N | against | difference | s.e. | in s.e. |", "|---|---|---|---|---|"]
    for choice in choices:
        controls = [m.label for m in control_rows(choice.budget, choice.steps, n)]
        pairs = [(choice.label(n), f"best-of-{m}") for m in sorted({n, choice.matched})]
        pairs += [(control, f"best-of-{n}") for control in controls] + [(choice.label(n), c) for c in controls]
        for first, second in pairs:
            found = paired_difference(result.scores[first], result.scores[second])
            ratio = found.mean / max(found.standard_error, 1e-9)
            matched = " (compute-matched)" if second == f"best-of-{choice.matched}" and choice.matched > n else ""
            lines.append(
                f"| {first} | {second}{matched} | {found.mean:+.3f} | {found.standard_error:.3f} | {ratio:+.1f} |"
            )
    return "\n".join(lines) + "\n"


def show(result: scaling.Scaling, choices: list[Choice], folder: Path, meta: dict[str, Any], n: int) -> None:
    """Prints and writes the tables, and draws gold and proxy over the budget where matplotlib is installed."""

    def family(name: str) -> list[report.Row]:
        return [row for row in result.rows if result.families[row.method] == name]

    base = replace(result.row("sampled, T=1"), steps=0)
    curves = {c.budget.title: [base, *family(f"{c.budget.title}, one particle")] for c in choices}
    turns = [turn_over_text(result, title, rows) for title, rows in curves.items()]
    paired = differences(result, choices, n)
    report.save(result.rows, folder, meta, score_name="gold", sections=[paired, *turns])
    report.print_table(result.rows, f"{meta['test_prompts']} test prompts, seed {meta['seed']}", score_name="gold")
    print("\nPaired differences of gold\n" + paired + "\n" + "".join(turns))
    print(f"results.json and results.md are in {folder}")
    if not is_matplotlib_available():
        return
    for x, name in (("steps", "gold_and_proxy_over_steps"), ("kl", "gold_and_proxy_over_kl")):
        best = {c.budget.title: family(f"{c.budget.title}, best of {n}") for c in choices}
        lines = [result.row(f"best-of-{m}") for m in sorted({n, max(c.matched for c in choices)})]
        plots.plot_gold_and_proxy(curves, best, lines, folder / f"{name}.png", x=x)


def main(argv: list[str]) -> None:
    """Trains, measures and plots."""
    began = time.perf_counter()
    args, training_args = parse(argv)
    use_all_cores(args.num_threads)
    tokenizer = AutoTokenizer.from_pretrained(BASE_DIR)
    prompts = make_prompts(args.num_validation_prompts, split="validation")
    base = AutoModelForCausalLM.from_pretrained(BASE_DIR).eval()
    proxy = StandardProxy(args.proxy, prompts, sample_reviews(base, tokenizer, prompts, 4, seed=training_args.seed))
    model, accuracy, trainer = build_model(args, training_args, proxy)
    trained = time.perf_counter() - began
    with nullcontext() if trainer is None else trainer.generation_context():  # sharded weights are gathered once
        result, choices = measure(model, tokenizer, args, training_args.seed, proxy)
    if not PartialState().is_main_process:
        return
    folder = Path(training_args.output_dir)
    meta = {
        "seed": training_args.seed,
        "proxy": Path(args.proxy).name,
        "test_prompts": args.num_test_prompts,
        "value_within_prompt_accuracy": accuracy,
        "L": {choice.budget.space: choice.steps for choice in choices},
        "settings": {choice.budget.space: choice.budget.settings for choice in choices},
        "training_seconds": round(trained, 1),
    }
    show(result, choices, folder, meta, args.num_particles)
    print(f"within-prompt pair accuracy of the token-level value, by proxy: {accuracy}")
    print(f"total: {time.perf_counter() - began:.0f} s on {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main(sys.argv[1:])
