# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""VGFConfig: TRL's fields and batch rules, its own ranges, and reading it from a command line and from YAML."""

import dataclasses
import itertools
import math
import warnings
from typing import get_type_hints

import pytest
import torch
from transformers import TrainingArguments
from trl import GRPOConfig, RLOOConfig, TrlParser

from vgf_llm._compat import TRL_SPECIFIER, check_trl_version
from vgf_llm.trainer.vgf_config import _RANGES, VGFConfig

CPU = {"output_dir": "out", "use_cpu": True, "bf16": False, "report_to": "none"}
DROPPED = {
    "beta",
    "epsilon",
    "epsilon_high",
    "ref_model_mixup_alpha",
    "ref_model_sync_steps",
    "router_aux_loss_coef",
    "sync_ref_model",
}
NAN, INF = float("nan"), float("inf")


def config(**settings):
    return VGFConfig(**{**CPU, **settings})


def fields(cls):
    return {item.name: item for item in dataclasses.fields(cls)}


def shared_fields():
    base, grpo, rloo = fields(TrainingArguments), fields(GRPOConfig), fields(RLOOConfig)
    return {name for name in grpo if name in rloo and name not in base} | {"remove_unused_columns", "learning_rate"}


def test_the_fields_trl_shares_are_there_but_for_the_policy_gradient():
    own = fields(VGFConfig)
    assert shared_fields() - set(own) == DROPPED
    assert not DROPPED & set(own)
    assert not {name for name in own if name.startswith("value_")} & set(fields(GRPOConfig))


@pytest.mark.parametrize("name", sorted(shared_fields() - DROPPED))
def test_shared_field_has_trls_type_and_default(name):
    ours, theirs = fields(VGFConfig)[name], fields(GRPOConfig)[name]
    # The annotations, not `Field.type`, which a parser that has seen the class rewrites in place.
    assert get_type_hints(VGFConfig)[name] == get_type_hints(GRPOConfig)[name]
    assert ours.default == (1e-4 if name == "learning_rate" else theirs.default)


def test_every_field_of_the_package_has_help_and_is_documented():
    docs = VGFConfig.__doc__ + VGFConfig.__mro__[1].__doc__
    for name, item in fields(VGFConfig).items():
        if name not in fields(TrainingArguments):
            assert item.metadata["help"], name
            assert f"        {name} (`" in docs, name


def test_every_number_of_vgf_has_a_range():
    own = set(fields(VGFConfig)) - set(fields(GRPOConfig))
    numeric = {name for name in own if fields(VGFConfig)[name].type in (int, float, int | None, float | None)}
    assert numeric == set(_RANGES)


@pytest.mark.parametrize(
    ("per_device", "accumulation", "generation_batch_size", "steps_per_generation", "num_generations", "world_size"),
    itertools.product((2, 8), (1, 3), (None, 16, 48), (None, 2), (2, 4, 6), (1, 2)),
)
def test_batch_sizes_are_resolved_as_trl_does(
    monkeypatch, per_device, accumulation, generation_batch_size, steps_per_generation, num_generations, world_size
):
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: world_size))
    settings = {
        **CPU,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulation,
        "generation_batch_size": generation_batch_size,
        "steps_per_generation": steps_per_generation,
        "num_generations": num_generations,
    }
    try:
        expected = GRPOConfig(**settings)
    except ValueError:
        with pytest.raises(ValueError):
            VGFConfig(**settings, value_parametrization="vocab")
        return
    found = VGFConfig(**settings, value_parametrization="vocab")
    assert found.generation_batch_size == expected.generation_batch_size
    assert found.steps_per_generation == expected.steps_per_generation


def test_evaluation_may_sample_fewer_completions():
    args = config(eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=6, num_generations_eval=2)
    assert args.num_generations_eval == 2
    with pytest.raises(ValueError, match="per_device_eval_batch_size"):
        config(eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=6)


def test_pad_to_multiple_of_is_read_from_text():
    assert config().pad_to_multiple_of is None
    assert config(pad_to_multiple_of="8").pad_to_multiple_of == 8
    assert config(pad_to_multiple_of="none").pad_to_multiple_of is None


