# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The only module that imports TRL names outside TRL's public API.

TRL moves its private helpers from one minor release to the next. Keeping every such import here makes a new release a
change of one file, and lets the version be checked before an unrelated ``ImportError`` can hide the reason.
"""

from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.specifiers import SpecifierSet

TRL_SPECIFIER = ">=1.16,<1.17"


def check_trl_version(found: str | None) -> None:
    """Refuse a TRL release whose private helpers this package was not written for.

    Example:
        >>> check_trl_version("1.16.0")
        >>> check_trl_version("0.9.6")
        Traceback (most recent call last):
        ...
        ImportError: vgf-llm needs trl>=1.16,<1.17, found trl 0.9.6. Run `pip install "trl>=1.16,<1.17"`.
    """
    if found is None or not SpecifierSet(TRL_SPECIFIER).contains(found, prereleases=True):
        what = "found no trl" if found is None else f"found trl {found}"
        raise ImportError(f'vgf-llm needs trl{TRL_SPECIFIER}, {what}. Run `pip install "trl{TRL_SPECIFIER}"`.')


try:
    check_trl_version(version("trl"))
except PackageNotFoundError:
    check_trl_version(None)

# These imports follow the check, so that a wrong TRL is reported as such.
from trl.cli.accelerate_config import resolve_accelerate_config_argument
from trl.extras.profiling import profiling_context, profiling_decorator
from trl.models.utils import prepare_deepspeed, unwrap_model_for_generation
from trl.scripts.grpo import GRPOScriptArguments
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.utils import (
    RepeatSampler,
    create_model_from_path,
    disable_dropout_in_model,
    get_callable_name,
    get_config_model_id,
    identity,
    is_async_callable,
    nanstd,
    pad,
    print_prompt_completions_sample,
    repeat_iterable_dataset,
    shutdown_event_loop_in_daemon,
    start_event_loop_in_daemon,
)


def vllm_generation_class(**options: Any) -> type:
    """Return TRL's `VLLMGeneration`, imported on first use because it pulls in vLLM where that is installed.

    `options` are arguments of `vllm.LLM` that TRL does not know, for an engine in this process.
    """
    from trl.generation import vllm_generation

    if not options:
        return vllm_generation.VLLMGeneration

    class VLLMGeneration(vllm_generation.VLLMGeneration):
        def _init_vllm(self) -> None:
            plain = getattr(vllm_generation, "LLM", None)  # absent without vLLM, which TRL reports
            vllm_generation.LLM = plain and partial(plain, **options)
            try:
                super()._init_vllm()
            finally:
                vllm_generation.LLM = plain

    return VLLMGeneration


def vllm_client_class() -> type:
    """Return TRL's `VLLMClient`, imported on first use for the same reason."""
    from trl.generation.vllm_client import VLLMClient

    return VLLMClient


def online_dpo_classes() -> tuple[type, type]:
    """Return TRL's `OnlineDPOConfig` and `OnlineDPOTrainer`, which are experimental and so move without notice."""
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    return OnlineDPOConfig, OnlineDPOTrainer
