# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What the rest of the package asks of a causal language model, for every layout transformers ships.

A causal language model is a backbone, which turns tokens into hidden states, and what its `forward` does to them: an
output embedding, and in some layouts a scale, a cap or a projection. The helpers here never repeat that arithmetic.
They run the model's own `forward` with its backbone recorded, to get hidden states, or with its backbone replaced, to
get the logits of hidden states of the caller's choice.
"""

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from vgf_llm.models.sampling import Sampling, sampled_logps


def inner_model(model: nn.Module) -> PreTrainedModel:
    """Returns the transformers model inside a PEFT wrapper, or the model itself; raises TypeError for anything else.

    Adapter layers that PEFT injected stay in it.
    """
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(
            f"`model` must be a transformers PreTrainedModel or a PeftModel around one, got {type(model).__name__}. "
            "Load it with AutoModelForCausalLM.from_pretrained(...)."
        )
    return inner


def output_embedding(model: nn.Module) -> nn.Module:
    """Returns the layer that maps hidden states to logits; its `weight` is `[V, D]`.

    Raises ValueError if the model has none, such as a bare encoder.
    """
    inner = inner_model(model)
    layer = inner.get_output_embeddings()
    if layer is None:
        raise ValueError(
            f"`model` has no output embedding: {type(inner).__name__} is not a causal language model. "
            "Load it with AutoModelForCausalLM."
        )
    return layer


def output_weight(model: nn.Module) -> Tensor:
    """Returns E, the `[V, D]` weight of the output embedding of `model`."""
    return cast(Tensor, output_embedding(model).weight)


def weight_shape(weight: Tensor) -> torch.Size:
    """Returns the shape of a weight; of the whole weight where DeepSpeed ZeRO-3 left an empty tensor in its place."""
    return getattr(weight, "ds_shape", weight.shape)


def output_width(model: nn.Module) -> int:
    """Returns D, the width of the hidden states that enter the output embedding of `model`."""
    return weight_shape(output_weight(model))[1]


def output_vocab_size(model: nn.Module) -> int:
    """Returns V, the number of logits of `model` (which may exceed the number of tokens of its tokenizer)."""
    return weight_shape(output_weight(model))[0]


def position_ids_from_mask(attention_mask: Tensor) -> Tensor:
    """Positions `[B, T]` of a mask's real tokens, which left padding does not shift; padding gets position 0.

    Example:
        >>> position_ids_from_mask(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])).tolist()
        [[0, 0, 0, 1], [0, 1, 2, 3]]
    """
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def accepts_argument(model: nn.Module, name: str) -> bool:
    """Tells whether `model.forward` has a parameter called `name`."""
    return name in inspect.signature(type(model).forward).parameters


class _StandIn(nn.Module):
    """Stands in for a backbone: returns hidden states that were given, or runs it and hands the last one on.

    One state is enough for a row of logits; `hidden` is all of them once the forward has called this.
    """

    def __init__(self, backbone: nn.Module, given: Tensor | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.given = given
        self.hidden: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.given is not None:
            self.hidden = self.given
            return _States(self.given)
        output = self.backbone(*args, **kwargs)
        hidden = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", None)
        if not isinstance(hidden, Tensor):
            return output
        self.hidden, last = hidden, hidden[:, -1:].detach()
        if isinstance(output, tuple):
            return (last, *output[1:])
        output.last_hidden_state = last
        return output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["backbone"], name)


class _States:
    """What a replaced backbone returns: hidden states, and nothing else."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, key: Any) -> Any:
        return getattr(self, key) if isinstance(key, str) else (self.last_hidden_state,)[key]


def _with_child(module: nn.Module, path: Sequence[str], child: nn.Module) -> nn.Module:
    """A shallow copy of `module`, of the same parameters, whose submodule at `path` is `child`; it runs no hooks."""
    clone: nn.Module = object.__new__(type(module))
    clone.__dict__.update(module.__dict__)
    clone.__dict__.pop("forward", None)  # bound to the original
    for name, value in module.__dict__.items():
        if name.startswith("_") and "_hooks" in name and isinstance(value, dict):
            clone.__dict__[name] = OrderedDict()
    name, *rest = path
    inside = _with_child(cast(nn.Module, module._modules[name]), rest, child) if rest else child
    clone.__dict__["_modules"] = {**module._modules, name: inside}
    return clone


# Where each class of language model has the backbone that its forward calls; found at its first forward.
_BACKBONES: dict[type, str] = {}


