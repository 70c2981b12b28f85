# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""TRL's entropy bonus on the model behind a log-ratio value: its coefficient, what is logged, and who ignores it."""

from types import SimpleNamespace

import pytest

from tests.trainer import tiny
from vgf_llm import VGFModel
from vgf_llm.models import build_value
from vgf_llm.trainer.fit.entropy import EntropyControl

ADAPTIVE = {"entropy_coef": 0.1, "use_adaptive_entropy": True, "entropy_coef_delta": 0.02}


def settings_of(**settings):
    given = {"use_adaptive_entropy": True, "entropy_target": 2.0, "entropy_coef_delta": 0.25}
    return SimpleNamespace(**{**given, "entropy_coef_min": 0.0, "entropy_coef_max": 1.0, **settings})


def test_the_coefficient_moves_once_a_step_within_its_bounds():
    control = EntropyControl(settings_of())
    assert control.applied(0.5) == 0.0  # nothing is measured yet
    # Two micro-batches of 1 and 3 tokens: (4 + 3 * 1) / 4 is below the target, though the mean of 4 and 1 is above.
    control.add(4.0, 1)
    control.add(3.0, 3)
    assert control.step(0.5) == 0.75 and control.last == 1.75 and control.applied(0.75) == 0.75
    control.add(2.0, 1)
    assert control.step(0.75) == 1.0 and control.applied(1.0) == 1.0  # at the target
    assert control.step(1.0) == 1.0  # without tokens as in the last step, and no higher than the bound
    control.add(9.0, 3)
    assert control.step(0.125) == 0.0 and control.applied(0.125) == 0.0
    fixed = EntropyControl(settings_of(use_adaptive_entropy=False))
    fixed.add(9.0, 1)
    assert fixed.step(0.5) == fixed.applied(0.5) == 0.5


@pytest.mark.parametrize(("accumulation", "steps_per_generation"), [(1, 1), (2, 2), (2, 4)])
@pytest.mark.parametrize(("target", "direction"), [(15.0, 1), (0.0, -1)])
def test_the_coefficient_moves_once_per_optimizer_step(tmp_path, accumulation, steps_per_generation, target, direction):
    run = tiny.trainer(
        tmp_path,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=steps_per_generation,
        entropy_target=target,
        **ADAPTIVE,
    )
    run.train()
    coefs = [0.1 + direction * 0.02 * step for step in (1, 2, 3)]
    assert tiny.history(run, "entropy_coef") == pytest.approx(coefs) and run.entropy_coef == pytest.approx(coefs[-1])
    shares = [
        (before - after) / entropy
        for before, after, entropy in zip(
            *(tiny.history(run, name) for name in ("policy_loss", "loss", "entropy")), strict=True
        )
    ]
    if direction < 0:  # never above its target
        assert shares == pytest.approx([0.0] * 3, abs=1e-6)
    elif steps_per_generation == accumulation:  # the tokens of a step are those of the round
        assert shares == pytest.approx([0.0, *coefs[:2]], abs=1e-4)
    run.train()  # starts again
    assert run.entropy_coef == pytest.approx(coefs[-1])


def test_the_sign_of_the_bonus_moves_the_entropy_and_it_is_off_by_default(tmp_path):
    found = {}
    for coef in (0.0, -2.0, 2.0):
        model = tiny.llama()
        model.lm_head.weight.data *= 30  # far from the uniform distribution
        run = tiny.trainer(tmp_path, model=model, value_backbone="copy", entropy_coef=coef, max_steps=6)
        run.train()
        found[coef] = tiny.history(run, "entropy")
    assert found[0.0] == []
    assert found[-2.0][0] == pytest.approx(found[2.0][0])
    assert found[-2.0][-1] < found[2.0][-1] - 0.5


def test_evaluation_takes_the_bonus_and_leaves_its_coefficient(tmp_path):
    run = tiny.trainer(tmp_path, eval_dataset=tiny.prompts(4), entropy_target=15.0, **ADAPTIVE)
    run.train()
    coef = run.entropy_coef
    measured = run.evaluate()
    share = (measured["eval_policy_loss"] - measured["eval_loss"]) / measured["eval_entropy"]
    assert share == pytest.approx(coef, rel=1e-4) and run.entropy_coef == coef
    assert "eval_entropy_coef" not in measured


def test_a_coefficient_that_a_callback_changes_acts(tmp_path):
    run = tiny.trainer(tmp_path, entropy_coef=0.1)
    run.entropy_coef = 0.5
    run.train()
    rows = zip(*(tiny.history(run, name) for name in ("policy_loss", "loss", "entropy")), strict=True)
    assert [(before - after) / entropy for before, after, entropy in rows] == pytest.approx([0.5] * 3)


def test_a_model_whose_value_is_a_head_has_no_bonus_and_says_so(tmp_path, caplog):
    model = VGFModel(tiny.llama(), build_value("vocab", width=32, vocab_size=tiny.VOCAB), backbone="lora")
    run = tiny.trainer(tmp_path, model=model, entropy_coef=0.1, max_steps=1)
    assert "`entropy_coef` does nothing: the value of `model` is of the kind 'vocab'" in caplog.text
    run.train()
    assert not {"entropy", "policy_loss", "entropy_coef"} & run.state.log_history[0].keys()
