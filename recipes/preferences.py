# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Preference pairs of a dataset: what `hh_vgf.py` and `tldr_vgf.py` share.

A reward model of the pairs, which `reward_models/train.py` wrote, trains a token-level value and is the value of whole
responses. Transported responses to held-out prompts are then compared with a sample of the base (the reference) and
with the response that the data's annotators chose.
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from eval.sampling import Draw, Samples, encode, sample
from eval.store import write_atomically, write_json
from eval.tasks import Task, template_switches
from eval.win_rate import RewardModelJudge, WinRate, win_rate
from recipes.gsm8k_vgf import use_all_cores
from recipes.sources import load_rows
from reward_models.bradley_terry import load_reward_value
from reward_models.classifier import ClassifierReward
from reward_models.pairs import split_transcripts
from vgf_llm import TransportConfig, VGFConfig, VGFModel, VGFTrainer
from vgf_llm.trainer.config import VGFParser

SPACES = ("logit", "sequence_embedding", "sequence_logit")
# Win rates in percent over reference and chosen responses, as arXiv 2604.14265 reports them; nothing of this recipe.
PAPER = {"VGF": (68.1, 59.0), "DPO": (61.2, 51.5), "best-of-N": (58.3, 49.0), "PPO": (57.3, 45.5)}


@dataclass
class PairScriptArguments(ScriptArguments):
    """What to learn from, how to move, and what to compare, beside TRL's script arguments."""

    reward_model: str | None = field(
        default=None, metadata={"help": "Classifier that `reward_models/train.py` trained on the pairs."}
    )
    judge_model: str | None = field(
        default=None,
        metadata={"help": "Classifier that judges; better one that no training saw. `reward_model` if left out."},
    )
    num_train_prompts: int | None = field(default=None, metadata={"help": "Training prompts; all if left out."})
    num_test_prompts: int = field(default=500, metadata={"help": "Prompts that win rates are measured on."})
    max_prompt_tokens: int = field(default=512, metadata={"help": "Longer prompts are left out."})
    spaces: list[str] = field(
        default_factory=lambda: ["logit", "sequence_embedding"],
        metadata={"help": f"Spaces to move in, of {', '.join(SPACES)}; without `logit` nothing is trained."},
    )
    num_particles: int = field(default=4, metadata={"help": "Particles N, and samples of the base's best-of-N."})
    sequence_steps: int = field(default=4, metadata={"help": "Steps L of whole responses."})
    sequence_step_size: float = field(default=0.5, metadata={"help": "Their size."})
    decode_strength: float = field(default=5.0, metadata={"help": "What the tilt of a move is scaled by."})
    block_size: int | None = field(default=None, metadata={"help": "Tokens moved and selected at a time."})
    eval_rows: int = field(default=64, metadata={"help": "Responses sampled at a time in evaluation."})
    num_threads: int | None = field(
        default=None, metadata={"help": "CPU threads of a run without a GPU; all cores if left out."}
    )

    def __post_init__(self) -> None:
        unknown = [name for name in self.spaces if name not in SPACES]
        if unknown or not self.spaces:
            raise ValueError(f"`spaces` must be one or more of {', '.join(SPACES)}; got {self.spaces}.")
        if self.num_test_prompts < 2 or self.num_particles < 2:
            raise ValueError(
                "`num_test_prompts` and `num_particles` must be at least 2; got "
                f"{self.num_test_prompts} and {self.num_particles}."
            )

    def draws(self, transport: TransportConfig) -> dict[str, Draw]:
        """How the base and every space sample, by name; token by token with the budget of `transport`."""
        plain: dict[str, Any] = {"do_sample": True}
        moved = {
            "step_size": self.sequence_step_size,
            "decode_strength": self.decode_strength,
            "block_size": self.block_size,
            "rescore": True,
            "relift": True,
        }
        found = {"base": Draw("base", {**plain, "transport_steps": 0})}
        for space in self.spaces:
            if space == "logit":
                budget = {"transport_steps": transport.transport_steps, "step_size": transport.step_size}
            else:
                budget = {"transport_steps": self.sequence_steps, **moved}
            options = {**plain, "space": space, **budget}
            found[f"VGF {space}"] = Draw(f"VGF {space}", options, with_values=True)
        return found


