# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""VGFConfig: TRL's fields, its own checks, one owner of the transport settings. Batch sizes: test_batch_sizes.py."""

import copy
import dataclasses
import inspect
import json
import pickle
import re
import warnings
from typing import get_type_hints

import pytest
from transformers import TrainingArguments
from trl import GRPOConfig, RLOOConfig, TrlParser

from vgf_llm import TransportConfig
from vgf_llm._compat import TRL_SPECIFIER, check_trl_version
from vgf_llm.trainer.config import VGFParser
from vgf_llm.trainer.config.tables import CHOICES, ENTROPY, IGNORED, RANGES, REMOVED
from vgf_llm.trainer.config.vgf_config import VGFConfig

CPU = {"output_dir": "out", "use_cpu": True, "bf16": False, "report_to": "none"}
NAN, INF = float("nan"), float("inf")


def config(**settings):
    return VGFConfig(**{**CPU, **settings})


def notes(build):
    """The configuration's own warning, if any; there is never more than one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        args = build()
    own = [entry for entry in caught if str(entry.message).startswith("VGFConfig: ")]
    assert len(own) <= 1 and all(entry.filename == __file__ for entry in own)
    return args, str(own[0].message) if own else ""


def fields(cls):
    return {item.name: item for item in dataclasses.fields(cls)}


OWN = sorted(fields(VGFConfig).keys() - fields(GRPOConfig).keys())


# The fields


def test_every_setting_of_trl_is_one_with_its_type_and_default():
    ours, theirs = get_type_hints(VGFConfig), get_type_hints(GRPOConfig)
    for name, item in fields(GRPOConfig).items():
        assert ours[name] == theirs[name], name
        assert fields(VGFConfig)[name].default == (1e-4 if name == "learning_rate" else item.default), name


def test_own_settings_are_few_documented_and_checked():
    assert len(OWN) <= 20
    hints = get_type_hints(VGFConfig)
    for name in OWN:
        assert fields(VGFConfig)[name].metadata["help"], name
        assert f"    {name} (`" in inspect.getdoc(VGFConfig), name
        if hints[name] in (int, float, int | None, float | None):
            assert name in RANGES, name
        else:
            assert name in CHOICES or name in ("transport", "value_backbone", "value_lora_target_modules"), name


def test_tables_name_settings_that_exist():
    known = fields(VGFConfig).keys() | fields(RLOOConfig).keys()
    assert IGNORED.keys() | ENTROPY.keys() <= known and not IGNORED.keys() & ENTROPY.keys()
    assert RANGES.keys() | CHOICES.keys() <= known
    assert not REMOVED.keys() & known
    assert not known & fields(TransportConfig).keys()


def test_what_trl_resolves_is_resolved_as_there():
    settings = {**CPU, "gradient_accumulation_steps": 4, "scale_rewards": True}
    ours, theirs = VGFConfig(**settings), GRPOConfig(**settings)
    for name in fields(GRPOConfig).keys() - {"learning_rate", "accelerator_config"}:
        assert getattr(ours, name) == getattr(theirs, name), name


# Settings of policy gradients


def test_policy_gradient_settings_are_named_once_and_dropped():
    given = {"beta": 0.04, "epsilon": 3e-4, "epsilon_high": 4e-4, "loss_type": "grpo", "scale_rewards": False}
    args, text = notes(lambda: config(**given, temperature=0.7))
    assert "dropped: `beta`=0.04 (the transport budget takes its place: transport_steps * step_size = 1 / beta" in text
    assert "`epsilon`=0.0003, `epsilon_high`=0.0004 (" in text
    assert "`scale_rewards`='none'" in text and "`loss_type`='grpo' (`value_loss` chooses the loss)" in text
    assert args.temperature == 0.7
    for name in given:
        assert getattr(args, name) == fields(GRPOConfig)[name].default


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_every_policy_gradient_setting_is_accepted(name):
    default = fields(GRPOConfig)[name].default if name in fields(GRPOConfig) else None
    assert name in fields(GRPOConfig) or name in fields(RLOOConfig)
    value = not default if isinstance(default, bool) else "x" if isinstance(default, str) else 7
    args, text = notes(lambda: config(**{name: value}))
    assert f"`{name}`={value!r}" in text
    assert getattr(args, name, default) == default
    if name in fields(GRPOConfig):
        assert notes(lambda: config(**{name: default}))[1] == ""


@pytest.mark.parametrize("name", sorted(ENTROPY))
def test_the_entropy_bonus_is_kept_for_a_policy_and_dropped_for_heads(name):
    default = fields(GRPOConfig)[name].default
    value = not default if isinstance(default, bool) else 0.125
    args, text = notes(lambda: config(**{name: value}))
    assert getattr(args, name) == value and "dropped" not in text
    assert f"`{name}`={value!r}: the entropy bonus is of the model behind the value" in text
    args, text = notes(lambda: config(**{name: value}, value_parametrization="vocab"))
    assert getattr(args, name) == default and f"dropped: `{name}`={value!r} (a head is no policy" in text
    assert notes(lambda: config(**{name: default}))[1] == ""
    if not isinstance(default, bool):
        with pytest.raises(ValueError, match=f"`{name}` must be a number"):
            config(**{name: NAN})


@pytest.mark.parametrize("rate", [1e-6, 1.5e-6, 2e-5, 5e-5])
def test_policy_gradient_learning_rates_are_kept_and_named(rate):
    args, text = notes(lambda: config(learning_rate=rate))
    assert args.learning_rate == rate
    assert f"`learning_rate`={rate:g} is kept" in text and "the default here is 1e-4" in text
    assert notes(lambda: config(learning_rate=rate, value_learning_rate=1e-4))[1] == ""
    assert notes(lambda: config(learning_rate=1e-4))[1] == ""


def test_reentrant_checkpointing_becomes_non_reentrant():
    args, text = notes(lambda: config(gradient_checkpointing_kwargs={"use_reentrant": True, "x": 1}))
    assert "`use_reentrant` is False instead of True" in text
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        assert getattr(args, name) == {"use_reentrant": False, "x": 1}
    assert notes(lambda: config(gradient_checkpointing_kwargs={"use_reentrant": False}))[1] == ""


def test_from_grpo_hands_the_settings_over():
    grpo = GRPOConfig(**CPU, num_generations=4, generation_batch_size=16, temperature=0.7, eval_strategy="epoch")
    args, text = notes(lambda: VGFConfig.from_grpo(grpo, transport_steps=4))
    assert (args.num_generations, args.temperature, args.transport.transport_steps) == (4, 0.7, 4)
    assert (args.steps_per_generation, args.generation_batch_size, args.eval_strategy) == (2, 16, "epoch")
    assert args.learning_rate == 1e-4 and text == ""
    assert VGFConfig.from_grpo(GRPOConfig(**CPU), generation_batch_size=24).steps_per_generation == 3
    args, text = notes(lambda: VGFConfig.from_grpo(RLOOConfig(**CPU, normalize_advantages=True)))
    assert args.num_generations == 2 and "`normalize_advantages`=True" in text and "beta" not in text
    with pytest.raises(TypeError, match=r"GRPOConfig or an RLOOConfig, got TrainingArguments"):
        VGFConfig.from_grpo(TrainingArguments("out", use_cpu=True))


# What is refused

BAD_INPUT = [
    # settings, error, what the message says
    ({"num_generation": 4}, TypeError, "no setting `num_generation`. Did you mean `num_generations`"),
    ({"stepsize": 4}, TypeError, "no setting `stepsize`. Did you mean `step_size`"),
    ({"num_generations": 1}, ValueError, "`num_generations` must be an integer >= 2 .* got 1"),
    ({"num_generations": None}, TypeError, "`num_generations` must be an integer, got None"),
    ({"num_generations_eval": 0}, ValueError, "`num_generations_eval` must be an integer or None >= 1"),
    ({"per_device_train_batch_size": 0}, ValueError, "`per_device_train_batch_size` must be an integer >= 1"),
    ({"steps_per_generation": 0}, ValueError, "`steps_per_generation` must be an integer or None >= 1"),
    ({"gradient_accumulation_steps": 10**400}, ValueError, "`gradient_accumulation_steps` must be an integer >= 1"),
    ({"seed": -1}, ValueError, r"`seed` must be an integer in \[0, 2.14748e\+09\]"),
    ({"learning_rate": 10**400}, ValueError, r"`learning_rate` must be a number in \[0, 100\], got 1000"),
    ({"learning_rate": NAN}, ValueError, r"`learning_rate` must be a number in \[0, 100\], got nan"),
    ({"learning_rate": "1e-4"}, TypeError, "`learning_rate` must be a number, got '1e-4'"),
    ({"lr_scheduler_type": "nope"}, ValueError, "`lr_scheduler_type` must be one of .*'linear', .* got 'nope'"),
    ({"save_strategy": object()}, ValueError, "`save_strategy` must be one of"),
    ({"log_completions": "x"}, TypeError, "`log_completions` must be True or False, got 'x'"),
    ({"gradient_checkpointing": 2}, TypeError, "`gradient_checkpointing` must be True or False, got 2"),
    ({"vllm_server_host": 3}, TypeError, "`vllm_server_host` must be text, got 3"),
    ({"temperature": 0.0}, ValueError, "`temperature` must be a number >= 0.01"),
    ({"top_p": 0.0}, ValueError, r"`top_p` must be a number in \(0, 1\]"),
    ({"max_completion_length": None}, TypeError, "`max_completion_length` must be an integer, got None"),
    ({"reward_weights": [1.0, NAN]}, ValueError, "`reward_weights` must be finite"),
    ({"reward_weights": ["x"]}, TypeError, "`reward_weights` must be a list of numbers"),
    ({"cache_implementation": "nope"}, ValueError, "`cache_implementation` must be one of .*'static'"),
    ({"cache_implementation": "offloaded"}, ValueError, "`cache_implementation` .* training runs on the CPU"),
    ({"generation_kwargs": "nope"}, ValueError, "`generation_kwargs` must be a dict or its JSON text, got 'nope'"),
    ({"generation_kwargs": [1]}, TypeError, "`generation_kwargs` must be a dict"),
    ({"generation_kwargs": {"nope": 1}}, ValueError, "`generation_kwargs` has 'nope', which is no argument"),
    ({"generation_kwargs": {"min_new_token": 1}}, ValueError, "Did you mean 'min_new_tokens'"),
    ({"generation_kwargs": {"temperature": "x"}}, TypeError, r"`generation_kwargs\['temperature'\]` must be a number"),
    ({"generation_kwargs": {"max_new_tokens": 0}}, ValueError, r"`generation_kwargs\['max_new_tokens'\]` must be"),
    ({"generation_kwargs": {"num_beams": 2}}, ValueError, r"`generation_kwargs\['num_beams'\]` must be 1, got 2: beam"),
    ({"generation_kwargs": {"do_sample": False}}, ValueError, r"`generation_kwargs\['do_sample'\]` must be True"),
    (
        {"generation_kwargs": {"seed": 1}, "use_vllm": True, "rollout_policy": "base"},
        ValueError,
        r"`generation_kwargs\['seed'\]` .1. would give the completions of a prompt the same tokens",
    ),
    ({"output_dir": 3}, TypeError, "`output_dir` must be text or None, got 3"),
    ({"accelerator_config": 1}, TypeError, "`accelerator_config` must be a dict, its JSON text, the path of a file"),
    ({"accelerator_config": "{nope"}, ValueError, "`accelerator_config` must be a dict or its JSON text"),
    ({"auto_find_batch_size": True}, ValueError, "`auto_find_batch_size=True` is not supported"),
    ({"use_liger_kernel": True}, ValueError, "`use_liger_kernel=True` replaces layers"),
    (
        {"use_transformers_continuous_batching": True},
        ValueError,
        "`use_transformers_continuous_batching=True` is not supported, because the value's adapter",
    ),
    ({"use_transformers_paged": True}, ValueError, "`use_transformers_paged=True` is not supported"),
    ({"torch_compile": True}, ValueError, "`torch_compile=True` .* Set `gradient_checkpointing=False`"),
    ({"pad_to_multiple_of": "eight"}, ValueError, "`pad_to_multiple_of` must be a positive integer"),
    ({"pad_to_multiple_of": 0}, ValueError, "`pad_to_multiple_of` must be a positive integer"),
    ({"value_parametrization": "q"}, ValueError, "one of .*'log_ratio', 'bilinear', 'vocab', 'sequence'.*got 'q'"),
    ({"value_parametrization": "v_head"}, ValueError, "'v_head'. was removed with transport in the space of hidden"),
    ({"value_loss": "mse"}, ValueError, "`value_loss` must be one of .*'auto', 'likelihood', .*got 'mse'"),
    (
        {"value_loss": "likelihood", "value_parametrization": "vocab"},
        ValueError,
        r"`value_loss='likelihood'` does not fit .*'vocab'`; it takes 'auto' or one of \['pairwise', 'bernoulli'",
    ),
    ({"value_loss": "regression"}, ValueError, "does not fit `value_parametrization='log_ratio'`"),
    (
        {"value_parametrization": "sequence", "value_backbone": "copy", "value_loss": "bernoulli"},
        ValueError,
        r"one of \['pairwise', 'regression'\]",
    ),
    ({"value_backbone": "LoRA"}, ValueError, "is written 'lora', got 'LoRA'"),
    ({"value_backbone": ""}, ValueError, "`value_backbone` must be one of .*'lora', 'copy', 'policy'"),
    ({"value_backbone": None}, TypeError, "`value_backbone` must be text, got None"),
    ({"value_backbone": "/dev/null"}, ValueError, "`value_backbone` .* '/dev/null' is none of them"),
    ({"value_backbone": "\0"}, ValueError, "`value_backbone`"),
    ({"value_backbone": "policy"}, ValueError, "frozen features of the policy.*'bilinear'"),
    ({"value_parametrization": "sequence"}, ValueError, "needs a backbone of its own.*`value_backbone='copy'`"),
    ({"value_head_hidden_size": 16}, ValueError, "`value_head_hidden_size` .16. is for heads"),
    ({"value_ensemble_size": 2}, ValueError, "`value_ensemble_size` .2. is for values of whole responses"),
    ({"value_head_hidden_size": 0, "value_parametrization": "vocab"}, ValueError, "an integer or None in"),
    ({"value_learning_rate": 0.0}, ValueError, r"`value_learning_rate` must be a number or None in \(0, 100\]"),
    ({"replay_ratio": -0.5}, ValueError, r"`replay_ratio` must be a number in \[0, 100\]"),
    ({"replay_ratio": INF}, ValueError, "`replay_ratio` must be a number .* got inf"),
    ({"buffer_size": -1}, ValueError, "`buffer_size` must be an integer >= 0"),
    ({"buffer_size": 4}, ValueError, "must hold at least the `num_generations` .8."),
    ({"value_holdout_ratio": 1.0}, ValueError, r"`value_holdout_ratio` must be a number in \[0, 1\)"),
    ({"distill_coef": -0.1}, ValueError, r"`distill_coef` must be a number in \[0, 1000\]"),
    ({"distill_coef": 1.0, "transport_steps": 0}, ValueError, "`transport_steps` to at least 1"),
    ({"max_rounds_without_reward": 0}, ValueError, "`max_rounds_without_reward` must be an integer >= 1"),
    ({"rollout_policy": "best"}, ValueError, r"`rollout_policy` must be one of \[None, 'base', 'value', 'transport'\]"),
    (
        {"rollout_policy": "value", "value_parametrization": "bilinear"},
        ValueError,
        "Set it to 'log_ratio', or `rollout_policy` to 'base' or 'transport'",
    ),
    ({"rollout_policy": "transport", "transport_steps": 0}, ValueError, "Set `transport_steps` to at least 1"),
    (
        {"value_parametrization": "sequence", "value_backbone": "copy", "distill_coef": 1.0},
        ValueError,
        "`rollout_policy` comes to 'base', so that none are sampled. Set `rollout_policy='transport'`",
    ),
    (
        {"num_base_generations": 1, "rollout_policy": "base"},
        ValueError,
        "`num_base_generations` .1. leaves the other completions to the value, but all of them are the base",
    ),
    ({"num_base_generations": 8}, ValueError, "must be less than `num_generations` .8."),
    ({"rollout_fraction": 0.0}, ValueError, "`rollout_fraction`"),
    ({"rollout_fraction": 0.5, "replay_ratio": 0.0}, ValueError, "ends training on the buffer alone"),
    ({"prompt_selection": "hard"}, ValueError, r"`prompt_selection` must be one of \['dataset', 'unsolved'\]"),
    ({"use_vllm": True, "rollout_policy": "transport"}, ValueError, "`rollout_policy` is 'transport'. Set `use_vllm=F"),
    *(
        ({"use_vllm": True, **settings}, ValueError, message)
        for settings, message in (
            ({"distill_coef": 1.0}, r"`distill_coef` \(1.0\) trains the base.*or `rollout_policy='base'`"),
            ({"repetition_penalty": 1.1}, r"`repetition_penalty` \(1.1\) acts after the choice of candidates"),
            ({"min_p": 0.1, "top_p": 0.9}, r"`min_p` \(0.1\) and `top_p` \(0.9\) are applied in this order by vLLM"),
            ({"vllm_tensor_parallel_size": 2}, r"`vllm_tensor_parallel_size` \(2\) hands rows of several processes"),
        )
    ),
    ({"rollout_prefetch": 1, "rollout_policy": "base"}, ValueError, "`use_vllm` is False"),
    *(
        ({"rollout_prefetch": 1, "rollout_policy": "base", "use_vllm": True, **settings}, ValueError, message)
        for settings, message in (
            ({"distill_coef": 1.0}, "`distill_coef` .1.0. trains the policy meanwhile"),
            ({"vllm_enable_sleep_mode": True}, "Set `vllm_enable_sleep_mode=False`"),
            ({"vllm_tensor_parallel_size": 2}, "`vllm_mode='server'` or `vllm_tensor_parallel_size=1`"),
        )
    ),
    ({"step_size": 0.0}, ValueError, "`step_size`"),
    ({"transport_steps": -1}, ValueError, "`transport`: `transport_steps` must be an integer"),
    ({"transport": {"steps": 1}}, ValueError, "`transport` has no field 'steps'"),
    ({"transport": "{nope"}, ValueError, "`transport` must be a dict or its JSON text"),
    ({"transport": [1]}, TypeError, "`transport` must be a TransportConfig, a dict of its fields or None"),
    ({"transport": {"space": "sequence_embedding"}}, ValueError, "`transport` has the space 'sequence_embedding', but"),
    (
        {"value_parametrization": "sequence", "value_backbone": "copy", "transport": {"space": "logit"}},
        ValueError,
        "`transport` has the space 'logit', but",
    ),
    *(({name: 1}, TypeError, f"`{name}` is no longer a setting: {re.escape(text)}") for name, text in REMOVED.items()),
]


@pytest.mark.parametrize(("settings", "error", "message"), BAD_INPUT, ids=lambda value: str(value)[:60])
def test_bad_input(settings, error, message):
    with pytest.raises(error, match=message):
        config(**settings)


# Who samples


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "value"),
        ({"rollout_policy": "auto"}, "value"),
        ({"rollout_policy": "base"}, "base"),
        ({"rollout_policy": "transport"}, "transport"),
        ({"value_parametrization": "vocab"}, "base"),
        ({"value_parametrization": "vocab", "rollout_policy": "transport"}, "transport"),
        ({"value_parametrization": "sequence", "value_backbone": "copy"}, "base"),
        ({"rollout_policy": "base", "use_vllm": True, "rollout_prefetch": 2}, "base"),
    ],
)
def test_rollout_policy_alone_says_who_samples(settings, expected):
    args = config(**settings)
    assert args.samples_from == expected


# Sampling settings


def test_generation_kwargs_that_are_settings_become_those():
    given = {"temperature": 2, "top_k": 5, "max_new_tokens": 7, "cache_implementation": "static", "do_sample": True}
    args = config(generation_kwargs={**given, "min_new_tokens": 2}, temperature=0.5)
    assert args.generation_kwargs == {"min_new_tokens": 2}
    assert (args.temperature, args.top_k, args.max_completion_length) == (2.0, 5, 7)
    assert isinstance(args.temperature, float) and args.cache_implementation == "static"
    assert config(generation_kwargs={"top_p": 0.5}).generation_kwargs is None
    assert config(generation_kwargs='{"top_p": 0.5}').top_p == 0.5


def test_integers_given_for_numbers_are_floats():
    args = config(temperature=2, repetition_penalty=1, replay_ratio=2)
    assert all(isinstance(value, float) for value in (args.temperature, args.repetition_penalty, args.replay_ratio))


def test_pad_to_multiple_of_is_read_from_text():
    assert config().pad_to_multiple_of is None
    assert config(pad_to_multiple_of="8").pad_to_multiple_of == 8
    assert config(pad_to_multiple_of="none").pad_to_multiple_of is None


def test_paths_may_be_path_objects(tmp_path):
    settings = {"output_dir": tmp_path, "value_backbone": tmp_path, "value_parametrization": "bilinear"}
    assert config(**settings).value_backbone == str(tmp_path)


# Transport


@pytest.mark.parametrize(
    "settings",
    [
        {"step_size": 0.5, "max_kl": 1.0},
        {"transport": {"step_size": 0.5, "max_kl": 1.0}},
        {"transport": '{"step_size": 0.5, "max_kl": 1.0}'},
        {"transport": TransportConfig(step_size=0.5, max_kl=1.0)},
        {"transport": {"max_kl": 1.0}, "step_size": 0.5},
        {"transport": {"step_size": 0.5, "max_kl": 1.0}, "step_size": 0.5},
    ],
)
def test_transport_settings_have_one_owner(settings):
    args = config(**settings)
    assert args.transport == TransportConfig(step_size=0.5, max_kl=1.0)
    assert not hasattr(args, "step_size")


def test_transport_is_a_copy_of_what_was_given():
    transport = TransportConfig()
    args = config(transport=transport)
    args.transport.step_size = 0.5
    assert transport.step_size == 0.125


def test_default_transport():
    assert config().transport == TransportConfig()
    assert config().transport.transport_steps * config().transport.step_size == 1.0
    whole = config(value_parametrization="sequence", value_backbone="copy")
    assert whole.transport == TransportConfig(space="sequence_embedding")


def test_a_transport_setting_given_twice_has_to_agree():
    with pytest.raises(ValueError, match=r"`step_size` is 0.5, but 0.25 in `transport`. Give it once"):
        config(step_size=0.5, transport={"step_size": 0.25})


def test_a_configuration_survives_being_written(tmp_path):
    args = config(step_size=0.5, value_loss="pairwise", generation_kwargs={"top_k": 5}, eval_strategy="steps")
    settings = args.to_dict()
    assert settings["transport"] == dataclasses.asdict(TransportConfig(step_size=0.5))
    again, text = notes(lambda: VGFConfig(**json.loads(args.to_json_string())))
    assert text == "" and again.to_dict() == settings
    assert dataclasses.replace(args, seed=3).transport == args.transport
    assert pickle.loads(pickle.dumps(args)).to_dict() == settings
    assert copy.deepcopy(args).transport == args.transport
    assert dataclasses.asdict(args)["transport"]["step_size"] == 0.5
    assert "step_size" in args.to_sanitized_dict()["transport"]
    assert "step_size" in str(args)


# Command lines and YAML


@dataclasses.dataclass
class Script:
    """A recipe's own arguments, one of them with the name of a transport setting."""

    dataset: str = "d"
    num_particles: int = 3