def _layout(inner: PreTrainedModel) -> type:
    """The class whose `forward` this is; wrappers such as FSDP's put classes of their own before it."""
    return next(kind for kind in type(inner).__mro__ if "forward" in vars(kind))


def _backbone_names(inner: PreTrainedModel) -> list[str]:
    """Names of the submodules that may be the backbone which `forward` calls, the likeliest first."""
    known = _BACKBONES.get(_layout(inner))
    if known is not None:
        return [known]
    names = [name for name, module in inner.named_modules() if isinstance(module, PreTrainedModel) and name]
    return sorted(names, key=lambda name: inner.get_submodule(name) is not inner.base_model)


def backbone_name(model: nn.Module) -> str:
    """Returns the name of the submodule whose hidden states the model's own forward turns into logits."""
    return _backbone_names(inner_model(model))[0]


def _run(inner: PreTrainedModel, given: Tensor | None, **inputs: Any) -> tuple[Any, Tensor]:
    """The output of the model's own forward, and the hidden states of its backbone or those given in their place."""
    for name in _backbone_names(inner):
        stand_in = _StandIn(inner.get_submodule(name), given)
        output = type(inner).forward(_with_child(inner, name.split("."), stand_in), **inputs)
        if stand_in.hidden is not None:
            if given is None:
                _BACKBONES[_layout(inner)] = name
            return output, stand_in.hidden
    raise ValueError(
        f"The forward of {type(inner).__name__} calls no backbone whose hidden states become its logits, so that a "
        "value cannot read them. Use a causal language model of transformers, such as AutoModelForCausalLM loads."
    )


