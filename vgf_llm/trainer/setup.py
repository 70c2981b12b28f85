# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""From what a user hands to `VGFTrainer` to a `VGFModel` and a tokenizer that fit each other."""

import copy
import logging
import re
from typing import Any, Literal, cast

from datasets import IterableDataset
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from vgf_llm._compat import create_model_from_path, get_config_model_id
from vgf_llm.models.config import TransportConfig
from vgf_llm.models.language_model import inner_model, output_vocab_size, output_width
from vgf_llm.models.origin import record_origin
from vgf_llm.models.saving import load_policy_or_vgf
from vgf_llm.models.sequence_value import SequenceValue
from vgf_llm.models.value import build_value
from vgf_llm.models.valued_policy import BackboneName
from vgf_llm.trainer.choose.prompts import check_dataset, check_output_dir, check_tokenizer, check_vocabulary
from vgf_llm.trainer.config import VGFConfig, fit_round, settings_dict
from vgf_llm.trainer.save.sharding import is_sharded, whole
from vgf_llm.vgf_model import VGFModel

logger = logging.getLogger(__name__)


def check_inputs(args: VGFConfig, train_dataset: Any, eval_dataset: Any) -> None:
    """Refuses bad datasets and an unwritable folder before anything is loaded; errors name the argument."""
    check_dataset(train_dataset)
    fit_round(args, train_dataset)
    if eval_dataset is not None:
        check_dataset(eval_dataset, "eval_dataset")
    check_output_dir(args.output_dir)


def check_arguments(args: Any, tools: Any, environment_factory: Any) -> None:
    """Refuses another configuration, and completions of several turns, which are not one run of the policy's tokens."""
    if not isinstance(args, VGFConfig):
        raise TypeError(
            f"`args` must be a VGFConfig, got {type(args).__name__}; VGFConfig.from_grpo(args) carries one over."
        )
    for name, value in (("tools", tools), ("environment_factory", environment_factory)):
        if value:
            raise ValueError(
                f"`{name}` is not supported: the value learns from completions that are tokens of the policy alone. "
                "Leave it out; a `rollout_func` can call tools or run an environment."
            )


def resolve_streams(args: VGFConfig, train_dataset: Any, eval_dataset: Any) -> None:
    """Sets what keeps the completions of a prompt together where a dataset is streamed, as `GRPOTrainer` does.

    Raises ValueError if `accelerator_config` has batches dispatched, which splits them.
    """
    parts = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
    if not any(isinstance(dataset, IterableDataset) for dataset in (train_dataset, *parts)):
        return
    if args.accelerator_config.dispatch_batches:
        raise ValueError(
            "Iterable datasets require `dispatch_batches=False`, but it is set to `True` in `accelerator_config`. Set "
            "it to `False`, or leave it out."
        )
    args.accelerator_config.dispatch_batches = False
    if isinstance(train_dataset, IterableDataset) and args.dataloader_num_workers:
        logger.warning(
            "Iterable datasets require `dataloader_num_workers=0`, to keep the completions of a prompt together; the "
            "given %d is set to 0.",
            args.dataloader_num_workers,
        )
        args.dataloader_num_workers = 0


def load_policy(model: Any, args: VGFConfig, quantization_config: Any = None) -> nn.Module:
    """Loads the policy if it is a name, as `args.model_init_kwargs` say, and passes a model through."""
    if isinstance(model, str):
        kwargs = settings_dict(args.model_init_kwargs)
        if quantization_config is not None:
            if "quantization_config" in kwargs:
                raise ValueError(
                    "`quantization_config` is given both as an argument of the trainer and in "
                    "`args.model_init_kwargs`; give it once."
                )
            kwargs["quantization_config"] = quantization_config
        if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
            kwargs["device_map"] = None  # a device map and a distributed run exclude each other
        kwargs.setdefault("trust_remote_code", args.trust_remote_code)
        loaded = load_policy_or_vgf(model, VGFModel, **kwargs)
        if loaded is None:
            loaded = create_model_from_path(model, **kwargs)
            record_origin(loaded, kwargs, whole)
        return loaded
    if not isinstance(model, (PreTrainedModel, PeftModel, VGFModel)):
        raise TypeError(
            "`model` must be a path or hub id, a PreTrainedModel, a PeftModel or a VGFModel, "
            f"got {type(model).__name__}."
        )
    given = {"args.model_init_kwargs": args.model_init_kwargs, "quantization_config": quantization_config}
    for name, value in given.items():
        if value is not None:
            logger.warning("`%s` does not apply to `model`, which is loaded already.", name)
    return model


