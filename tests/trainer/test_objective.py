# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The terms of the value's loss on one batch."""

import pytest
import torch

from tests.trainer import tiny
from vgf_llm import VGFConfig
from vgf_llm.functional import pairwise_value_loss, winner_likelihood_loss
from vgf_llm.models import VGFModel, build_value
from vgf_llm.trainer.buffer import RolloutGroup, collate
from vgf_llm.trainer.objective import sequences, value_loss

GROUPS = [
    RolloutGroup([5, 6], [[7, 8, 2], [9, 2], [10, 11]], [1.0, 0.0, 1.0]),
    RolloutGroup([5], [[8], [9, 9, 2], [12, 2]], [0.5, 0.0, float("nan")]),
]


def losses_of(model, tmp_path, **settings):
    batch = {**collate(GROUPS, pad_token_id=0), "num_groups": 2}
    input_ids, attention_mask, mask = sequences(batch)
    args = VGFConfig(str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=8, **settings)
    with torch.no_grad():
        scores = model(input_ids, attention_mask, mask.shape[1]).scores
        total = value_loss("pairwise", model, scores, batch, args)
    return total, model.value.sequence_values(scores, mask).view(2, 3), batch["rewards"].view(2, 3)


@pytest.mark.parametrize("winner_coef", [0.0, 0.3, 1.0])
def test_pairwise_loss_of_a_log_ratio_and_the_likelihood_of_its_winners(tmp_path, winner_coef):
    model = VGFModel(
        tiny.llama(0), build_value("log_ratio", width=32, vocab_size=tiny.VOCAB), value_model=tiny.llama(1)
    )
    total, values, rewards = losses_of(model.eval(), tmp_path, winner_coef=winner_coef)
    expected = pairwise_value_loss(values, rewards, reduction="prompt")
    expected = expected + winner_coef * winner_likelihood_loss(values, rewards, reduction="prompt")
    torch.testing.assert_close(total, expected.mean())
    assert values.abs().sum() > 0


def test_a_head_has_no_likelihood(tmp_path):
    model = VGFModel(tiny.llama(), build_value("vocab", width=32, vocab_size=tiny.VOCAB))
    torch.nn.init.normal_(model.value.head.out.weight)
    settings = {"value_parametrization": "vocab", "value_backbone": "policy", "value_loss": "pairwise"}
    total, values, rewards = losses_of(model.eval(), tmp_path, **settings)
    torch.testing.assert_close(total, pairwise_value_loss(values, rewards, reduction="prompt").mean())
