# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Trains a Bradley-Terry reward model on preference pairs, with TRL's RewardTrainer.

On reviews of the embedded base, in about two minutes on two cores:

    accelerate launch reward_models/train.py --config reward_models/configs/embedded_preference.yaml

On Anthropic's HH pairs, from the hub or from a folder with `train.jsonl.gz` and `test.jsonl.gz`:

    accelerate launch reward_models/train.py --config reward_models/configs/hh_pythia_2.8b.yaml
    accelerate launch reward_models/train.py --config reward_models/configs/hh_pythia_2.8b.yaml --dataset_name DIR

Every field of TRL's `RewardConfig` and `ModelConfig` is an option; `--help` lists them. The result is a sequence
classifier with a label per head (safetensors); `results.json` beside it holds the accuracies.
"""

import copy
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from trl import ModelConfig, RewardConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from recipes.embedded_preference import BASE_DIR, gold_score, make_prompts
from recipes.embedded_preference.proxy import make_pairs, sample_reviews
from recipes.sources import load_rows
from reward_models.accuracy import policy_accuracy
from reward_models.bradley_terry import BradleyTerryTrainer
from reward_models.pairs import split_transcripts, tokenize_pairs
from vgf_llm.models.sequence_value import SequenceValue

EMBEDDED = "embedded"


@dataclass
class RewardScriptArguments(ScriptArguments):
    """What to train on and what to measure, beside TRL's script arguments."""

    dataset_name: str | None = field(
        default=EMBEDDED, metadata={"help": "`embedded`, a hub id such as `Anthropic/hh-rlhf`, or a local folder."}
    )
    num_members: int = field(default=4, metadata={"help": "Heads of the ensemble, each on its own bootstrap."})
    pooling: str = field(default="mean", metadata={"help": "`mean` of the response's token scores, or `last`."})
    num_train_pairs: int | None = field(default=None, metadata={"help": "Training pairs; all if left out."})
    num_eval_pairs: int | None = field(
        default=None, metadata={"help": "Held-out pairs; all of the test split if left out. See `dataset_test_split`."}
    )
    num_prompts: int = field(default=1500, metadata={"help": "Embedded: training prompts."})
    num_samples: int = field(default=4, metadata={"help": "Embedded: reviews a prompt; all their pairs are labelled."})
    label_temperature: float = field(default=0.5, metadata={"help": "Embedded: noise of the labels; see `proxy.py`."})
    num_eval_prompts: int = field(default=200, metadata={"help": "Embedded: held-out prompts."})
    policy_samples: str | None = field(
        default=None,
        metadata={
            "help": "Folder with a split `test` of `prompt`, `responses` (samples of a policy) and true `rewards`, "
            "for the within-prompt accuracy. The embedded task has its own."
        },
    )


def build_classifier(name_or_path: str, num_members: int, **init_kwargs: Any) -> PreTrainedModel:
    """Loads a model as a sequence classifier with K labels, its `score` layer new where the checkpoint has none.

    Raises:
        ValueError: `num_members` is below 1.
    """
    if num_members < 1:
        raise ValueError(f"`num_members` must be at least 1; got {num_members}.")
    return AutoModelForSequenceClassification.from_pretrained(name_or_path, num_labels=num_members, **init_kwargs)