def load_tokenizer(processing_class: Any, model: nn.Module, args: VGFConfig) -> PreTrainedTokenizerBase:
    """Loads the policy's tokenizer if none is given, and makes sure that it can pad and end a completion."""
    if processing_class is None:
        origin = get_config_model_id(model.config)
        if not origin:
            raise ValueError(
                "`processing_class` is missing and the model names no origin to load it from; pass the tokenizer."
            )
        revision = settings_dict(args.model_init_kwargs).get("revision")
        processing_class = AutoTokenizer.from_pretrained(
            origin, revision=revision, trust_remote_code=args.trust_remote_code
        )
    if isinstance(processing_class, ProcessorMixin):  # of a vision-language model, which is trained on text
        processing_class = getattr(processing_class, "tokenizer", processing_class)
    if not isinstance(processing_class, PreTrainedTokenizerBase):
        raise TypeError(f"`processing_class` must be a tokenizer, got {type(processing_class).__name__}.")
    tokenizer = processing_class
    tokenizer.padding_side = "left"
    check_tokenizer(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_vocabulary(tokenizer, inner_model(model.policy if isinstance(model, VGFModel) else model))
    return tokenizer


def end_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase, args: VGFConfig) -> list[int]:
    """Returns every token that ends a completion: the tokenizer's and those the model declares, or the user's own."""
    given = settings_dict(args.generation_kwargs).get("eos_token_id")
    declared = model.generation_config.eos_token_id if given is None else given
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    own = tokenizer.eos_token_id
    return declared if given is not None or own in declared else [own, *declared]


def check_peft_config(peft_config: Any, policy: nn.Module, args: VGFConfig) -> None:
    """Refuses a `peft_config` that nothing would use, or that cannot be a value's adapter."""
    if peft_config is None:
        return
    if type(peft_config) is not LoraConfig:
        raise TypeError(
            f"`peft_config` must be a peft.LoraConfig, got {type(peft_config).__name__}: a value's adapter is plain "
            "LoRA. Pass LoraConfig(...), or leave it out."
        )
    if args.value_lora_target_modules is not None:
        raise ValueError("`peft_config` and `value_lora_target_modules` both describe the value's adapter; give one.")
    if isinstance(policy, VGFModel):
        raise ValueError("`peft_config` has no effect on a VGFModel, whose adapters are in place; leave it out.")
    if isinstance(policy, PeftModel):
        raise ValueError(
            "`peft_config` and a PeftModel exclude each other; pass the plain model with `peft_config`, or the "
            "PeftModel alone."
        )
    if args.distill_coef == 0 and args.value_backbone != "lora":
        raise ValueError(
            f"`peft_config` has no effect: the policy is frozen (`distill_coef=0`), and `value_backbone` is "
            f"{args.value_backbone!r}, which has no adapter. Leave it out, or set `value_backbone='lora'`."
        )


