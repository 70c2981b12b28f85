# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The memory benchmark counts what it says, and no loss of VGF holds the logits of a whole batch."""

from pathlib import Path

import pytest
import torch

from benchmarks import memory, train_step
from benchmarks.sizes import build_policy
from vgf_llm.models.language_model import STATES_AT_A_TIME


def test_states_are_rows_of_the_vocabulary() -> None:
    with memory.LargestLogits(vocab_size=10, width=3) as largest:
        hidden, head = torch.ones(2, 4, 3), torch.ones(10, 3)
        head.T.contiguous()  # a weight of as many columns
        assert largest.states == 0
        (hidden[:, :2] @ head.T).softmax(-1)
        assert largest.states == 4
        hidden @ head.T
    assert largest.states == 8


@pytest.mark.parametrize("run", memory.RUNS)
def test_no_loss_holds_the_logits_of_all_tokens(run: str, tmp_path: Path) -> None:
    args = memory.parse_args(["--size", "tiny"])
    args.folder = tmp_path
    build_policy("tiny", "cpu", "float32").save_pretrained(tmp_path)
    train_step.tokenizer(64).save_pretrained(tmp_path)
    found = memory.measure(run, args)
    # Of the likelihood half of the completions are read.
    tokens = args.num_prompts * args.num_generations * args.completion_length // 2
    assert 0 < found["states"] <= STATES_AT_A_TIME < tokens
    assert found["peak_bytes"] > 0 and found["cpu_seconds"] > 0
