# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""How often a process runs the model follows from the configuration alone, whatever its groups are.

Where parameters are sharded, every forward is a collective: a process that runs one more waits for ever.
"""

import pytest
import torch

from tests.trainer import tiny
from vgf_llm import VGFModel
from vgf_llm.models import build_value
from vgf_llm.models.language_model import inner_model
from vgf_llm.trainer.fit.micro_batch import Row, collate
from vgf_llm.trainer.fit.objective import Objective
from vgf_llm.trainer.keep.buffer import RolloutGroup
from vgf_llm.trainer.keep.rounds import ValueRounds
from vgf_llm.trainer.measure.gate import measure_gate

# Two successes, none, and one: of two processes one gets more rows, ties, or nothing at all.
REWARDS = ([1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0])


def groups(with_reference):
    logps = [[-3.0] * 2] * 3 if with_reference else None
    return [
        RolloutGroup([1, 5 + prompt], [[7 + row, tiny.EOS] for row in range(3)], rewards, logps)
        for prompt, rewards in enumerate(REWARDS)
    ]


def model_of(kind):
    name = "vocab" if kind == "bernoulli" else "log_ratio"
    value = build_value(name, width=32, vocab_size=tiny.VOCAB)
    return VGFModel(tiny.llama(), value, backbone="lora").train()


class Counted:
    """Counts the forwards of a model's backbone."""

    def __init__(self, model):
        self.count = 0
        inner_model(model.policy).base_model.register_forward_pre_hook(self.add)

    def add(self, *args):
        self.count += 1


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("whole_groups", [False, True])
@pytest.mark.parametrize("kind", ["likelihood", "pairwise", "bernoulli"])
def test_micro_steps_run_the_same_forwards_on_every_process(kind, whole_groups, checkpointed):
    found, sizes = [], []
    for index in range(2):
        model = model_of(kind)
        if checkpointed:
            model.gradient_checkpointing_enable()
        counted, objective = Counted(model), Objective(model, value_loss=kind, entropy_bonus=True)
        rounds = ValueRounds(groups_per_round=3, steps_per_round=2, replay_ratio=0.0, num_processes=2)
        rounds.begin(groups(with_reference=kind == "pairwise"))
        counts = []
        reads = lambda group, o=objective, r=rounds: o.reads(group, r.outcomes)  # noqa: E731
        for step in rounds.shares(0, reads, whole_groups=whole_groups and kind != "likelihood"):
            rows = [Row(*row) for row in step[index].rows]
            known = {id(group): torch.zeros(3, 1) for group in rounds.fresh}
            batch = collate(
                rows,
                0,
                absent=[] if rows else [Row(rounds.any_group(), 0)],
                scores=known,
                with_reference=kind == "pairwise",
            )
            counted.count = 0
            loss, _ = objective(model, model, batch, 0.1)
            forwards = counted.count
            loss.backward()
            counts.append((forwards, counted.count))
            sizes.append(len(rows))
        found.append(counts)
    assert found[0] == found[1]
    assert len(set(sizes)) > 1  # the processes had unequal work


@pytest.mark.parametrize("held_out", [1, 2, 3])
def test_the_gate_runs_the_same_forwards_on_every_process(held_out):
    found, counts = [], []
    for index in range(2):
        model = model_of("pairwise").eval()
        counted = Counted(model)
        measured, scored = measure_gate(
            model,
            groups(with_reference=False)[:held_out],
            sequence=False,
            groups_at_a_time=1,
            num_processes=2,
            process_index=index,
            pad_token_id=0,
        )
        found.append(counted.count)
        counts.append(float(measured[-1]))
        assert len(scored) == measured[-1]
    assert found[0] == found[1] > 0
    assert sum(counts) == held_out  # one that stands in counts nothing
