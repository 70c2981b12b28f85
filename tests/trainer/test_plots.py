# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Plots of a run: their numbers by hand, where they are written and sent, and what they leave as it was."""

import math
import sys

import pytest
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator

from tests.trainer import tiny
from vgf_llm import PlotCallback
from vgf_llm.trainer.measure.gate import ScoredPrompt
from vgf_llm.trainer.watch.plots import binned, centred, ordered_pairs

EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 2}
NAN = math.nan


def watched(folder, *args, budget_steps=(), eval_dataset=None, **settings):
    dataset = tiny.prompts(6) if eval_dataset is None else eval_dataset
    run = tiny.trainer(folder, *args, eval_dataset=dataset, **{**EVALUATED, **settings})
    plots = PlotCallback(run, budget_steps)
    run.add_callback(plots)
    return run, plots


def drawn(folder):
    names = sorted(path.name for path in (folder / "plots").iterdir())
    for name in names:
        with Image.open(folder / "plots" / name) as image:
            assert image.format == "PNG" and min(image.size) > 400
        assert (folder / "plots" / name).stat().st_size < 100_000
    return names


def test_pairs_that_the_rewards_order():
    prompts = [ScoredPrompt([0.0, 3.0, 1.0], [1.0, 0.0, NAN]), ScoredPrompt([2.0, 2.0, 5.0], [0.0, 1.0, 1.0])]
    gaps, right = ordered_pairs(prompts)
    assert gaps == [3.0, 0.0, 3.0]
    assert right == [0.0, 0.5, 1.0]  # the second pair has equal values
    assert ordered_pairs([ScoredPrompt([1.0, 2.0], [1.0, 1.0]), ScoredPrompt([1.0], [1.0])]) == ([], [])


def test_bins_and_their_standard_errors():
    points = binned(range(50), [0.0, 1.0] * 25, most=10, least=20)
    assert [point.number for point in points] == [25, 25]
    assert points[0].x == 12 and points[0].y == pytest.approx(12 / 25)
    assert points[0].error == pytest.approx(math.sqrt(12 * 13 / 25 / 24 / 25))
    assert len(binned(range(1000), range(1000))) == 10
    assert [point.number for point in binned([1.0], [2.0])] == [1]


def test_values_and_rewards_within_their_prompt():
    values, rewards = centred([ScoredPrompt([1.0, 3.0, 9.0], [0.0, 1.0, NAN]), ScoredPrompt([5.0], [2.0])])
    assert values == [-1.0, 1.0, 0.0] and rewards == [-0.5, 0.5, 0.0]


def test_evaluation_draws_what_it_has_measured_anyway(tmp_path):
    requests = []
    run, _ = watched(tmp_path)
    sampler = run.sampler
    run.sampler = lambda request: requests.append(request.mode) or sampler(request)
    run.sampler.close = sampler.close
    run.train()
    assert drawn(tmp_path) == ["eval_calibration.png", "reward_over_completions.png"]
    assert requests.count("eval") == 3  # 24 completions, eight at a time
    assert [len(prompt.values) for prompt in run.metrics.held_out] == [4] * 6
    _, right = ordered_pairs(run.metrics.held_out)
    assert tiny.history(run, "eval_value/within_prompt_accuracy") == [pytest.approx(sum(right) / len(right))]


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({}, ("value minus its prompt's mean", "difference as log-odds")),  # decided by the rewards
        ({"value_loss": "pairwise"}, ("value minus its prompt's mean", "difference as log-odds")),
        ({"value_parametrization": "vocab", "value_loss": "regression"}, ("predicted reward", "calibrated")),
        ({"value_parametrization": "vocab", "value_loss": "bernoulli"}, ("predicted reward", "difference as log-odds")),
    ],
    ids=lambda item: str(item),
)
def test_calibration_is_drawn_on_the_scale_of_the_value(tmp_path, settings, labels):
    run, plots = watched(tmp_path, **settings)
    run.evaluate()
    figure = Figure()
    assert plots._calibration(figure, run.metrics.held_out)
    _, other = figure.axes
    shown = [text.get_text() for axes in figure.axes for text in axes.get_legend().get_texts()]
    assert labels[1] in shown and other.get_xlabel() == labels[0]
    assert ("difference as log-odds" in shown) == (settings.get("value_loss") != "regression")
    if settings.get("value_loss") == "bernoulli":  # scores are logits, and what is predicted are probabilities
        assert all(0 < x < 1 for line in other.lines for x in line.get_xdata())