def parse(*arguments, parser=VGFParser, types=(Script, VGFConfig)):
    return parser(types).parse_args_and_config(["--output_dir", "out", "--use_cpu", "--bf16", "false", *arguments])


def parsed(*arguments, **options):
    return parse(*arguments, **options)[-1]


def test_command_line():
    args = parsed("--value_backbone", "some/model", "--max_kl", "0.5", "--step-size", "1e-1", "--no_rescore")
    assert args.value_backbone == "some/model"
    assert args.transport == TransportConfig(max_kl=0.5, step_size=0.1, rescore=False)
    args = parsed("--transport", '{"step_size": 0.25}', "--max_kl", "0.5", "--generation_kwargs", '{"top_k": 2}')
    assert args.transport == TransportConfig(max_kl=0.5, step_size=0.25) and args.top_k == 2
    assert parsed().transport == TransportConfig()
    with pytest.raises(ValueError, match=r"`step_size` is 0.5, but 0.25 in `transport`"):
        parsed("--transport", '{"step_size": 0.25}', "--step_size", "0.5")
    with pytest.raises(TypeError, match="`value_lora_r` is no longer a setting"):
        parsed("--value-lora-r", "8")
    with pytest.raises(ValueError, match="--nope"):
        parsed("--nope", "8")


def test_yaml_takes_transport_flat_and_nested(tmp_path):
    path = tmp_path / "config.yaml"
    for text in ("step_size: 1e-1\nmax_kl: 0.5\n", "transport: {step_size: 1e-1, max_kl: 0.5}\n"):
        path.write_text(
            f"{text}num_generations: 4\nreward_weights: [1.0, 0.5]\ngeneration_kwargs: {{min_new_tokens: 2}}\n"
            "value_parametrization: vocab\nvalue_head_hidden_size: 32\n"
        )
        args = parsed("--config", str(path), "--num_generations", "2")
        assert args.transport == TransportConfig(step_size=0.1, max_kl=0.5)
        assert (args.num_generations, args.reward_weights, args.value_head_hidden_size) == (2, [1.0, 0.5], 32)
        assert args.generation_kwargs == {"min_new_tokens": 2}
        # The command line wins, in either form.
        expected = TransportConfig(step_size=0.25, max_kl=0.5)
        assert parsed("--config", str(path), "--step_size", "0.25").transport == expected
        assert parsed("--config", str(path), "--transport", '{"step_size": 0.25}').transport == expected
    path.write_text("step_size: 0.5\ntransport: {step_size: 0.25}\n")
    with pytest.raises(ValueError, match=r"`step_size` is 0.5, but 0.25 in `transport`"):
        parsed("--config", str(path))
    path.write_text("winner_coef: 0.0\n")
    with pytest.raises(TypeError, match="`winner_coef` is no longer a setting"):
        parsed("--config", str(path))
    path.write_text("num_generation: 2\n")
    with pytest.raises(ValueError, match="num_generation"):
        parsed("--config", str(path))
    path.write_text("beta: 0.1\n")
    with pytest.warns(UserWarning, match="`beta`=0.1"):
        assert parsed("--config", str(path)).beta == 0.0