def test_paged_attention_is_the_deprecated_name():
    with pytest.warns(FutureWarning, match="use_transformers_continuous_batching"):
        assert config(use_transformers_paged=True).use_transformers_continuous_batching


BAD_INPUT = [
    # settings, error, what the message says
    ({"num_generations": 1}, ValueError, "`num_generations` must be at least 2, got 1"),
    ({"num_generations": 0}, ValueError, "`num_generations` must be at least 1, got 0"),
    ({"num_generations": None}, TypeError, "`num_generations` must be an integer, got None"),
    ({"num_generations_eval": 0}, ValueError, "`num_generations_eval` must be at least 1"),
    ({"per_device_train_batch_size": 0}, ValueError, "`per_device_train_batch_size` must be at least 1"),
    (
        {"per_device_train_batch_size": 6, "num_generations": 4, "value_parametrization": "vocab"},
        ValueError,
        r"`num_generations` for this batch: \[2, 3, 6\]; .* near 6 for this `num_generations`: \[4, 8, 12\]",
    ),
    (
        {
            "per_device_train_batch_size": 3,
            "num_generations": 4,
            "gradient_accumulation_steps": 2,
            "value_parametrization": "vocab",
        },
        ValueError,
        r"near 3 for this `num_generations`: \[2, 4, 6\]",
    ),
    (
        {"per_device_train_batch_size": 6, "num_generations": 4, "gradient_accumulation_steps": 2},
        ValueError,
        r"`per_device_train_batch_size`: \[4, 8, 12\]; of `num_generations`: \[2, 3, 6\]",
    ),
    ({"generation_batch_size": 20}, ValueError, r"`generation_batch_size`: \[16, 24, 32\]"),
    ({"generation_batch_size": 16, "steps_per_generation": 2}, ValueError, "give one of them"),
    ({"steps_per_generation": 0}, ValueError, "`steps_per_generation` must be at least 1"),
    (
        {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 6},
        ValueError,
        r"`num_generations_eval`: \[1, 2, 3, 6\]; .*\[8, 16\]",
    ),
    ({"auto_find_batch_size": True}, ValueError, "`auto_find_batch_size=True` is not supported"),
    ({"pad_to_multiple_of": "eight"}, ValueError, "`pad_to_multiple_of` must be a positive integer"),
    ({"pad_to_multiple_of": 0}, ValueError, "`pad_to_multiple_of` must be a positive integer"),
    ({"value_parametrization": "q"}, ValueError, "one of .*'log_ratio', 'bilinear', 'vocab', 'v_head'.*got 'q'"),
    ({"value_loss": "mse"}, ValueError, "one of .*'auto', 'pairwise', 'likelihood', .*'regression'.*got 'mse'"),
    (
        {"value_loss": "likelihood", "value_parametrization": "vocab"},
        ValueError,
        "`value_loss='likelihood'` is of the model behind a log-ratio value, but .* is 'vocab'. Set it to 'log_ratio'",
    ),
    ({"value_loss": "likelihood", "winner_coef": 0.5}, ValueError, r"`winner_coef` \(0.5\) weighs .* Leave one"),
    ({"transport_metric": "l2"}, ValueError, "one of .*'fisher', 'euclidean'.*got 'l2'"),
    ({"value_backbone": "LoRA"}, ValueError, "is written 'lora', got 'LoRA'"),
    ({"value_backbone": ""}, ValueError, "`value_backbone` must be one of .*'lora', 'copy', 'policy'"),
    ({"value_backbone": None}, ValueError, "`value_backbone` must be one of"),
    ({"value_backbone": "policy"}, ValueError, "frozen features of the policy.*'bilinear'"),
    ({"value_head_hidden_size": 16}, ValueError, "`value_head_hidden_size` .16. is for heads"),
    ({"value_head_hidden_size": 0, "value_parametrization": "vocab"}, ValueError, "an integer or None >= 1"),
    ({"value_lora_target_modules": []}, ValueError, "`value_lora_target_modules` must be"),
    ({"value_lora_r": 0}, ValueError, "`value_lora_r` must be an integer >= 1"),
    ({"value_lora_alpha": -1}, ValueError, "`value_lora_alpha` must be an integer >= 1"),
    ({"value_learning_rate": 0.0}, ValueError, "`value_learning_rate` must be a number or None > 0"),
    ({"value_coef": -1.0}, ValueError, "`value_coef` must be a number >= 0"),
    ({"value_coef": 0.0}, ValueError, "nothing to train"),
    ({"td_lambda": 1.1}, ValueError, r"`td_lambda` must be a number in \[0, 1\], got 1.1"),
    ({"td_lambda": 0.9}, ValueError, "`td_lambda` .0.9. has no effect on the pairwise value loss"),
    ({"expectile": 1.0}, ValueError, r"`expectile` must be a number in \(0, 1\)"),
    ({"expectile": 0.7, "value_parametrization": "vocab"}, ValueError, "Set `value_loss='regression'`"),
    ({"value_loss": "regression"}, ValueError, "does not fit `value_parametrization='log_ratio'`"),
    ({"replay_ratio": -0.5}, ValueError, "`replay_ratio` must be a number >= 0"),
    ({"replay_ratio": INF}, ValueError, "`replay_ratio` must be a number >= 0 and finite, got inf"),
    ({"buffer_size": -1}, ValueError, "`buffer_size` must be an integer >= 0"),
    ({"buffer_size": 4}, ValueError, "must hold at least the `num_generations` .8."),
    ({"value_holdout_ratio": 1.0}, ValueError, r"`value_holdout_ratio` must be a number in \[0, 1\)"),
    ({"distill_coef": -0.1}, ValueError, "`distill_coef` must be a number >= 0"),
    ({"distill_coef": 1.0, "transport_steps": 0}, ValueError, "`transport_steps` to at least 1"),
    ({"transport_steps": -1}, ValueError, "`transport_steps` must be an integer >= 0 and finite, got -1"),
    ({"transport_steps": 2.5}, TypeError, "`transport_steps` must be an integer, got 2.5"),
    ({"transport_steps": True}, TypeError, "`transport_steps` must be an integer, got True"),
    ({"rollout_policy": "base"}, ValueError, r"`rollout_policy` must be one of \['auto', 'transport', 'value'\]"),
    (
        {"num_base_generations": 1, "rollout_policy": "transport"},
        ValueError,
        "`num_base_generations` .1. leaves the other completions to the value, but all of them are the base",
    ),
    ({"num_base_generations": 8}, ValueError, "must be less than `num_generations` .8."),
    ({"rollout_fraction": 0.0}, ValueError, "`rollout_fraction`"),
    ({"rollout_fraction": 0.5, "replay_ratio": 0.0}, ValueError, "ends training on the buffer alone"),
    ({"prompt_selection": "hard"}, ValueError, r"`prompt_selection` must be one of \['dataset', 'unsolved'\]"),
    (
        {"prompt_selection": "unsolved", "rollout_prefetch": 1, "use_vllm": True},
        ValueError,
        "`rollout_prefetch` .1. samples rounds before the outcomes are known",
    ),
    ({"rollout_policy": "value", "value_parametrization": "bilinear"}, ValueError, "Set it to 'log_ratio'"),
    (
        {"rollout_policy": "value", "value_parametrization": "log_ratio", "rollout_transport_steps": 2},
        ValueError,
        "without transport, but `rollout_transport_steps` is 2",
    ),
    (
        {"rollout_policy": "value", "value_parametrization": "log_ratio", "use_vllm": True},
        ValueError,
        "vLLM's engine does not hold",
    ),
    ({"rollout_transport_steps": -1}, ValueError, "`rollout_transport_steps` must be an integer >= 0"),
    ({"step_size": -0.1}, ValueError, "`step_size` must be a number > 0"),
    ({"step_size": 0.0}, ValueError, "`step_size` must be a number > 0"),
    ({"step_size": NAN}, ValueError, "`step_size` must be a number > 0 and finite, got nan"),
    ({"step_size": INF}, ValueError, "`step_size` must be a number > 0 and finite, got inf"),
    ({"step_size": "0.1"}, TypeError, "`step_size` must be a number, got '0.1' .str."),
    ({"top_k_candidates": 0}, ValueError, "`top_k_candidates` must be an integer >= 1"),
    ({"min_candidate_prob": 1.0}, ValueError, r"`min_candidate_prob` must be a number in \[0, 1\)"),
    ({"min_candidate_prob": -0.1}, ValueError, "`min_candidate_prob`"),
    ({"max_kl": 0.0}, ValueError, "`max_kl` must be a number or None > 0"),
    ({"max_kl": NAN}, ValueError, "`max_kl` must be a number or None > 0"),
]