def parse(argv: Sequence[str], config: Path) -> tuple[PairScriptArguments, VGFConfig, ModelConfig]:
    """Parses a command line; without a configuration of the user's, the recipe's own comes first."""
    given = {argument.split("=")[0] for argument in argv}
    argv = list(argv) if "--config" in given else ["--config", str(config), *argv]
    return VGFParser((PairScriptArguments, VGFConfig, ModelConfig)).parse_args_and_config(args=argv)


def load_prompts(
    args: PairScriptArguments,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    seed: int,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> Dataset:
    """Returns prompts with the columns `prompt` and `chosen`, in random order, without repeats and long ones.

    Raises:
        ValueError: If no prompt is short enough.
    """
    if args.dataset_name is None:
        raise ValueError("`--dataset_name` is missing: name a hub id, or a folder with the splits' files.")
    pairs = split_transcripts(load_rows(args.dataset_name, split, args.dataset_config).shuffle(seed=seed))
    rows: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        if len(rows) == limit:
            break
        key, length = str(pair["prompt"]), _prompt_length(tokenizer, pair["prompt"], chat_template_kwargs)
        if key not in rows and length <= args.max_prompt_tokens:
            rows[key] = {"prompt": pair["prompt"], "chosen": pair["chosen"]}
    if not rows:
        raise ValueError(
            f"No prompt of the split {split!r} has at most {args.max_prompt_tokens} tokens (`max_prompt_tokens`)."
        )
    return Dataset.from_list(list(rows.values()))


def _prompt_length(tokenizer: PreTrainedTokenizerBase, prompt: Any, chat_template_kwargs: dict[str, Any] | None) -> int:
    return encode(tokenizer, [prompt], chat_template_kwargs)["input_ids"].shape[1]


def build_model(
    name: str,
    args: PairScriptArguments,
    training_args: VGFConfig,
    model_args: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    reward: ClassifierReward,
) -> tuple[VGFModel, VGFTrainer | None]:
    """Trains the token-level value, where logit space asks for one, and adds the reward model as the sequence value."""
    trainer = None
    init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),  # type: ignore[dict-item]
    }
    if "logit" in args.spaces:
        training_args.model_init_kwargs = init_kwargs
        switches = template_switches(training_args.chat_template_kwargs)
        limit, seed = args.num_train_prompts, training_args.seed
        train = load_prompts(args, args.dataset_train_split, tokenizer, limit, seed, switches)
        trainer = VGFTrainer(
            model=name,
            reward_funcs=reward,
            args=training_args,
            train_dataset=train.select_columns("prompt"),
            processing_class=tokenizer,
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
        )
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        trainer.save_model()
        model = trainer.vgf_model
    else:
        model = VGFModel(AutoModelForCausalLM.from_pretrained(name, **init_kwargs).to(training_args.device))
    if any(space.startswith("sequence") for space in args.spaces):
        model.sequence_value = load_reward_value(str(args.reward_model)).to(model.device)
    return model.eval(), trainer


def best_texts(samples: Samples) -> list[str]:
    """Returns the response of highest proxy reward to every prompt."""
    return [row[i] for row, i in zip(samples.responses, samples.choose("proxy").tolist(), strict=True)]


