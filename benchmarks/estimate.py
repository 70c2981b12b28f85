# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What a recipe's configuration would take on GPUs: gigabytes by phase and hours, by arithmetic. Nothing is measured.

    python -m benchmarks.estimate recipes/configs/gsm8k_qwen2.5_0.5b.yaml
    python -m benchmarks.estimate recipes/configs/gsm8k_qwen2.5_7b_zero3.yaml --gpus 8 --zero3

The terms are explained in docs/distributed.md. The recipe's configurations open with what this prints.
"""

import argparse
import math
from collections.abc import Sequence

from benchmarks.sizes import SIZES
from recipes.gsm8k_vgf import parse

GPU_BYTES = 80e9
# Of an H100: dense bf16 products at 35 % of their peak, memory read at 60 % of its bandwidth.
FLOPS, BANDWIDTH = 0.35 * 989e12, 0.6 * 3.35e12
# Seconds that a decoded token costs beside reading memory: in vLLM, and in a layer of transformers' `generate`.
VLLM_STEP, GENERATE_LAYER = 5e-3, 1.2e-3
PROBLEMS, PROMPT_TOKENS, COMPLETION_TOKENS = 7473, 150, 200  # of GSM8K; the last two are guesses of the mean
LORA_RANK, STATES = 16, 256  # the default adapter; states whose logits exist at a time


def counts(size: str) -> dict[str, int]:
    """Parameters of a shape, those of its adapter, and what a token takes in one layer and in the cache.

    Example:
        >>> found = counts("qwen2.5-0.5b")
        >>> found["parameters"], found["adapter"], found["cache_bytes"]
        (494032768, 8798208, 12288)
    """
    shape = SIZES[size]
    width, inner, layers = (shape[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    cache = width // shape["num_attention_heads"] * shape["num_key_value_heads"]
    projections = [(width, width), (width, cache), (width, cache), (width, width)]
    projections += [(width, inner), (width, inner), (inner, width)]
    biases, norms = width + 2 * cache, 2 * width
    embeddings = shape["vocab_size"] * width * (1 if shape.get("tie_word_embeddings") else 2)
    return {
        "parameters": embeddings + width + layers * (sum(a * b for a, b in projections) + biases + norms),
        "adapter": layers * LORA_RANK * sum(a + b for a, b in projections),
        "cache_bytes": 2 * 2 * layers * cache,
        "kept_bytes": 2 * layers * width,  # the input of every layer, which checkpointing keeps
        # One layer as it is computed again: activations in bf16, and the adapter's inputs in float32.
        "layer_bytes": 2 * (10 * width + 4 * inner + 4 * cache) + 4 * (6 * width + inner),
        "vocab_size": shape["vocab_size"],
        "layers": layers,
    }


def estimate(config: str, gpus: int = 1, zero3: bool = False) -> list[str]:
    """Returns the estimate in lines, for `gpus` that each hold the weights, or with `zero3` share them."""
    script, args, model = parse(["--config", config, "--bf16", "false", "--gradient_checkpointing", "false"])
    size = counts(str(model.model_name_or_path).rpartition("/")[2].lower().removesuffix("-instruct"))
    length = PROMPT_TOKENS + args.max_completion_length
    weights = 2 * size["parameters"]
    held = (weights + 16 * size["adapter"]) / (gpus if zero3 else 1)
    engine = args.vllm_gpu_memory_utilization * GPU_BYTES
    rows = math.ceil(args.per_device_train_batch_size * (1 + args.replay_ratio))
    logits = 3 * 4 * size["vocab_size"]  # of a state: float32, its probabilities, and a gradient
    fit = rows * length * (size["kept_bytes"] + size["layer_bytes"]) + STATES * logits
    scoring = weights if zero3 else 0  # gathered
    # Base and value are two rows of a batch, and keep a cache each.
    table = scoring + 2 * script.eval_rows * (length * size["cache_bytes"] + logits)
    own = args.per_device_train_batch_size * args.steps_per_generation  # completions of a round on one GPU
    cache = own * length * size["cache_bytes"]

    prompts = gpus * own // args.num_generations
    rounds = math.ceil(args.num_train_epochs * ((PROBLEMS - script.num_validation_problems) // prompts))
    sampled = math.floor(rounds * args.rollout_fraction + 0.5)
    # The cache of a round is half full on average.
    sampling = sampled * args.max_completion_length * ((weights + cache / 2) / BANDWIDTH + VLLM_STEP)
    tokens = rounds * args.steps_per_generation * rows * (PROMPT_TOKENS + COMPLETION_TOKENS)
    fitting = 6 * size["parameters"] * tokens / FLOPS  # forward, recomputation, and the gradients of activations
    batches = math.ceil(2 * script.max_eval_responses / script.eval_rows / gpus)  # choosing the budget, and the table
    measuring = batches * args.max_completion_length * (size["layers"] * GENERATE_LAYER + 2 * weights / BANDWIDTH)
    hours = [seconds / 3600 for seconds in (sampling, fitting, measuring)]

    peak = held + engine + max(fit, scoring, table)
    return [
        f"GB on each GPU: {held / 1e9:.1f} for {'a share of the' if zero3 else 'the'} weights, the adapter, its "
        "gradients and Adam;",
        f"{engine / 1e9:.0f} for vLLM (weights {weights / 1e9:.1f}, cache of a whole round {cache / 1e9:.1f}). Beside "
        f"these: fitting {fit / 1e9:.1f},",
        f"scoring {scoring / 1e9:.1f}, the table at the end {table / 1e9:.1f}. At most {peak / 1e9:.0f} of 80.",
        f"{sampled} of {rounds} rounds sample {sampled * gpus * own} completions. H100 hours: sampling "
        f"{hours[0]:.1f}, fitting {hours[1]:.1f}, the table {hours[2]:.1f}.",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the estimate of a configuration."""
    parser = argparse.ArgumentParser(prog="benchmarks.estimate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", help="a configuration of recipes/gsm8k_vgf.py with a Qwen2.5 model")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--zero3", action="store_true", help="the GPUs share the weights")
    args = parser.parse_args(argv)
    print("\n".join(estimate(args.config, args.gpus, args.zero3)))


if __name__ == "__main__":
    main()
