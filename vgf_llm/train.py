# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`vgf train`: what `trl grpo` does, with a value in the place of the policy gradient.

    vgf train --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --dataset_name trl-lib/DeepMath-103K \
        --reward_funcs accuracy_reward --output_dir my-value

Every field of `VGFConfig` and of TRL's `ModelConfig` is an option, and `--config FILE` reads a YAML file of them. What
`accelerate launch` takes (`--num_processes 8`, `--accelerate_config zero3`) is handed to it.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from accelerate.commands.launch import launch_command_parser
from datasets import load_dataset
from transformers.utils import is_matplotlib_available
from trl import DatasetMixtureConfig, ModelConfig, get_dataset, get_peft_config, get_quantization_config, rewards

from vgf_llm import shipped
from vgf_llm._compat import GRPOScriptArguments, resolve_accelerate_config_argument
from vgf_llm.command_line import did_you_mean
from vgf_llm.trainer import VGFConfig, VGFTrainer
from vgf_llm.trainer.config import VGFParser, settings_dict
from vgf_llm.trainer.watch.plots import PlotCallback
from vgf_llm.trainer.watch.progress import VGFProgressCallback

# TRL's rewards that take no settings.
REWARDS = ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward")


def load_reward_func(name: str) -> Any:
    """Returns one of TRL's rewards, or what a dotted path names, the present folder included.

    Example:
        >>> load_reward_func("accuracy_reward").__name__
        'accuracy_reward'
    """
    if name in REWARDS:
        return getattr(rewards, name)
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ValueError(
            f"`reward_funcs` takes {', '.join(REWARDS)} and dotted paths such as my_rewards.exact_answer; got {name!r}."
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"`reward_funcs` names {name!r}, which cannot be imported ({error}).") from error


def load_splits(script: GRPOScriptArguments, mixture: DatasetMixtureConfig) -> Any:
    """Returns the splits that the options name: a hub id or a folder, or TRL's mixture of several."""
    if bool(mixture.datasets) == bool(script.dataset_name):
        found = "both are given" if script.dataset_name else "none is given"
        raise ValueError(f"Give the data by `--dataset_name`, or by `datasets` in a YAML file; {found}.")
    if mixture.datasets:
        return get_dataset(mixture)
    return load_dataset(script.dataset_name, name=script.dataset_config, streaming=script.dataset_streaming)


def make_parser() -> VGFParser:
    """Returns the parser of `vgf train`."""
    example = "--model_name_or_path MODEL --dataset_name DATA --reward_funcs accuracy_reward --output_dir my-value"
    return VGFParser(
        (GRPOScriptArguments, VGFConfig, ModelConfig, DatasetMixtureConfig),
        prog="vgf train",
        epilog=f"Example: vgf train {example}",
    )


def reward_funcs_of(script: GRPOScriptArguments, model: ModelConfig) -> list[Any] | None:
    """Returns the reward functions that the options name, `None` without any, which preference pairs need none of."""
    if model.model_name_or_path is None:
        raise ValueError("`--model_name_or_path` is missing: the hub id or the folder of the policy.")
    funcs = [load_reward_func(name) for name in script.reward_funcs or ()]
    return [*funcs, *filter(None, [script.reward_model_name_or_path])] or None


def train(argv: Sequence[str] | None = None) -> None:
    """Trains and saves, in this process, by the given options or its own; `launch` starts processes."""
    script, args, model, mixture = make_parser().parse_args_and_config(
        None if argv is None else list(argv), fail_with_unknown_args=False
    )
    reward_funcs = reward_funcs_of(script, model)
    splits = load_splits(script, mixture)
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **settings_dict(args.model_init_kwargs),
    }
    trainer = VGFTrainer(
        model.model_name_or_path,
        reward_funcs,
        args,
        train_dataset=splits[script.dataset_train_split],
        eval_dataset=splits[script.dataset_test_split] if args.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.add_callback(VGFProgressCallback(trainer))
    if is_matplotlib_available():
        trainer.add_callback(PlotCallback(trainer))
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    trainer.accelerator.print(f"Saved to {args.output_dir}. Next: vgf generate {args.output_dir} PROMPT")
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)


def launch(argv: Sequence[str]) -> None:
    """Runs `train` under `accelerate launch`, after a look at the options of both."""
    parser, launcher = make_parser(), launch_command_parser()
    script, _, model, _, config_rest, rest = parser.parse_args_and_config(
        list(argv), return_remaining_strings=True, separate_remaining_strings=True
    )
    known = [*parser._option_string_actions, *launcher._option_string_actions, "--accelerate_config"]
    for name in (text.split("=")[0] for text in rest if text.startswith("--")):
        if name not in known:
            hint = did_you_mean(name, known, otherwise=" `vgf train --help` lists them.")
            raise ValueError(f"`vgf train` has no option {name}.{hint}")
    reward_funcs_of(script, model)
    waiting, own = list(rest), []
    for text in argv:  # what is left is in the order of the command line
        if waiting and text == waiting[0]:
            waiting.pop(0)
        else:
            own.append(text)
    options = resolve_accelerate_config_argument(config_rest + rest)
    shipped.run_launcher(launcher.parse_args([*options, "-m", "vgf_llm.train", *own]))


if __name__ == "__main__":
    train()