def test_other_dataclasses_keep_their_names(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("num_particles: 5\ntransport: {num_particles: 2}\n")
    script, args = parse("--config", str(path))
    assert (script.num_particles, args.transport.num_particles) == (5, 2)
    assert parse("--num_particles", "4")[0].num_particles == 4
    assert parsed("--num_particles", "4", types=(VGFConfig,)).transport.num_particles == 4


def test_dicts_and_files_are_read_as_well(tmp_path):
    parser = VGFParser((Script, VGFConfig))
    _, args = parser.parse_dict({**CPU, "dataset": "e", "step_size": 0.5, "transport": {"max_kl": 1.0}})
    assert args.transport == TransportConfig(step_size=0.5, max_kl=1.0)
    path = tmp_path / "config.yaml"
    path.write_text("output_dir: out\nuse_cpu: true\nbf16: false\nstep_size: 0.5\n")
    assert parser.parse_yaml_file(path)[-1].transport.step_size == 0.5


def test_trls_own_parser_takes_transport_as_json():
    assert parsed("--transport", '{"step_size": 0.25}', parser=TrlParser).transport.step_size == 0.25


@pytest.mark.parametrize("name", sorted({*OWN, *fields(TransportConfig)} - {"transport"}))
def test_command_line_and_yaml_give_every_setting_its_default_back(tmp_path, name):
    args = config()
    default = getattr(args if name in OWN else args.transport, name)
    path = tmp_path / "config.yaml"
    path.write_text(f"{name}: {'null' if default is None else default}\n")
    for arguments in ([f"--{name}", str(default)] if default is not None else [], ["--config", str(path)]):
        found = parsed(*arguments, types=(VGFConfig,))
        assert getattr(found if name in OWN else found.transport, name) == default


def test_subclasses_are_parsed_too():
    @dataclasses.dataclass
    class Mine(VGFConfig):
        extra: int = 1

    args = parsed("--step_size", "0.5", "--extra", "2", types=(Mine,))
    assert (args.extra, args.transport.step_size) == (2, 0.5)
    with pytest.raises(ValueError, match="value_loss"):
        Mine(**CPU, value_loss="x")


@pytest.mark.parametrize("found", [None, "1.15.3", "1.17.0", "2.0", "1.16.0.dev0"])
def test_other_trl_versions_are_refused(found):
    with pytest.raises(ImportError, match=r"needs trl>=1.16,<1.17, found (no )?trl ?" + (found or "")):
        check_trl_version(found)


def test_supported_trl_versions_are_accepted():
    assert TRL_SPECIFIER == ">=1.16,<1.17"
    for found in ("1.16", "1.16.0", "1.16.9"):
        check_trl_version(found)


@pytest.mark.parametrize(
    "value", [NAN, INF, -INF, 10**400, -(10**400), 10**5000, "1", b"1", [], object(), 1j, True], ids=type
)
def test_ranges_refuse_what_is_no_finite_number(value):
    for name, allowed in RANGES.items():
        with pytest.raises((ValueError, TypeError), match=f"`{name}` must be"):
            allowed.check(name, value)
