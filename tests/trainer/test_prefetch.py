# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Sampling ahead: the same rounds at the same places, overlapping with training, and errors that name their round."""

import threading

import pytest
from peft import LoraConfig, get_peft_model
from torch.profiler import ProfilerActivity, _ExperimentalConfig, profile
from transformers import TrainerCallback

from tests.trainer import tiny
from tests.trainer.engines import FakeClient, stand_in
from tests.trainer.test_resume import ROUNDS, check_same, start

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
LONG = {**ROUNDS, "max_steps": 6, "save_strategy": "no"}  # rounds of two steps, epochs of four


@pytest.fixture(autouse=True)
def fake_engine(monkeypatch):
    stand_in(monkeypatch)


def build(directory, **settings):
    return tiny.trainer(
        directory, **{"use_vllm": True, "rollout_policy": "base", "train_dataset": tiny.prompts(18), **LONG, **settings}
    )


def workers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("vgf-rollouts")]


CASES = {
    "colocate": (1, {}),
    "several-passes": (3, {"num_iterations": 2}),
    "several-rounds-a-step": (
        3,
        {"steps_per_generation": 1, "gradient_accumulation_steps": 4, "max_steps": 4},
    ),
    "server": (2, {"vllm_mode": "server"}),
    "evaluation": (2, {"eval_strategy": "steps", "eval_steps": 3, "eval_dataset": tiny.prompts(4)}),
    "stream": (1, {"train_dataset": tiny.prompts(18).to_iterable_dataset()}),
}


SLOW = ("several-passes", "several-rounds-a-step", "stream")


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES])
def test_rounds_are_those_of_a_run_without(tmp_path, case):
    depth, settings = CASES[case]
    whole = build(tmp_path / "whole", **settings)
    whole.train()
    ahead = build(tmp_path / "ahead", rollout_prefetch=depth, **settings)
    ahead.train()
    check_same(ahead, whole)
    assert not workers()
    if settings.get("vllm_mode") != "server":
        count = [run.vllm_generation.llm.threads for run in (whole, ahead)]
        assert len(count[0]) == len(count[1])
        assert any(name.startswith("vgf-rollouts") for name in count[1])
        assert ahead.vllm_generation.syncs == 0


@pytest.mark.parametrize("kill", [4, pytest.param(5, marks=pytest.mark.slow)])
def test_resumed_is_uninterrupted(tmp_path, kill):
    settings = {"use_vllm": True, "rollout_policy": "base", "rollout_prefetch": 2}
    whole = start(tmp_path / "whole", use_vllm=True, rollout_policy="base")
    start(tmp_path / "killed", kill=kill, **settings)
    assert not workers()
    check_same(start(tmp_path / "killed", resume=True, **settings), whole)


def spans(events, name):
    return [(e.time_range.start, e.time_range.end, e.thread) for e in events if e.name == name]


def overlap(one, other):
    return sum(max(0.0, min(b, d) - max(a, c)) for a, b, _ in one for c, d, _ in other) / 1e6


@pytest.mark.parametrize("depth", [0, 1])
def test_sampling_overlaps_with_fitting_in_a_profile(tmp_path, depth):
    run = build(tmp_path, rollout_prefetch=depth, max_steps=4)
    fitting = threading.Event()
    forward = run.vgf_model.forward

    def watched_forward(*args, **kwargs):
        fitting.set()
        return forward(*args, **kwargs)

    # The second round takes until the first is being fitted: it would never end if it were not sampled meanwhile.
    run.vgf_model.forward = watched_forward
    run.vllm_generation.llm.before = lambda call: call == 0 or fitting.wait(60) or pytest.fail("nothing was fitted")
    everything = _ExperimentalConfig(profile_all_threads=True)
    with profile(activities=[ProfilerActivity.CPU], experimental_config=everything) as profiler:
        run.train()
    events = profiler.events()
    sample, fit, score = (spans(events, f"vgf/{name}") for name in ("sample", "fit", "score"))
    assert len(sample) == 2 and len(fit) == 8 and len(score) == 2
    main = fit[0][2]
    assert [thread == main for _, _, thread in sample] == [True, depth == 0]
    assert (overlap(sample, fit) > 0) == (depth > 0)
    assert (len(spans(events, "vgf/wait")) == 1) == (depth > 0)


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_an_error_of_the_thread_names_round_engine_and_prompt(tmp_path, monkeypatch, mode):
    if mode == "server":

        def fail(self, prompts, n, **sampling):
            if len(self.requests) >= 4:
                raise OSError("Connection aborted")
            self.requests.append(prompts)
            return {"completion_ids": [[5, tiny.EOS]] * n}

        monkeypatch.setattr(FakeClient, "generate", fail)
    # Rounds of four prompts: those of the first are answered, those of the second are not.
    run = build(tmp_path, rollout_prefetch=1, vllm_mode=mode, per_device_train_batch_size=4)
    if mode == "colocate":
        run.vllm_generation.llm.fail_at = 1
    kind, engine = (
        (MemoryError, "the colocated vLLM engine") if mode == "colocate" else (ConnectionError, "0.0.0.0:8000")
    )
    with pytest.raises(kind) as raised:
        run.train()
    (note,) = raised.value.__notes__
    assert "in round 1" in note and engine in note and "16 prompts, the first with the tokens [" in note
    assert "`rollout_prefetch=0`" in note
    assert run.state.global_step == 2
    assert not workers()


def test_an_error_of_training_ends_the_thread(tmp_path):
    class Fail(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise RuntimeError("stop here")

    run = build(tmp_path, rollout_prefetch=3)
    run.add_callback(Fail())
    run.vllm_generation.llm.delay = 0.2
    with pytest.raises(RuntimeError, match="stop here"):
        run.train()
    assert not workers()
    assert len(run.vllm_generation.llm.threads) <= 3  # the rounds behind the one in progress were dropped


def test_no_round_is_sampled_that_no_step_uses(tmp_path):
    run = build(tmp_path, rollout_prefetch=3, max_steps=3)
    run.train()
    assert len(run.vllm_generation.llm.threads) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollout_prefetch": 2, "distill_coef": 1.0, "use_vllm": True}, r"`distill_coef` \(1.0\) trains the policy"),
        ({"rollout_prefetch": 2, "rollout_policy": "transport"}, "`rollout_policy`"),
        ({"rollout_prefetch": 2}, "`use_vllm` is False"),
        ({"rollout_prefetch": 2, "use_vllm": True, "vllm_enable_sleep_mode": True}, "`vllm_enable_sleep_mode=False`"),
        ({"rollout_prefetch": 2, "use_vllm": True, "vllm_tensor_parallel_size": 2}, "wait for each other"),
        ({"rollout_prefetch": -1}, "must be an integer >= 0"),
    ],
)
def test_what_cannot_be_sampled_ahead_is_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny.config(tmp_path, **{"rollout_policy": "base", **settings})


def test_trainers_that_cannot_sample_ahead_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`rollout_prefetch` \(1\) samples in a thread .*`rollout_func`"):
        build(tmp_path, rollout_prefetch=1, rollout_func=tiny.fixed_rollout)
    with pytest.raises(ValueError, match=r"its adapter 'default' would have to be sent. .*merge_and_unload"):
        build(tmp_path, rollout_prefetch=1, vllm_mode="server", model=get_peft_model(tiny.llama(), LORA))
    colocated = build(tmp_path, rollout_prefetch=1, model=get_peft_model(tiny.llama(), LORA))
    colocated.train()
    assert colocated.vllm_generation.syncs == 1
