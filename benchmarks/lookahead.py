# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Token-level transport against value-guided decoding that looks ahead: one value forward per candidate.

Without a value of state and token, a decoder that is guided by values has to try the candidates: append each to the
prefix, run the value on the result, and tilt the base's probabilities by what it says. `Lookahead` does that as well as
it can be done: the value shares the model with the policy, so that the candidates' forwards are the next step's forward
too; all candidates of all prompts are one batch of K positions behind the shared cache, which is never copied; only the
chosen candidate stays in it. What it costs above plain decoding is K positions a step in place of one.

    python -m benchmarks.lookahead                               # K = 8 and 40, batch 8
    python -m benchmarks.lookahead --device cuda --dtype bfloat16 --size qwen2.5-7b --new_tokens 128
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from benchmarks.harness import BASELINES, check, hardware, load_baseline, shown, spread, time_pairs, write_json
from benchmarks.sizes import SIZES, build_policy
from vgf_llm.models import VGFModel, build_value

SETTINGS = (
    "size", "batch_size", "transport_steps", "prompt_tokens", "new_tokens", "device", "dtype", "threads",
)  # fmt: skip
# How many times faster transport is meant to be.
TARGET = 3.0


class Lookahead:
    """Value-guided decoding with one value forward per candidate.

    Args:
        policy: A causal language model whose cache can grow; its features are the value's.
        head: Maps the hidden state `[..., D]` that a token leads to, to its value `[..., 1]`.
        num_candidates: K, the base's most likely tokens.
        scale: What values are multiplied by before they are added to log-probabilities.
    """

    def __init__(self, policy: PreTrainedModel, head: nn.Module, *, num_candidates: int, scale: float = 1.0) -> None:
        self.policy = policy
        self.head = head
        self.num_candidates = num_candidates
        self.scale = scale

    @torch.no_grad()
    def generate(self, input_ids: Tensor, new_tokens: int) -> Tensor:
        """Samples `new_tokens` tokens behind prompts `[B, P]` of one length; returns `[B, P + new_tokens]`."""
        cache = DynamicCache()
        hidden = self.policy.base_model(input_ids, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        tokens = [input_ids]
        for step in range(new_tokens):
            logits = self._project(hidden).float().log_softmax(dim=-1)
            log_probs, candidates = logits.topk(self.num_candidates, dim=-1)
            length = cache.get_seq_length()
            reached = self._try(candidates, length, cache)
            values = self.head(reached).squeeze(-1).float()
            chosen = (log_probs + self.scale * values).softmax(dim=-1).multinomial(1)
            tokens.append(candidates.gather(1, chosen))
            if step + 1 < new_tokens:
                hidden = reached[torch.arange(len(reached), device=chosen.device), chosen[:, 0]]
                _keep(cache, length, chosen[:, 0])
        return torch.cat(tokens, dim=1)

    def _project(self, hidden: Tensor) -> Tensor:
        return self.policy.get_output_embeddings()(hidden)

    def _try(self, candidates: Tensor, length: int, cache: DynamicCache) -> Tensor:
        """Runs candidates `[B, K]` side by side behind the cache, each seeing the prefix and itself; `[B, K, D]`."""
        count = candidates.shape[1]
        own = torch.eye(count, dtype=torch.bool, device=candidates.device)
        allowed = torch.cat([own.new_ones(count, length), own], dim=1)
        mask = torch.zeros(allowed.shape, dtype=self.policy.dtype, device=candidates.device)
        mask = mask.masked_fill(~allowed, torch.finfo(mask.dtype).min).expand(len(candidates), 1, -1, -1)
        positions = torch.full_like(candidates, length)
        return self.policy.base_model(
            candidates, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state


def _keep(cache: DynamicCache, length: int, chosen: Tensor) -> None:
    """Leaves the chosen candidate's entry alone behind the first `length` ones."""
    rows = torch.arange(len(chosen), device=chosen.device)
    for layer in cache.layers:
        layer.keys[:, :, length] = layer.keys[rows, :, length + chosen]
        layer.values[:, :, length] = layer.values[rows, :, length + chosen]
    surplus = cache.get_seq_length() - length - 1
    if surplus > 0:
        cache.crop(-surplus)  # a positive number is refused


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.lookahead", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="60m", help="a model of this shape, random weights")
    parser.add_argument("--candidates", nargs="+", type=int, default=[8, 40], help="K, for one row each")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--transport_steps", type=int, default=8)
    parser.add_argument("--prompt_tokens", type=int, default=32)
    parser.add_argument("--new_tokens", type=int, default=24)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the cpu clock is exact for one")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--baseline", type=Path, default=BASELINES / "lookahead.json", help="for --check")
    parser.add_argument("--check", action="store_true", help="exit with 1 above the baseline's tolerance")
    args = parser.parse_args(argv)
    for name in ("batch_size", "transport_steps", "prompt_tokens", "new_tokens", "pairs", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    vocab_size = SIZES[args.size]["vocab_size"]
    if not all(1 <= count <= vocab_size for count in args.candidates):
        parser.error(f"--candidates must be from 1 to {vocab_size}, the vocabulary, got {args.candidates}")
    return args


def measure_row(policy: PreTrainedModel, count: int, prompts: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """Times lookahead over K candidates against transport of the same K, both on the policy's own features."""
    width, vocab_size = policy.config.hidden_size, policy.config.vocab_size
    model = VGFModel(policy, build_value("bilinear", width=width, vocab_size=vocab_size)).to(policy.device).eval()
    torch.nn.init.normal_(model.value.head.out.weight, std=0.02)
    head = nn.Linear(width, 1, device=policy.device, dtype=policy.dtype)
    lookahead = Lookahead(policy, head, num_candidates=count)
    length = {"min_new_tokens": args.new_tokens, "max_new_tokens": args.new_tokens}

    def transported() -> Tensor:
        return model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            transport_steps=args.transport_steps,
            top_k_candidates=count,
            min_candidate_prob=0.0,
            do_sample=True,
            top_k=0,
            **length,
        )

    pairs = time_pairs(transported, lambda: lookahead.generate(prompts, args.new_tokens), args.pairs, args.device)
    inverse = {clock: spread([1 / ratio for ratio in pairs.ratios(clock)]) for clock in ("cpu", "wall")}
    return {
        "times_faster_cpu": spread(pairs.ratios("cpu")),
        "times_faster_wall": spread(pairs.ratios("wall")),
        "share_of_lookahead": inverse,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    settings = {name: getattr(args, name) for name in SETTINGS}
    baseline = load_baseline(args.baseline, settings) if args.check else {"rows": {}}
    policy = build_policy(args.size, args.device, args.dtype)
    prompts = torch.randint(3, policy.config.vocab_size, (args.batch_size, args.prompt_tokens), device=args.device)
    rows = {f"K = {count}": measure_row(policy, count, prompts, args) for count in args.candidates}
    console = Console()
    view = Table(title=f"{hardware(args.device)}; " + ", ".join(f"{key} {value}" for key, value in settings.items()))
    for column in ("candidates", "transport is faster (cpu)", "(wall)", "target"):
        view.add_column(column, justify="right")
    for name, row in rows.items():
        view.add_row(name, shown(row["times_faster_cpu"]), shown(row["times_faster_wall"]), f">= {TARGET:g}")
    console.print(view)
    write_json(args.json, {"hardware": hardware(args.device), "settings": settings, "rows": rows})
    clock = "wall" if torch.device(args.device).type == "cuda" else "cpu"
    medians = {name: {"share": row["share_of_lookahead"][clock]["median"]} for name, row in rows.items()}
    failures = check(medians, baseline)
    for failure in failures:
        console.print(f"[red]{failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