@pytest.mark.parametrize(("settings", "error", "message"), BAD_INPUT, ids=lambda value: str(value)[:60])
def test_bad_input(settings, error, message):
    with pytest.raises(error, match=message):
        config(**settings)


def test_group_sizes_that_an_error_proposes_are_accepted():
    for per_device in (4, 8, 12):
        assert config(per_device_train_batch_size=per_device, num_generations=4).generation_batch_size == per_device
    # Two steps of 6 hold three groups of 4, which only a loss that needs whole groups refuses.
    settings = {"per_device_train_batch_size": 6, "num_generations": 4, "gradient_accumulation_steps": 2}
    assert config(**settings, value_parametrization="vocab").generation_batch_size == 12
    with pytest.raises(ValueError, match="per_device_train_batch_size"):
        config(**settings)


@pytest.mark.parametrize(
    ("settings", "rewards", "expected"),
    [
        ({}, [0.0, 1.0, NAN], "likelihood"),
        ({}, [0.0, 0.5], "pairwise"),
        ({"winner_coef": 0.5}, [0.0, 1.0], "pairwise"),
        ({"winner_coef": 1.0}, [0.0, 1.0], "pairwise"),
        ({"value_loss": "pairwise"}, [0.0, 1.0], "pairwise"),
        ({"value_loss": "likelihood"}, [0.0, 1.0], "likelihood"),
        ({"value_loss": "bernoulli"}, [0.3, 1.0], "bernoulli"),
        ({"value_parametrization": "vocab"}, [0.0, 1.0, NAN], "bernoulli"),
        ({"value_parametrization": "vocab"}, [0.0, 0.5], "regression"),
        ({"value_parametrization": "vocab", "value_loss": "pairwise"}, [0.0, 0.5], "pairwise"),
    ],
)
def test_auto_loss(settings, rewards, expected):
    args = config(**settings)
    assert args.resolve_value_loss(torch.tensor(rewards)) == expected
    assert args.needs_whole_groups == (expected == "pairwise" or args.value_parametrization == "log_ratio")
    pairs = args.resolve_value_loss(torch.tensor(rewards), pairs=True)
    assert pairs == (
        "pairwise" if args.value_loss == "auto" and args.value_parametrization == "log_ratio" else expected
    )


