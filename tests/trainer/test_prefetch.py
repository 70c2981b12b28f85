# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Sampling ahead: the same rounds at the same places, overlapping with training, and errors that name their round."""

import threading

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.profiler import ProfilerActivity, _ExperimentalConfig, profile
from transformers import TrainerCallback

from tests.trainer import tiny
from tests.trainer.engines import FakeClient, stand_in
from tests.trainer.test_resume import ROUNDS, Kill, check_same, start

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


VALUE = {"rollout_policy": "value", "reward_funcs": tiny.mostly_high, "rollout_prefetch": 2, "max_steps": 10}
VALUE |= {"prompt_selection": "unsolved", "train_dataset": tiny.prompts(40)}  # five rounds of eight prompts, one epoch


def watch(run):
    """The weights of the value at the start of each round, and the prompts that it records."""
    weights, recorded, prompts = [], [], run.schedule.prompts
    begin, record = run.rounds.begin, prompts.record

    def watched_begin(groups):
        weights.append({name: x.clone() for name, x in tiny.value_state(run).items()})
        begin(groups)

    def watched_record(indices, rewards):
        recorded.append(list(indices))
        record(indices, rewards)

    run.rounds.begin, prompts.record = watched_begin, watched_record
    return weights, recorded


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_rounds_of_the_value_have_weights_and_outcomes_of_the_round_that_asked(tmp_path, mode):
    run = build(tmp_path, vllm_mode=mode, **VALUE)
    weights, recorded = watch(run)
    prompts, known = run.schedule.prompts, []
    choose, adapters = prompts.choose, []

    def watched_choose(count, waiting):
        known.append((len(recorded), len(waiting)))
        return choose(count, waiting)

    def watched_send(state):
        send(state)
        adapters.append((run.sampler.sampler.adapter.number, state))

    prompts.choose = watched_choose
    send, run.sampler.sampler._send = run.sampler.sampler._send, watched_send
    run.train()
    assert known == [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2)]
    assert sorted(index for chosen in recorded for index in chosen) == list(range(40))
    numbers, states = zip(*adapters, strict=True)
    assert numbers == (1, 1, 1, 2, 3)
    for state, place in zip(states, (0, 0, 0, 1, 2), strict=True):
        expected = weights[place]
        assert len(state) == len(expected) > 0
        assert all(torch.equal(x, y) for x, y in zip(state.values(), expected.values(), strict=True))
    other = build(tmp_path, vllm_mode=mode, **{**VALUE, "rollout_prefetch": 0})
    other.train()
    assert any(not torch.equal(x, tiny.value_state(other)[name]) for name, x in tiny.value_state(run).items())


def test_a_resumed_run_samples_again_what_was_asked_for(tmp_path):
    settings = {**VALUE, "save_strategy": "steps", "save_steps": 3}
    whole = build(tmp_path / "whole", **settings)
    _, recorded = watch(whole)
    whole.train()
    killed = build(tmp_path / "killed", callbacks=[Kill(4)], **settings)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = build(tmp_path / "killed", **settings)
    _, again = watch(resumed)
    resumed.train(resume_from_checkpoint=True)
    assert len(recorded) == 5 and again[:2] == recorded[2:4]  # asked for in the first two rounds, which were kept
    assert sorted(index for chosen in (*recorded[:2], *again) for index in chosen) == list(range(40))


def test_values_that_cannot_be_sampled_ahead_are_refused(tmp_path):
    settings = {"rollout_policy": "value", "rollout_prefetch": 1, "value_backbone": "copy", "model": tiny.llama()}
    with pytest.raises(ValueError, match=r"weights that train meanwhile. Set `value_backbone='lora'`"):
        build(tmp_path, **settings)


def spans(events, name):
    return [(e.time_range.start, e.time_range.end, e.thread) for e in events if e.name == name]


def overlap(one, other):
    return sum(max(0.0, min(b, d) - max(a, c)) for a, b, _ in one for c, d, _ in other) / 1e6


@pytest.mark.parametrize(("depth", "who"), [(0, "base"), (1, "base"), (1, "value")])
def test_sampling_overlaps_with_fitting_in_a_profile(tmp_path, depth, who):
    run = build(tmp_path, rollout_prefetch=depth, rollout_policy=who, max_steps=4)
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
        ({"rollout_prefetch": 2, "rollout_policy": "transport", "use_vllm": True}, "`rollout_policy`"),
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