def build_vgf_model(policy: nn.Module, args: VGFConfig, peft_config: PeftConfig | None) -> VGFModel:
    """Puts the value that `args` describes on a policy that `load_policy` returned, with gradients on what is trained.

    `peft_config` is the LoRA of the policy when `distill_coef > 0`, and of the value when `value_backbone="lora"`.
    """
    check_peft_config(peft_config, policy, args)
    distil = args.distill_coef > 0
    if isinstance(policy, VGFModel):
        return _taken_over(policy, args)
    lora_config = copy.deepcopy(peft_config) if isinstance(peft_config, LoraConfig) else _default_lora(policy, args)
    if args.value_parametrization == "sequence":
        return _with_sequence_value(policy, args, peft_config)
    value_model = None
    if args.value_backbone not in ("lora", "copy", "policy"):
        value_model = _load_backbone(AutoModelForCausalLM, args, policy)
    # Copies are taken before adapters are put on: they hold the reference's weights.
    needs_ref = distil and peft_config is None and not isinstance(policy, PeftModel)
    ref_model = copy_language_model(policy, args).requires_grad_(False) if needs_ref else None
    if args.value_backbone == "copy" and not isinstance(policy, PeftModel):
        value_model = copy_language_model(policy, args)
    if distil and peft_config is not None:
        policy = get_peft_model(policy, peft_config)
    width = output_width(value_model if value_model is not None else policy)
    value = build_value(
        args.value_parametrization,
        width=width,
        vocab_size=output_vocab_size(policy),
        embedding_width=output_width(policy),
        head_hidden_size=args.value_head_hidden_size,
        reward_kind="bernoulli" if args.value_loss in ("auto", "bernoulli") else "regression",
    ).to(inner_model(policy).device)
    backbone = "policy" if value_model is not None else args.value_backbone
    model = VGFModel(
        policy,
        value,
        backbone=cast(BackboneName, backbone),
        value_model=value_model,
        ref_model=ref_model,
        lora_config=lora_config,
        transport=transport_of(args),
    )
    model.set_trainable(value=True, policy=distil)
    return model


def transport_of(args: VGFConfig) -> TransportConfig:
    """The transport of a configuration, which `__post_init__` has made of whatever was given."""
    return cast(TransportConfig, args.transport)


def _default_lora(policy: nn.Module, args: VGFConfig) -> LoraConfig:
    """The adapter of a value, where the user gives no `peft_config`."""
    modules = args.value_lora_target_modules or "all-linear"
    layers = inner_model(policy).named_modules()
    owned = [name for name, module in layers if getattr(module, "weight", None) is not None]
    if isinstance(modules, str):
        known = modules.lower() == "all-linear" or any(re.fullmatch(modules, name) for name in owned)
        unknown = [] if known else [modules]
    else:  # PEFT leaves out a name that matches nothing, as long as another one does
        unknown = [name for name in modules if not any(f".{own}".endswith(f".{name}") for own in owned)]
    if unknown:
        raise ValueError(
            f"`value_lora_target_modules` has {unknown}, and the policy has no layer of such a name. Its layers are "
            f"named {sorted({own.rpartition('.')[2] for own in owned})}."
        )
    return LoraConfig(r=16, lora_alpha=32, target_modules=modules, task_type="CAUSAL_LM")


def _taken_over(model: VGFModel, args: VGFConfig) -> VGFModel:
    """A model that has its value already, which is trained as what it is."""
    distil, sequence = args.distill_coef > 0, args.value_parametrization == "sequence"
    default = VGFConfig.__dataclass_fields__["value_parametrization"].default
    own = model.value.parametrization
    if not sequence and args.value_parametrization not in (own, default):
        raise ValueError(
            f"`value_parametrization` is {args.value_parametrization!r}, but the VGFModel given as `model` has a value "
            f"of the kind {own!r}, which is what would be trained. Leave `value_parametrization` out, or pass the "
            "policy alone."
        )
    if sequence and model.sequence_value is None:
        raise ValueError(
            "`value_parametrization='sequence'` trains `model.sequence_value`, and this VGFModel has none. Build it "
            "with `sequence_value=SequenceValue(...)`, or pass the policy alone."
        )
    if not sequence:
        args.value_parametrization = own
    if args.samples_from == "value" and (sequence or not model.value.needs_logits):
        raise ValueError(
            f"`rollout_policy='value'` samples the model behind a log-ratio value, and the value of the VGFModel given "
            f"as `model` is of the kind {own!r}. Set `rollout_policy` to 'base' or 'transport'."
        )
    # One owner: what the user set for this run, else what the model came with.
    if transport_of(args) == TransportConfig():
        args.transport = model.transport
    else:
        model.transport = transport_of(args)
    model.set_trainable(value=not sequence, policy=distil, sequence_value=sequence)
    if distil and model.policy_adapter is None and model.ref_model is None and not sequence:
        model.ref_model = copy_language_model(model.policy, args).requires_grad_(False)
    return model


