# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""TRL's GRPO on the embedded math task: same base, problems, reward and number of completions as the recipe.

    python -m benchmarks.grpo_math --learning_rates 1e-4 3e-4 1e-3 --seeds 0 1

Validation problems choose the learning rate with the first seed; every seed is then measured on test problems.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from eval.report import mean_and_error
from eval.sampling import Samples, sample
from recipes.embedded_math import BASE_DIR, make_problems
from reward_models.answers import extract_answer
from reward_models.verifiable import gsm8k_reward
from vgf_llm.models import VGFModel

REFERENCE = Path(__file__).parent.parent / "recipes" / "embedded_math" / "grpo_reference.json"
NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 4000, 200, 500
NUM_GENERATIONS, BATCH_SIZE, MAX_COMPLETION_LENGTH = 4, 128, 54


def problems(split: str, size: int, seed: int) -> Dataset:
    """Returns problems with columns `prompt` and `answer`."""
    return make_problems(size, seed=seed, split=split).map(lambda row: {"prompt": row["question"] + "\n"})


def train(learning_rate: float, seed: int, num_train: int = NUM_TRAIN) -> tuple[Any, float]:
    """Trains one GRPO run; returns the policy and the seconds it took."""
    tokenizer = AutoTokenizer.from_pretrained(BASE_DIR, padding_side="left")
    with tempfile.TemporaryDirectory() as output_dir:
        args = GRPOConfig(
            output_dir=output_dir,
            seed=seed,
            learning_rate=learning_rate,
            num_generations=NUM_GENERATIONS,
            per_device_train_batch_size=BATCH_SIZE,
            max_completion_length=MAX_COMPLETION_LENGTH,
            cache_implementation="static",
            num_train_epochs=1,
            warmup_steps=10,
            lr_scheduler_type="cosine",
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_steps=20,
        )
        trainer = GRPOTrainer(
            model=str(BASE_DIR),
            reward_funcs=gsm8k_reward,
            args=args,
            train_dataset=problems("train", num_train, seed),
            processing_class=tokenizer,
        )
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        with tempfile.TemporaryDirectory() as saved:
            # Reloaded, since GRPOTrainer replaces the forward of the model that it trains.
            trainer.save_model(saved)
            return AutoModelForCausalLM.from_pretrained(saved).eval(), seconds


def measure(policy: Any, split: str, size: int, seed: int, num_samples: int, **options: Any) -> Samples:
    """Samples responses of a policy to the recipe's problems."""
    tokenizer = AutoTokenizer.from_pretrained(BASE_DIR, padding_side="left")
    dataset = problems(split, size, seed)
    run = partial(
        sample,
        VGFModel(policy),
        tokenizer,
        dataset["prompt"],
        dataset["answer"],
        check=lambda texts, golds: gsm8k_reward(completions=texts, answer=golds),
        answer_of=extract_answer,
        seed=seed,
        max_new_tokens=MAX_COMPLETION_LENGTH,
        cache_implementation="static",
        disable_compile=True,
    )
    return run(num_samples=num_samples, transport_steps=0, **options)


def main() -> None:
    """Sweeps, trains, measures and writes the reference that the recipe prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--num_train", type=int, default=NUM_TRAIN)
    parser.add_argument("--output", type=Path, default=REFERENCE)
    args = parser.parse_args()
    sweep, trained = {}, {}
    for rate in args.learning_rates:
        policy, seconds = train(rate, args.seeds[0], args.num_train)
        accuracy, error = mean_and_error(
            measure(policy, "validation", NUM_VALIDATION, args.seeds[0], 4, do_sample=True).single()
        )
        sweep[f"{rate:g}"] = {"validation_sampled": round(accuracy, 4), "standard_error": round(error, 4)}
        trained[rate] = (policy, seconds)
        print(f"lr {rate:g}: sampled {accuracy:.3f} ± {error:.3f} on validation problems, {seconds:.0f} s", flush=True)
    best = max(args.learning_rates, key=lambda rate: sweep[f"{rate:g}"]["validation_sampled"])
    rows = []
    for seed in args.seeds:
        policy, seconds = trained[best] if seed == args.seeds[0] else train(best, seed, args.num_train)
        greedy = measure(policy, "test", NUM_TEST, seed, 1, do_sample=False)
        drawn = measure(policy, "test", NUM_TEST, seed, 8, do_sample=True)
        cells = {"greedy": greedy.single(), "sampled": drawn.single(), "majority@8": drawn.majority()}
        text = ", ".join("{} {:.3f} ± {:.3f}".format(name, *mean_and_error(x)) for name, x in cells.items())
        rows.append(f"seed {seed}: {text}; {seconds:.0f} s of training")
        print(rows[-1], flush=True)
    command = "python -m benchmarks.grpo_math --learning_rates {} --seeds {}".format(
        " ".join(f"{rate:g}" for rate in args.learning_rates), " ".join(map(str, args.seeds))
    )
    text = json.dumps({"command": command, "learning_rate": best, "sweep": sweep, "rows": rows}, indent=2)
    args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