def load_pairs(args: RewardScriptArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Returns training and held-out pairs with the columns `prompt`, `chosen` and `rejected`.

    Where the test split is the training split, the held-out pairs are taken from it.

    Raises:
        ValueError: There are too few pairs for the number of held-out ones.
    """
    if args.dataset_name == EMBEDDED:
        shared = {"num_samples": args.num_samples, "label_temperature": args.label_temperature}
        train = make_pairs(args.num_prompts, seed=seed, **shared)
        test = make_pairs(args.num_eval_prompts, seed=seed, split="validation", **shared)
    elif args.dataset_test_split == args.dataset_train_split:
        pairs = load_rows(args.dataset_name, args.dataset_train_split, args.dataset_config).shuffle(seed=seed)
        held_out = args.num_eval_pairs or max(len(pairs) // 10, 1)
        if held_out >= len(pairs):
            raise ValueError(
                f"`num_eval_pairs` is {held_out}, but the split {args.dataset_train_split!r}, from which they are "
                f"taken, has {len(pairs)} pairs. Lower it."
            )
        test, train = pairs.select(range(held_out)), pairs.select(range(held_out, len(pairs)))
    else:
        train = load_rows(args.dataset_name, args.dataset_train_split, args.dataset_config).shuffle(seed=seed)
        test = load_rows(args.dataset_name, args.dataset_test_split, args.dataset_config).shuffle(seed=seed)
    limits = (args.num_train_pairs, args.num_eval_pairs)
    return tuple(
        split_transcripts(pairs if limit is None else pairs.select(range(min(limit, len(pairs)))))
        for pairs, limit in zip((train, test), limits, strict=True)
    )


def load_policy_samples(args: RewardScriptArguments, seed: int) -> dict[str, list] | None:
    """Returns prompts, a policy's samples and their true rewards; None where there are none."""
    if args.policy_samples is not None:
        rows = load_rows(args.policy_samples, "test")
        missing = {"prompt", "responses", "rewards"} - set(rows.column_names)
        if missing:
            raise ValueError(f"`policy_samples` lacks the columns {sorted(missing)}; found {rows.column_names}.")
        return {"prompts": rows["prompt"][:], "responses": rows["responses"][:], "rewards": rows["rewards"][:]}
    if args.dataset_name != EMBEDDED:
        return None
    prompts = make_prompts(args.num_eval_prompts, seed=seed, split="test")
    base, tokenizer = AutoModelForCausalLM.from_pretrained(BASE_DIR).eval(), AutoTokenizer.from_pretrained(BASE_DIR)
    reviews = sample_reviews(base, tokenizer, prompts, num_samples=8, seed=seed)
    golds = [[gold_score(prompt, text) for text in texts] for prompt, texts in zip(prompts, reviews, strict=True)]
    return {"prompts": prompts, "responses": reviews, "rewards": golds}


def save(trainer: BradleyTerryTrainer) -> PreTrainedModel:
    """Writes the reward model to the output folder and returns it, an adapter merged, which has no pooling in it."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not isinstance(model, PeftModel):
        trainer.save_model()
        return model
    merged = copy.deepcopy(model).merge_and_unload()
    if trainer.accelerator.is_main_process:
        merged.save_pretrained(trainer.args.output_dir)
        trainer.processing_class.save_pretrained(trainer.args.output_dir)
    return merged


def main(argv: list[str]) -> dict[str, float]:
    """Trains, saves and measures; returns what it measured."""
    began = time.perf_counter()
    parser = TrlParser((RewardScriptArguments, RewardConfig, ModelConfig))
    args, training_args, model_args = parser.parse_args_and_config(args=argv)
    name = model_args.model_name_or_path or (str(BASE_DIR) if args.dataset_name == EMBEDDED else None)
    if name is None:
        raise ValueError("`--model_name_or_path` is missing: name the model that the reward model starts from.")
    train, test = load_pairs(args, training_args.seed)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=model_args.model_revision)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    torch.manual_seed(training_args.seed)
    init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype or "float32",
        "quantization_config": get_quantization_config(model_args),
        **(training_args.model_init_kwargs or {}),
    }
    training_args.model_init_kwargs = None
    given = {key: value for key, value in init_kwargs.items() if value is not None}
    trainer = BradleyTerryTrainer(
        model=build_classifier(name, args.num_members, **given),
        pooling=args.pooling,
        args=training_args,
        train_dataset=tokenize_pairs(train, tokenizer, training_args.dataset_num_proc),
        eval_dataset=tokenize_pairs(test, tokenizer, training_args.dataset_num_proc),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    model = save(trainer)
    measured = trainer.evaluate()
    results = {"held_out_pair_accuracy": measured["eval_ensemble_accuracy"], "pairs": len(trainer.train_dataset)}
    samples = load_policy_samples(args, training_args.seed)
    if samples is not None and trainer.accelerator.is_main_process:
        value = SequenceValue.from_classifier(model.eval(), args.pooling)
        results["within_prompt_accuracy"] = policy_accuracy(value, tokenizer, **samples)
    results["seconds"] = time.perf_counter() - began
    if trainer.accelerator.is_main_process:
        path = Path(training_args.output_dir) / "results.json"
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(results, indent=2))
    trainer.accelerator.wait_for_everyone()
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