@pytest.mark.parametrize(
    ("settings", "rewards", "expected"),
    [
        ({}, [0.0, 1.0, NAN], 1.0),
        ({}, [0.0, 0.5, 1.0], 0.0),
        ({}, [-1.0, 1.0], 0.0),
        ({"winner_coef": 0.3}, [0.0, 0.5], 0.3),
        ({"winner_coef": 0.0}, [0.0, 1.0], 0.0),
    ],
)
def test_winners_are_a_target_of_outcomes_alone(settings, rewards, expected):
    assert config(**settings).resolve_winner_coef(torch.tensor(rewards)) == expected


def test_default_budget_is_one():
    assert config().transport_steps * config().step_size == 1.0


def parse(*arguments):
    (args,) = TrlParser(VGFConfig).parse_args_and_config(
        ["--output_dir", "out", "--use_cpu", "--bf16", "false", *arguments]
    )
    return args


def test_command_line():
    args = parse("--value_backbone", "some/model", "--max_kl", "0.5", "--value_lora_target_modules", "q_proj", "v_proj")
    assert (args.value_backbone, args.max_kl, args.value_lora_target_modules) == (
        "some/model",
        0.5,
        ["q_proj", "v_proj"],
    )
    args = parse("--value_lora_target_modules", "all-linear", "--max_kl", "none", "--step-size", "1e-1")
    assert (args.value_lora_target_modules, args.max_kl, args.step_size) == ("all-linear", None, 0.1)