def test_rewards_are_drawn_over_the_completions_sampled_so_far(tmp_path):
    settings = {"num_iterations": 2, "gradient_accumulation_steps": 2, "rollout_fraction": 0.5}
    run, plots = watched(tmp_path, max_steps=4, eval_strategy="no", **settings)
    run.train()
    # A round is 16 completions in two steps of two micro-batches, and the second half of the run samples none.
    assert [plots._completions(step) for step in range(5)] == [0, 16, 16, 16, 16]
    figure = Figure()
    assert plots._rewards(figure)
    line = next(line for line in figure.axes[0].lines if line.get_label() == "reward")
    assert list(line.get_ydata()) == tiny.history(run, "reward") and set(line.get_xdata()) == {16}


def test_the_budget_curve_samples_at_every_budget_and_leaves_nothing(tmp_path):
    run, plots = watched(tmp_path, budget_steps=(8, 0, 2), max_steps=4, eval_steps=4)
    transport = run.vgf_model.transport
    run.train()
    assert drawn(tmp_path) == ["eval_budget_curve.png", "eval_calibration.png", "reward_over_completions.png"]
    assert run.vgf_model.transport is transport and run.schedule.samples_from == "value"
    kl = [tiny.history(run, f"eval_budget_{steps}_rollout/kl")[-1] for steps in (0, 2, 8)]
    assert kl[0] == 0 < kl[1] < kl[2]
    points = plots._budgets(run.eval_dataset, "again")
    assert [point.x for point, _ in points] == [0, 2, 8] and all(point.number == 6 for point, _ in points)
    means = [sum(prompt.rewards) / 4 for prompt in run.metrics.held_out]  # those of the last budget
    assert points[-1][0].y == pytest.approx(sum(means) / 6) == tiny.history(run, "again_budget_8_reward")[0]
    assert len(tiny.history(run, "eval_loss")) == len(tiny.history(run, "eval_budget_8_reward")) == 1


def test_several_evaluation_sets_have_plots_of_their_own(tmp_path):
    run, _ = watched(tmp_path, eval_dataset={"one": tiny.prompts(4), "two": tiny.prompts(6)})
    run.evaluate()
    assert drawn(tmp_path) == ["eval_one_calibration.png", "eval_two_calibration.png", "reward_over_completions.png"]


def test_nothing_is_drawn_of_nothing(tmp_path):
    run, _ = watched(tmp_path, lambda completion_ids, **kwargs: [1.0] * len(completion_ids))
    run.evaluate()
    assert drawn(tmp_path) == ["reward_over_completions.png"]  # no pair of completions has different rewards


def test_what_cannot_be_drawn_is_refused(tmp_path, monkeypatch):
    run = tiny.trainer(tmp_path, rollout_func=tiny.fixed_rollout)
    with pytest.raises(ValueError, match=r"`budget_steps` \(\[2\]\) .* FunctionSampler"):
        PlotCallback(run, budget_steps=[2])
    run, _ = watched(tmp_path, budget_steps=[2])
    with pytest.raises(ValueError, match=r"`budget_steps` samples .* they are a stream"):
        run.evaluate(tiny.prompts(4).to_iterable_dataset())
    with pytest.raises(ValueError, match="`transport_steps` must be an integer >= 0"):
        PlotCallback(run, budget_steps=[4, -1])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"vgf-llm\[plots\]"):
        PlotCallback(run)


def test_plots_go_to_wandb(tmp_path, monkeypatch):
    sent = tiny.fake_wandb(monkeypatch)
    run, _ = watched(tmp_path)
    run.args.report_to = ["wandb"]
    run.evaluate()
    assert [list(data) for data in sent] == [
        [f"plots/{name}", "train/global_step"] for name in ("eval_calibration", "reward_over_completions")
    ]
    assert sent[0]["plots/eval_calibration"] == str(tmp_path / "plots" / "eval_calibration.png")
    assert sent[0]["train/global_step"] == 0


def test_metrics_and_plots_arrive_in_tensorboard(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    run, _ = watched(tmp_path, report_to=["tensorboard"], value_holdout_ratio=0.5)
    run.train()
    assert "to log a value of" not in caplog.text  # transformers drops what is None
    events = event_accumulator.EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    for tag, name in (
        ("train/reward", "reward"),
        ("train/rollout/reward", "rollout/reward"),
        ("train/value/within_prompt_accuracy", "value/within_prompt_accuracy"),
        ("train/transport/kl", "transport/kl"),
        ("eval/reward", "eval_reward"),
        ("eval/value/within_prompt_accuracy", "eval_value/within_prompt_accuracy"),
        ("eval/loss", "eval_loss"),
    ):
        assert [event.value for event in events.Scalars(tag)] == pytest.approx(tiny.history(run, name)), tag
    assert {image.step for image in events.Images("plots/eval_calibration")} == {2}
    assert events.Tags()["images"] == ["plots/eval_calibration", "plots/reward_over_completions"]