def last_hidden_states(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Tensor:
    """Runs the model's own forward and returns the hidden states `[B, T, D]` of its backbone.

    The ids `[B, T]` may be padded on either side; the mask `[B, P + T]` is 1 on real tokens, with those of P tokens in
    `past_key_values`, if there are any. Further arguments go to the forward.
    """
    inner = inner_model(model)
    if accepts_argument(inner, "position_ids") and "position_ids" not in kwargs:
        kwargs["position_ids"] = position_ids_from_mask(attention_mask)[:, -input_ids.shape[1] :]
    kwargs.setdefault("use_cache", kwargs.get("past_key_values") is not None)
    return _run(inner, None, input_ids=input_ids, attention_mask=attention_mask, **kwargs)[1]


def logits_of_states(model: nn.Module, states: Tensor) -> Tensor:
    """Returns the logits `[..., V]`, in float32, that the model's own forward makes of hidden states.

    The states `[..., D]` are such as `last_hidden_states` returns.
    """
    inner, weight = inner_model(model), output_weight(model)
    flat = states.reshape(1, -1, states.shape[-1])
    if weight.is_floating_point():
        flat = flat.to(weight.dtype)
    ids = torch.zeros(flat.shape[:2], dtype=torch.long, device=flat.device)
    output, _ = _run(inner, flat, input_ids=ids)
    logits = output[0] if isinstance(output, tuple) else output.logits
    return logits.float().view(*states.shape[:-1], logits.shape[-1])


# The name of release 0.1.
project_hidden = logits_of_states


@torch.no_grad()
def probe_logits(model: nn.Module) -> Tensor | None:
    """Runs a few tokens, and raises ValueError if a model's hidden states do not give its logits.

    Returns the logits `[1, 4, V]` of its own forward, to compare with later ones; `None` where weights are not there to
    run (sharded by ZeRO-3, or on the meta device).
    """
    inner = inner_model(model)
    if any(hasattr(parameter, "ds_id") or parameter.is_meta for parameter in inner.parameters()):
        return None
    special = {value for name, value in inner.config.to_dict().items() if name.endswith("token_id")}
    special |= {value for name, value in inner.config.get_text_config().to_dict().items() if name.endswith("token_id")}
    ids = [token for token in range(min(output_vocab_size(model), 64)) if token not in special][-4:]
    tokens = torch.tensor([ids or [0]], device=inner.get_input_embeddings().weight.device)
    mask = torch.ones_like(tokens)
    with evaluating(inner):
        logits = inner(input_ids=tokens, attention_mask=mask, use_cache=False).logits.float()
        found = logits_of_states(model, last_hidden_states(model, tokens, mask))
    if not same_logits(found, logits, inner.dtype):
        raise ValueError(
            f"The hidden states of {type(inner).__name__} do not give its logits: the largest difference is "
            f"{(found.to(logits.device) - logits).abs().max().item():.3g} after a few tokens. A value cannot be "
            "learned on a model that computes its logits from anything else; use another layout."
        )
    return logits


def same_logits(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Tells whether two computations of logits in `dtype` agree up to rounding."""
    tolerance = 1e-3 if dtype in (torch.float32, torch.float64) else 5e-2
    scale = expected.abs().max().clamp(min=1.0)
    return bool((found.to(expected.device) - expected).abs().max() <= tolerance * scale)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switches a model to evaluation mode, without dropout, for as long as the context lasts."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


# States whose logits exist at a time: 150 MB in float32 at a vocabulary of 150,000.
STATES_AT_A_TIME = 256


def chosen_logps(
    model: nn.Module,
    hidden: Tensor,
    ids: Tensor,
    *,
    contexts: Tensor | None = None,
    samplings: Sequence[Sampling] = (Sampling(),),
    sampler: Tensor | None = None,
    entropy: bool = False,
) -> Tensor:
    """Log-probabilities `[..., K]` of chosen tokens, in float32, without holding the logits of all states at once.

    The logits of `STATES_AT_A_TIME` states are computed, reduced and dropped. A backward pass computes them again, but
    for the last, with which it begins. How often the output embedding runs follows from the number of states alone.

    Args:
        model: A causal language model.
        hidden: `[..., D]`; `[B, T, D]` with a sampling that is not the default.
        ids: `[..., K]`, tokens of each state.
        contexts: `[B, P + T]`, the rows whose last T tokens the states choose, negative on padding; needed for a
            repetition penalty.
        samplings: How tokens were drawn; the result is normalised over what they keep.
        sampler: `[B]`, which of `samplings` drew each row; the first where left out.
        entropy: Whether a last column, `[..., K + 1]`, is the entropy, in nats, over all tokens at the temperature of
            the row's sampling.
    """
    states, chosen = hidden.reshape(-1, hidden.shape[-1]), ids.reshape(-1, ids.shape[-1])
    rows = [0] * hidden.shape[0] if sampler is None else sampler.tolist()
    steps = hidden.shape[1] if hidden.dim() > 2 else 1
    plain = all(samplings[row].is_plain for row in rows)

    def reduced(part: Tensor, tokens: Tensor, first: int) -> Tensor:
        logits = logits_of_states(model, part)
        found = logps(logits, tokens.to(logits.device), first)
        if not entropy:
            return found
        heat = [samplings[rows[state // steps]].temperature for state in range(first, first + len(part))]
        every = (logits / logits.new_tensor(heat).unsqueeze(-1)).log_softmax(dim=-1)
        # A token that a model excludes adds 0, not 0 times infinity.
        return torch.cat([found, -(every.exp() * every.clamp(min=-1e4)).sum(dim=-1, keepdim=True)], dim=-1)

    def logps(logits: Tensor, tokens: Tensor, first: int) -> Tensor:
        if plain:
            return logits.gather(-1, tokens) - logits.logsumexp(dim=-1, keepdim=True)
        result = []
        for start, end, row in _runs(first, len(logits), steps):
            places = slice(start - first, end - first)
            before = None if contexts is None else _before(contexts[row], start - row * steps, end - row * steps, steps)
            result.append(sampled_logps(logits[places], tokens[places], samplings[rows[row]], before))
        return torch.cat(result)

    firsts = range(0, max(states.shape[0], 1), STATES_AT_A_TIME)
    parts = zip(states.split(STATES_AT_A_TIME), chosen.split(STATES_AT_A_TIME), firsts, strict=True)
    found = [
        checkpoint(reduced, *part, use_reentrant=False, preserve_rng_state=False)
        if torch.is_grad_enabled() and part[-1] != firsts[-1]
        else reduced(*part)
        for part in parts
    ]
    return torch.cat(found).view(*ids.shape[:-1], ids.shape[-1] + entropy)


def _runs(first: int, count: int, steps: int) -> Iterator[tuple[int, int, int]]:
    """Cuts the states `first` to `first + count` at the ends of rows of `steps`: start, end and row of each part."""
    while count > 0:
        row = first // steps
        end = min(first + count, (row + 1) * steps)
        yield first, end, row
        first, count = end, count - (end - first)


def _before(row: Tensor, start: int, end: int, steps: int) -> Tensor:
    """The tokens `[S, L]` ahead of positions `start` to `end` of a row's last `steps` tokens; -1 for later ones."""
    length = row.shape[0] - steps
    ends = torch.arange(length + start, length + end, device=row.device).unsqueeze(-1)
    positions = torch.arange(row.shape[0], device=row.device)
    return torch.where(positions < ends, row, -1)