def copy_language_model(model: nn.Module, args: VGFConfig) -> PreTrainedModel:
    """Returns a second model with the weights of the first.

    Where ZeRO-3 holds a shard of each weight, which cannot be copied, it is loaded again from the model's origin.
    """
    inner = inner_model(model)
    if not any(is_sharded(parameter) for parameter in inner.parameters()):
        return copy.deepcopy(inner)
    origin = inner.config._name_or_path
    if not origin:
        raise ValueError(
            "`model` was built under ZeRO-3 and names no folder or hub id to load its copy from, which "
            "`value_backbone='copy'` and `distill_coef > 0` need. Pass a path as `model`, or use LoRA (`peft_config`)."
        )
    return AutoModelForCausalLM.from_pretrained(origin, dtype=inner.dtype, trust_remote_code=args.trust_remote_code)


def _load_backbone(loader: Any, args: VGFConfig, policy: nn.Module) -> Any:
    """Loads the model that `value_backbone` names, in the policy's precision."""
    name, dtype = args.value_backbone, inner_model(policy).dtype
    try:
        return loader.from_pretrained(name, trust_remote_code=args.trust_remote_code, dtype=dtype)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`value_backbone` must be 'lora', 'copy', 'policy' or a model that can be loaded; {name!r} cannot: {error}"
        ) from error


def _with_sequence_value(policy: nn.Module, args: VGFConfig, peft_config: PeftConfig | None) -> VGFModel:
    """Puts a value of whole responses on a policy, on a backbone of its own."""
    inner = inner_model(policy)
    if args.value_backbone == "copy":
        if isinstance(policy, PeftModel):
            raise ValueError(
                "`value_backbone='copy'` copies a plain model; the policy carries PEFT adapters. Merge them with "
                "`merge_and_unload()`, or give the path of a model as `value_backbone`."
            )
        backbone = copy_language_model(policy, args).base_model
    else:
        backbone = _load_backbone(AutoModel, args, policy)
    pooling = cast(Literal["last", "mean"], args.value_pooling)
    value = SequenceValue(backbone, args.value_ensemble_size, pooling).to(inner.device)
    if value.vocab_size != output_vocab_size(policy):
        raise ValueError(
            f"`value_backbone` {args.value_backbone!r} has {value.vocab_size} embeddings, the policy "
            f"{output_vocab_size(policy)} logits: a sequence value needs the policy's tokenizer and vocabulary. Pick a "
            "model of the same family."
        )
    if peft_config is not None and args.distill_coef > 0:
        policy = get_peft_model(policy, peft_config)
    model = VGFModel(policy, sequence_value=value, transport=transport_of(args))
    model.set_trainable(value=False, policy=args.distill_coef > 0, sequence_value=True)
    return model


def align_pad_token(model: VGFModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tells every language model of a `VGFModel` the tokenizer's pad token."""
    for module in (model.policy, model.value_model, model.ref_model):
        if module is not None:
            inner = inner_model(module)
            inner.config.get_text_config().pad_token_id = tokenizer.pad_token_id
            if inner.generation_config is not None:
                inner.generation_config.pad_token_id = tokenizer.pad_token_id