@pytest.mark.parametrize("name", sorted(set(fields(VGFConfig)) - set(fields(GRPOConfig))))
def test_command_line_and_yaml_give_every_own_field_its_default_back(tmp_path, name):
    default = getattr(config(), name)
    if default is not None:
        assert getattr(parse(f"--{name}", str(default)), name) == default
    path = tmp_path / "config.yaml"
    path.write_text(f"{name}: {'null' if default is None else default}\n")
    assert getattr(parse("--config", str(path)), name) == default


def test_yaml(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "num_generations: 4\nstep_size: 1e-1\nvalue_lora_target_modules: [q_proj]\nreward_weights: [1.0, 0.5]\n"
        "generation_kwargs: {min_new_tokens: 2}\nvalue_parametrization: vocab\nvalue_head_hidden_size: 32\n"
    )
    args = parse("--config", str(path), "--num_generations", "2")
    assert (args.num_generations, args.step_size) == (2, 0.1)
    assert (args.value_lora_target_modules, args.reward_weights) == (["q_proj"], [1.0, 0.5])
    assert (args.generation_kwargs, args.value_head_hidden_size) == ({"min_new_tokens": 2}, 32)
    path.write_text("beta: 0.1\n")
    with pytest.raises(ValueError, match="beta"):
        parse("--config", str(path))


def test_dict_settings_are_read_from_json_text():
    assert parse("--generation_kwargs", '{"min_new_tokens": 2}').generation_kwargs == {"min_new_tokens": 2}


def test_from_grpo_copies_what_is_shared_and_names_what_is_not():
    grpo = GRPOConfig(
        **CPU,
        num_generations=4,
        generation_batch_size=16,
        temperature=0.7,
        beta=0.1,
        epsilon=0.3,
        eval_strategy="epoch",
    )
    with pytest.warns(UserWarning, match=r"dropped: beta=0.1, epsilon=0.3\.") as caught:
        args = VGFConfig.from_grpo(grpo, transport_steps=4)
    assert caught[0].filename == __file__
    assert (args.num_generations, args.temperature, args.transport_steps) == (4, 0.7, 4)
    assert (args.steps_per_generation, args.generation_batch_size, args.eval_strategy) == (2, 16, "epoch")
    assert args.learning_rate == 1e-4


def test_from_grpo_keeps_a_learning_rate_that_was_set_and_says_nothing_without_need():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert VGFConfig.from_grpo(GRPOConfig(**CPU, learning_rate=3e-5)).learning_rate == 3e-5
        assert VGFConfig.from_grpo(GRPOConfig(**CPU), generation_batch_size=24).steps_per_generation == 3
        assert VGFConfig.from_grpo(RLOOConfig(**CPU)).num_generations == 2


def test_from_grpo_refuses_other_configs():
    with pytest.raises(TypeError, match=r"GRPOConfig or an RLOOConfig, got TrainingArguments"):
        VGFConfig.from_grpo(TrainingArguments("out", use_cpu=True))


@pytest.mark.parametrize("found", [None, "1.15.3", "1.17.0", "2.0", "1.16.0.dev0"])
def test_other_trl_versions_are_refused(found):
    with pytest.raises(ImportError, match=r"needs trl>=1.16,<1.17, found (no )?trl ?" + (found or "")):
        check_trl_version(found)


def test_supported_trl_versions_are_accepted():
    assert TRL_SPECIFIER == ">=1.16,<1.17"
    for found in ("1.16", "1.16.0", "1.16.9"):
        check_trl_version(found)


def test_ranges_refuse_what_is_not_finite():
    for name, allowed in _RANGES.items():
        for value in (NAN, INF, -INF):
            with pytest.raises((ValueError, TypeError), match=name):
                allowed.check(name, value)
        assert math.isfinite(allowed.low)
