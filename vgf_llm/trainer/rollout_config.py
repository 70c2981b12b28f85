# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The settings that `VGFConfig` shares with TRL's `GRPOConfig` and `RLOOConfig`: data, sampling, rewards, logging.

Names, types, defaults and meanings are TRL's, so that a script or a YAML file written for its online trainers keeps
working. Where the two TRL classes differ in a default (`num_generations`), GRPO's is taken.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from vgf_llm._compat import _BaseConfig
from vgf_llm.trainer.batch_sizes import resolve_batch_sizes


def settings_dict(value: dict | str | None) -> dict[str, Any]:
    """Returns a setting that is a dict: from the command line it comes as text, which `__post_init__` has read."""
    return dict(cast(dict[str, Any] | None, value) or {})


@dataclass
class RolloutConfig(_BaseConfig):
    r"""
    Base class of [`VGFConfig`]: how prompts are read, completions sampled and rewards combined.

    Parameters:
        > Parameters that control the model

        model_init_kwargs (`str` or `dict[str, Any]`, *optional*):
            Keyword arguments of `from_pretrained`, used when `model` is given as a string.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether models and tokenizers (reward models included) may run Python code shipped with their checkpoint.
        disable_dropout (`bool`, *optional*, defaults to `False`):
            Whether to set every dropout probability of the model to zero.

        > Parameters that control the data preprocessing

        remove_unused_columns (`bool`, *optional*, defaults to `False`):
            Whether to keep only the column `"prompt"`. Reward functions that read other columns need `False`.
        num_generations (`int`, *optional*, defaults to `8`):
            Completions sampled per prompt. Must divide the generation batch.
        num_generations_eval (`int`, *optional*):
            Completions per prompt in evaluation. If `None`, `num_generations`.
        max_completion_length (`int`, *optional*, defaults to `512`):
            Longest completion, in tokens.
        ds3_gather_for_generation (`bool`, *optional*, defaults to `True`):
            Under DeepSpeed ZeRO-3, whether to gather the weights of the policy for generation. `False` is slower, fits
            models larger than one device, and excludes vLLM.
        shuffle_dataset (`bool`, *optional*, defaults to `True`):
            Whether to shuffle the training prompts.
        pad_to_multiple_of (`int` or `str`, *optional*, defaults to `"auto"`):
            Pad prompts and completions to a multiple of this length. `"auto"` pads on Neuron devices alone.

        > Parameters that control generation

        generation_batch_size (`int`, *optional*):
            Completions sampled at a time, over all processes. If `None`, `per_device_train_batch_size * num_processes *
            steps_per_generation`. Excludes `steps_per_generation`.
        steps_per_generation (`int`, *optional*):
            Training steps taken on one generation batch. If `None`, `gradient_accumulation_steps`.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature.
        top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus sampling: smallest set of tokens with at least this probability. `1.0` keeps all.
        top_k (`int`, *optional*, defaults to `0`):
            Number of most likely tokens kept. `0` keeps all.
        min_p (`float`, *optional*):
            Least probability of a token relative to the most likely one.
        generation_kwargs (`dict[str, Any]`, *optional*):
            Further arguments of `GenerationConfig` (or vLLM's `SamplingParams`); they win over the ones above.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Further arguments of `apply_chat_template`.
        repetition_penalty (`float`, *optional*, defaults to `1.0`):
            Values above `1.0` discourage tokens that have occurred, values below encourage them.
        cache_implementation (`str`, *optional*):
            Key-value cache used by `generate`.

        > Parameters that control generation acceleration powered by vLLM

        use_vllm (`bool`, *optional*, defaults to `False`):
            Whether to sample completions with vLLM instead of `model.generate`.
        vllm_mode (`str`, *optional*, defaults to `"colocate"`):
            `"colocate"` runs vLLM in the training process, `"server"` asks a running server.
        vllm_model_impl (`str`, *optional*, defaults to `"vllm"`):
            Model implementation, `"vllm"` or `"transformers"`.
        vllm_enable_sleep_mode (`bool`, *optional*, defaults to `False`):
            Whether vLLM gives its memory back during optimisation steps.
        vllm_structured_outputs_regex (`str`, *optional*):
            Regular expression that completions are forced to match.
        vllm_server_base_url (`str`, *optional*):
            URL of the server; takes the place of host and port.
        vllm_server_host (`str`, *optional*, defaults to `"0.0.0.0"`):
            Host of the server.
        vllm_server_port (`int`, *optional*, defaults to `8000`):
            Port of the server.
        vllm_server_timeout (`float`, *optional*, defaults to `240.0`):
            Seconds to wait for the server.
        vllm_group_port (`int`, *optional*, defaults to `51216`):
            Port of the weight update group.
        vllm_gpu_memory_utilization (`float`, *optional*, defaults to `0.3`):
            Share of the GPU memory that a colocated vLLM takes.
        vllm_max_model_length (`int`, *optional*):
            Context window of vLLM. If `None`, the model's.
        vllm_tensor_parallel_size (`int`, *optional*, defaults to `1`):
            Tensor parallel size of a colocated vLLM.

        > Parameters that control the training

        num_iterations (`int`, *optional*, defaults to `1`):
            Passes over each generation batch.
        reward_weights (`list[float]`, *optional*):
            One weight per reward function. If `None`, all are `1.0`.
        mask_truncated_completions (`bool`, *optional*, defaults to `False`):
            Whether to leave completions that hit `max_completion_length` out of the loss.

        > Parameters that control the logging

        log_completions (`bool`, *optional*, defaults to `False`):
            Whether to print and log a sample of prompts and completions every `logging_steps` steps.
        log_multimodal (`bool`, *optional*, defaults to `True`):
            Whether to log images with the completions.
        num_completions_to_print (`int`, *optional*):
            Number of completions printed. If `None`, all.
        log_unique_prompts (`bool`, *optional*, defaults to `False`):
            Whether to log each prompt once.

        > Parameters that control generation acceleration powered by transformers continuous batching

        use_transformers_continuous_batching (`bool`, *optional*, defaults to `False`):
            Whether to sample with the continuous batching engine of transformers.
        transformers_continuous_batching_config (`dict`, *optional*):
            Keyword arguments of `ContinuousBatchingConfig`.
        use_transformers_paged (`bool`, *optional*, defaults to `False`):
            Deprecated name of `use_transformers_continuous_batching`.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *_BaseConfig._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "transformers_continuous_batching_config",
        "generation_kwargs",
        "chat_template_kwargs",
    ]

    # Parameters that control the model
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keyword arguments of `from_pretrained`, used when `model` is given as a string."},
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Whether models and tokenizers may run Python code shipped with their checkpoint."},
    )
    disable_dropout: bool = field(
        default=False, metadata={"help": "Whether to set every dropout probability of the model to zero."}
    )

    # Parameters that control the data preprocessing
    remove_unused_columns: bool | None = field(
        default=False,
        metadata={
            "help": "Whether to keep only the column `prompt`. Reward functions that read other columns need `False`."
        },
    )
    num_generations: int | None = field(
        default=8, metadata={"help": "Completions sampled per prompt. Must divide the generation batch."}
    )
    num_generations_eval: int | None = field(
        default=None, metadata={"help": "Completions per prompt in evaluation. If `None`, `num_generations`."}
    )
    max_completion_length: int | None = field(default=512, metadata={"help": "Longest completion, in tokens."})
    ds3_gather_for_generation: bool = field(
        default=True,
        metadata={"help": "Under DeepSpeed ZeRO-3, whether to gather the weights of the policy for generation."},
    )
    shuffle_dataset: bool | None = field(default=True, metadata={"help": "Whether to shuffle the training prompts."})
    pad_to_multiple_of: int | str | None = field(
        default="auto",
        metadata={
            "help": "Pad prompts and completions to a multiple of this length. `auto` pads on Neuron devices alone."
        },
    )

    # Parameters that control generation
    generation_batch_size: int | None = field(
        default=None,
        metadata={"help": "Completions sampled at a time, over all processes. Excludes `steps_per_generation`."},
    )
    steps_per_generation: int | None = field(
        default=None,
        metadata={"help": "Training steps taken on one generation batch. If `None`, `gradient_accumulation_steps`."},
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    top_p: float = field(
        default=1.0, metadata={"help": "Nucleus sampling: smallest set of tokens with at least this probability."}
    )
    top_k: int = field(default=0, metadata={"help": "Number of most likely tokens kept in sampling. `0` keeps all."})
    min_p: float | None = field(
        default=None, metadata={"help": "Least probability of a token relative to the most likely one."}
    )
    generation_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Further arguments of `GenerationConfig` (or vLLM's `SamplingParams`); they win over the others."
        },
    )
    chat_template_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Further arguments of `apply_chat_template`."}
    )
    repetition_penalty: float = field(
        default=1.0, metadata={"help": "Values above 1.0 discourage tokens that have occurred."}
    )
    cache_implementation: str | None = field(default=None, metadata={"help": "Key-value cache used by `generate`."})

    # Parameters that control generation acceleration powered by vLLM
    use_vllm: bool = field(
        default=False, metadata={"help": "Whether to sample completions with vLLM instead of `model.generate`."}
    )
    vllm_mode: str = field(
        default="colocate",
        metadata={"help": "`colocate` (vLLM in the training process) or `server` (a running server)."},
    )
    vllm_model_impl: str = field(
        default="vllm", metadata={"help": "Model implementation of vLLM, `vllm` or `transformers`."}
    )
    vllm_enable_sleep_mode: bool = field(
        default=False, metadata={"help": "Whether vLLM gives its memory back during optimisation steps."}
    )
    vllm_structured_outputs_regex: str | None = field(
        default=None, metadata={"help": "Regular expression that completions are forced to match."}
    )
    vllm_server_base_url: str | None = field(
        default=None,
        metadata={"help": "URL of the vLLM server; takes the place of `vllm_server_host` and `vllm_server_port`."},
    )
    vllm_server_host: str = field(default="0.0.0.0", metadata={"help": "Host of the vLLM server."})
    vllm_server_port: int = field(default=8000, metadata={"help": "Port of the vLLM server."})
    vllm_server_timeout: float = field(default=240.0, metadata={"help": "Seconds to wait for the vLLM server."})
    vllm_group_port: int = field(
        default=51216, metadata={"help": "Port of the weight update group of the vLLM server."}
    )
    vllm_gpu_memory_utilization: float = field(
        default=0.3, metadata={"help": "Share of the GPU memory that a colocated vLLM takes."}
    )
    vllm_max_model_length: int | None = field(
        default=None, metadata={"help": "Context window of vLLM. If `None`, the model's."}
    )
    vllm_tensor_parallel_size: int = field(default=1, metadata={"help": "Tensor parallel size of a colocated vLLM."})

    # Parameters that control the training
    num_iterations: int = field(default=1, metadata={"help": "Passes over each generation batch."})
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "One weight per reward function. If `None`, all are 1.0."}
    )
    mask_truncated_completions: bool = field(
        default=False,
        metadata={"help": "Whether to leave completions that hit `max_completion_length` out of the loss."},
    )

    # Parameters that control the logging
    log_completions: bool = field(
        default=False,
        metadata={"help": "Whether to print and log a sample of prompts and completions every `logging_steps` steps."},
    )
    log_multimodal: bool = field(default=True, metadata={"help": "Whether to log images with the completions."})
    num_completions_to_print: int | None = field(
        default=None, metadata={"help": "Number of completions printed. If `None`, all."}
    )
    log_unique_prompts: bool = field(default=False, metadata={"help": "Whether to log each prompt once."})

    # Parameters that control generation acceleration powered by transformers continuous batching
    use_transformers_continuous_batching: bool = field(
        default=False, metadata={"help": "Whether to sample with the continuous batching engine of transformers."}
    )
    transformers_continuous_batching_config: dict | str | None = field(
        default=None, metadata={"help": "Keyword arguments of `ContinuousBatchingConfig`."}
    )
    use_transformers_paged: bool = field(
        default=False, metadata={"help": "Deprecated. Use `use_transformers_continuous_batching` instead."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._resolve_padding()
        if self.use_transformers_paged:
            warnings.warn(
                "`use_transformers_paged` is deprecated; use `use_transformers_continuous_batching`.",
                FutureWarning,
                stacklevel=4,  # the caller of VGFConfig(...)
            )
            self.use_transformers_continuous_batching = True
        if self.parallelism_config is not None and (
            self.parallelism_config.cp_enabled or self.parallelism_config.sp_enabled
        ):
            raise ValueError(
                "`parallelism_config` enables sequence parallelism, which cannot be applied: the model inputs are "
                "built inside the trainer, after generation. Set both `cp_size=1` and `sp_size=1`."
            )
        # Halving the batch on out-of-memory would leave groups of completions incomplete.
        if self.auto_find_batch_size:
            raise ValueError(
                "`auto_find_batch_size=True` is not supported: a generation batch must hold all `num_generations` "
                "completions of a prompt, and a reduced batch may not. Set it to False and lower "
                "`per_device_train_batch_size`."
            )
        resolve_batch_sizes(self)

    def _resolve_padding(self) -> None:
        value = self.pad_to_multiple_of
        if value == "auto":
            # Neuron compiles once per input shape, so padding bounds the number of compilations.
            value = 128 if self.device.type == "neuron" else None
        elif isinstance(value, str):  # the command line hands numbers over as text
            if value.lower() in ("none", "null"):
                value = None
            elif value.isdecimal():
                value = int(value)
        if value is not None and (isinstance(value, (bool, str)) or value < 1):
            raise ValueError(f"`pad_to_multiple_of` must be a positive integer, 'auto' or None, got {value!r}.")
        self.pad_to_multiple_of = value