def compare(
    model: VGFModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Dataset,
    args: PairScriptArguments,
    reward: ClassifierReward,
    training_args: VGFConfig,
) -> dict[str, dict[str, WinRate]]:
    """Samples every method's responses and judges them against reference and chosen ones.

    Every process has to call it: the prompts are shared out among them.

    Returns:
        Win rates by method, then by what it is compared with: `"reference"` and `"chosen"`.
    """
    judge_func = reward if args.judge_model is None else ClassifierReward(args.judge_model)
    seed, switches = training_args.seed, template_switches(training_args.chat_template_kwargs)
    task = Task(
        "preferences",
        problems,
        judge_func,
        reward,
        binary=False,
        max_new_tokens=training_args.max_completion_length,
        chat_template_kwargs=switches,
    )
    chosen = [text if isinstance(text, str) else text[-1]["content"] for text in problems["chosen"]]
    texts: dict[str, list[str]] = {}
    for name, draw in args.draws(model.transport).items():
        # The last of the base's samples is the reference, the others its best-of-N.
        count = args.num_particles + (name == "base")
        drawn = sample(
            model,
            tokenizer,
            task,
            draw,
            num_samples=count,
            seed=seed,
            batch_size=args.eval_rows,
            pad_token_id=tokenizer.pad_token_id,
            processes=PartialState(),
        )
        if name == "base":
            reference = [row[-1] for row in drawn.responses]
            texts["sampled"] = [row[0] for row in drawn.responses]
            texts[f"best-of-{args.num_particles}"] = best_texts(drawn.take(args.num_particles))
        else:
            texts[f"{name}, best of {args.num_particles}"] = best_texts(drawn)
    judge, prompts = RewardModelJudge(judge_func, chat_template_kwargs=switches), list(problems["prompt"])
    return {
        name: {
            "reference": win_rate(judge, prompts, responses, reference, seed=seed),
            "chosen": win_rate(judge, prompts, responses, chosen, seed=seed),
        }
        for name, responses in texts.items()
    }


def to_markdown(rates: dict[str, dict[str, WinRate]]) -> str:
    """Formats win rates in percent with their 95% intervals, the paper's numbers below."""

    def cell(rate: WinRate) -> str:
        interval = rate.interval
        return f"{100 * interval.mean:.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"

    lines = ["| method | win rate over reference | over chosen |", "|---|---|---|"]
    lines += [f"| {name} | {cell(row['reference'])} | {cell(row['chosen'])} |" for name, row in rates.items()]
    lines += [f"| {name} as the paper reports it, not measured here | {a} | {b} |" for name, (a, b) in PAPER.items()]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str], config: Path) -> None:
    """Trains, samples, judges and writes `win_rates.md` and `win_rates.json`."""
    began = time.perf_counter()
    args, training_args, model_args = parse(argv, config)
    use_all_cores(args.num_threads)
    for option, value in (
        ("--model_name_or_path", model_args.model_name_or_path),
        ("--reward_model", args.reward_model),
    ):
        if value is None:
            raise ValueError(f"`{option}` is missing: the policy is moved by a reward model of the pairs.")
    name = str(model_args.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left", revision=model_args.model_revision)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    reward = ClassifierReward(str(args.reward_model), lower_bound_coef=1.0)
    reward.model.to(training_args.device)
    switches = template_switches(training_args.chat_template_kwargs)
    limit, seed = args.num_test_prompts, training_args.seed
    problems = load_prompts(args, args.dataset_test_split, tokenizer, limit, seed, switches)
    model, trainer = build_model(name, args, training_args, model_args, tokenizer, reward)
    with nullcontext() if trainer is None else trainer.generation_context():  # sharded weights are gathered once
        rates = compare(model, tokenizer, problems, args, reward, training_args)
    if not PartialState().is_main_process:
        return
    folder, table = Path(training_args.output_dir), to_markdown(rates)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "win_rates.md", table)
    points = {row: {side: rate.interval.mean for side, rate in sides.items()} for row, sides in rates.items()}
    meta = {"prompts": len(problems), "seed": seed, "judge": args.judge_model or args.reward_model}
    write_json(folder / "win_rates.json", {"meta": meta, "win_rates": points})
    if args.judge_model is None:
        print("The reward model that moved the responses judges them too: these are proxy win rates.")
    print(table)
    print(f"total: {time.perf_counter() - began:.0f} s on {torch.get_num_threads()} threads; {folder}")
