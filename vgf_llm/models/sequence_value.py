# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Values of whole responses that are differentiable in the embeddings of their tokens.

Sequence-level transport moves the token-embedding matrix of a response along the gradient of such a value. The value
reads prompt and response together and returns one number per ensemble member.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from vgf_llm.functional import Range, check_choice
from vgf_llm.models.language_model import accepts_argument, inner_model, position_ids_from_mask, weight_shape
from vgf_llm.models.tensor_files import load_tensors, load_whole, read_json, write_json, write_tensors

HEAD_NAME = "sequence_head.safetensors"
CONFIG_NAME = "sequence_value.json"
POOLINGS = ("last", "mean")

Pooling = Literal["last", "mean"]


@dataclass(frozen=True)
class ReadPrefix:
    """What a value keeps of the P tokens before those that move, so that it does not read them again."""

    cache: DynamicCache  # the backbone's keys and values, of R rows; not changed by those who read on
    scores: Tensor  # `[R, P, H]`, the scores of the tokens, some of which may belong to the response

    def repeat_interleave(self, repeats: int) -> "ReadPrefix":
        """Returns every row `repeats` times in succession."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(repeats)
        return ReadPrefix(cache, self.scores.repeat_interleave(repeats, dim=0))


class DifferentiableValue(nn.Module, ABC):
    """A value of whole responses with a gradient in their token embeddings: what sequence-level transport needs.

    Attributes:
        losses: The losses that fit it, as of a token-level value.
        needs_contrast: Whether prompts without both better and worse completions teach it nothing.
    """

    parametrization: ClassVar[str] = "sequence"
    losses: ClassVar[tuple[str, ...]] = ("pairwise", "regression")
    needs_contrast: ClassVar[bool] = False

    def default_loss(self, *, outcomes: bool, pairs: bool) -> str:
        """Names the loss that fits the data; see `ValueModel.default_loss`."""
        return "pairwise"

    def needs_reference(self, loss: str) -> bool:
        """Tells whether a loss on this value reads log-probabilities of the reference."""
        return False

    @property
    @abstractmethod
    def embedding(self) -> Tensor:
        """The input embedding matrix `[V, D]`; a particle is made of its rows before it moves."""

    @abstractmethod
    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, response_mask: Tensor) -> Tensor:
        """Values responses, `[R, H]`, one value per ensemble member, in float32.

        Args:
            inputs_embeds: `[R, S, D]`, prompts and responses.
            attention_mask: `[R, S]`, 1 on real tokens.
            response_mask: `[R, S]`, 1 on response tokens; every row has at least one.
        """

    @property
    def vocab_size(self) -> int:
        """V, the rows of the embedding matrix."""
        return self.embedding.shape[0]

    @property
    def max_length(self) -> int | None:
        """The longest sequence of real tokens that the value reads; `None` for no limit."""
        return None

    def embed(self, input_ids: Tensor) -> Tensor:
        """Returns the embeddings `[..., D]` of tokens `[...]`."""
        return F.embedding(input_ids, self.embedding)

    def read_prefix(self, input_ids: Tensor, attention_mask: Tensor) -> ReadPrefix | None:
        """Reads what stands before the tokens that move, once for all steps; `None`: every call reads everything.

        A value that returns more takes it as the fourth argument of `forward`; see `SequenceValue.read_prefix`.
        """
        return None

    def from_ids(
        self, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor, prefix: ReadPrefix | None = None
    ) -> Tensor:
        """Values token ids `[R, S]`, or `[R, T]` behind a `prefix` that was read; returns `[R, H]`."""
        return self(self.embed(input_ids), attention_mask, response_mask, *(() if prefix is None else (prefix,)))

    @staticmethod
    def mean(values: Tensor) -> Tensor:
        """Averages the members' values `[R, H]` to `[R]`."""
        return values.mean(dim=-1)

    @staticmethod
    def lower_bound(values: Tensor, coef: float = 1.0) -> Tensor:
        """Returns mean - coef * standard deviation of the members `[R, H]`, `[R]`; one member has no deviation.

        Example:
            >>> DifferentiableValue.lower_bound(torch.tensor([[1.0, 3.0], [2.0, 2.0]])).tolist()
            [1.0, 2.0]
        """
        variance = values.var(dim=-1, correction=0)
        # The square root has no derivative at zero, where members agree.
        spread = torch.where(variance > 0, variance, 1.0).sqrt()
        return values.mean(dim=-1) - coef * torch.where(variance > 0, spread, 0.0)


class SequenceValue(DifferentiableValue):
    """A transformer backbone and an ensemble of linear heads on its hidden states.

    Args:
        backbone: A headless model, such as `AutoModel` loads; of a model with a head its backbone is taken.
        num_members: H, the size of the ensemble.
        pooling: `"mean"`: the masked mean over response tokens of per-token scores; `"last"`: the score at the last
            response token.
        bias: Whether the heads have a bias.

    Raises:
        ValueError: For an unknown pooling or no member.

    Example:
        >>> from transformers import LlamaConfig, LlamaModel
        >>> config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> value = SequenceValue(LlamaModel(config), num_members=3)
        >>> ids, mask = torch.tensor([[1, 5, 7]]), torch.ones(1, 3, dtype=torch.long)
        >>> value.from_ids(ids, mask, torch.tensor([[0, 1, 1]])).shape
        torch.Size([1, 3])
    """

    def __init__(
        self, backbone: PreTrainedModel, num_members: int = 1, pooling: Pooling = "mean", *, bias: bool = True
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, POOLINGS)
        Range(1, integer=True).check("num_members", num_members)
        self.backbone = inner_model(backbone).base_model
        self.pooling = pooling
        config = self.backbone.config.get_text_config()
        width = getattr(config, "word_embed_proj_dim", None) or config.hidden_size
        reference = self.backbone.get_input_embeddings().weight
        self.head = nn.Linear(width, num_members, bias=bias, device=reference.device, dtype=torch.float32)
        nn.init.normal_(self.head.weight, std=width**-0.5)
        if bias:
            nn.init.zeros_(self.head.bias)

    @classmethod
    def from_classifier(cls, model: PreTrainedModel, pooling: Pooling = "last") -> "SequenceValue":
        """Builds a value from an `AutoModelForSequenceClassification`, which shares its weights.

        The classifier has a linear `score` layer on the hidden states, as decoders have, and reads the last token; its
        labels become the ensemble's members. Raises ValueError for another kind of head.
        """
        inner = inner_model(model)
        score = getattr(inner, "score", None)
        if not isinstance(score, nn.Linear):
            raise ValueError(
                f"`model` must be a sequence classifier with a linear `score` layer, got {type(inner).__name__}. "
                "Use a decoder such as LlamaForSequenceClassification, or score decoded text as a black box."
            )
        value = cls(inner, score.out_features, pooling, bias=score.bias is not None)
        value.head.load_state_dict({name: tensor.float() for name, tensor in score.state_dict().items()})
        return value.train(model.training)

    @property
    def num_members(self) -> int:
        """H, the size of the ensemble."""
        return self.head.out_features

    @property
    def embedding(self) -> Tensor:
        """The backbone's input embedding matrix `[V, D]`, with the scaling that some layouts put into the layer."""
        layer = self.backbone.get_input_embeddings()
        scale = getattr(layer, "embed_scale", None)
        return layer.weight if scale is None else layer.weight * scale.to(layer.weight.dtype)

    @property
    def vocab_size(self) -> int:
        """V."""
        return weight_shape(self.backbone.get_input_embeddings().weight)[0]

    @property
    def max_length(self) -> int | None:
        """The backbone's context length."""
        return getattr(self.backbone.config.get_text_config(), "max_position_embeddings", None)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Returns the embeddings `[..., D]` of tokens `[...]`, as the backbone itself looks them up."""
        return self.backbone.get_input_embeddings()(input_ids)

    def token_scores(self, inputs_embeds: Tensor, attention_mask: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """Returns the members' scores of every token, `[R, T, H]`, in float32.

        The embeddings are `[R, T, D]`, the mask `[R, P + T]` with the P tokens in `cache`, or none; those of the T
        tokens are added to it.
        """
        kwargs = {}
        if accepts_argument(self.backbone, "position_ids"):
            kwargs["position_ids"] = position_ids_from_mask(attention_mask)[:, -inputs_embeds.shape[1] :]
        if cache is not None:
            kwargs["past_key_values"] = cache
        dtype = self.backbone.get_input_embeddings().weight.dtype
        hidden = self.backbone(
            inputs_embeds=inputs_embeds.to(dtype), attention_mask=attention_mask, use_cache=cache is not None, **kwargs
        ).last_hidden_state
        return self.head(hidden.to(self.head.weight.dtype)).float()

    @torch.no_grad()
    def read_prefix(self, input_ids: Tensor, attention_mask: Tensor) -> ReadPrefix | None:
        """Reads tokens `[R, P]`, padded on the left, that stand before those that move, once for all steps.

        Returns what `forward` reads on from; `None` in training mode, and for a backbone whose tokens see later ones or
        that keeps anything but keys and values.
        """
        causal = [module.is_causal for module in self.backbone.modules() if hasattr(module, "is_causal")]
        if self.training or not causal or not all(causal) or not accepts_argument(self.backbone, "past_key_values"):
            return None
        cache = DynamicCache(config=self.backbone.config.get_text_config(decoder=True))
        if not all(isinstance(layer, DynamicLayer) for layer in cache.layers):
            return None
        return ReadPrefix(cache, self.token_scores(self.embed(input_ids), attention_mask, cache))

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        response_mask: Tensor,
        prefix: ReadPrefix | None = None,
    ) -> Tensor:
        """Values responses, `[R, H]`; see `DifferentiableValue.forward`.

        With a `prefix` from `read_prefix`, whose P tokens no gradient reaches, `inputs_embeds` are those of the last T
        of S = P + T tokens, `[R, T, D]`. Raises ValueError if a response is empty or a sequence longer than the
        context.
        """
        self._check(attention_mask, response_mask)
        if prefix is None:
            scores = self.token_scores(inputs_embeds, attention_mask)
        else:
            after = self.token_scores(inputs_embeds, attention_mask, copy.deepcopy(prefix.cache))
            scores = torch.cat([prefix.scores, after], dim=1)
        return pool_scores(scores, response_mask, self.pooling)

    def _check(self, attention_mask: Tensor, response_mask: Tensor) -> None:
        empty = ~response_mask.bool().any(dim=-1)
        if bool(empty.any()):
            rows = empty.nonzero().flatten().tolist()
            raise ValueError(
                f"`response_mask` has no token in rows {rows[:8]}: an empty response has no value. "
                "Leave such rows out, or end every response with the end-of-sequence token."
            )
        limit = self.max_length
        if limit is not None and attention_mask.shape[1] > limit:
            longest = int(attention_mask.sum(dim=-1).max())
            if longest > limit:
                raise ValueError(
                    f"A sequence has {longest} tokens; the value's context is {limit}. Lower `max_new_tokens`, shorten "
                    "the prompts, or take a value with a longer context."
                )

    def save_pretrained(
        self, save_directory: str | Path, *, state_dict: dict[str, Tensor] | None = None, **kwargs: object
    ) -> None:
        """Writes backbone (as transformers does), heads (safetensors) and settings (JSON) to a folder.

        `state_dict` are this module's tensors gathered from all processes, where it holds shards; further arguments go
        to the backbone's `save_pretrained`.
        """
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        tensors = self.state_dict() if state_dict is None else state_dict
        parts = {
            part: {key.removeprefix(part): tensor for key, tensor in tensors.items() if key.startswith(part)}
            for part in ("backbone.", "head.")
        }
        self.backbone.save_pretrained(directory, state_dict=parts["backbone."], **kwargs)
        write_tensors(parts["head."], directory / HEAD_NAME, {"format": "pt"})
        settings = {
            "num_members": self.num_members,
            "pooling": self.pooling,
            "bias": self.head.bias is not None,
            "vocab_size": self.vocab_size,
        }
        write_json(settings, directory / CONFIG_NAME)

    @classmethod
    def from_pretrained(cls, save_directory: str | Path, **model_kwargs: object) -> "SequenceValue":
        """Loads what `save_pretrained` wrote, in evaluation mode; `model_kwargs` go to `AutoModel.from_pretrained`.

        Raises FileNotFoundError, or ValueError for a file that is truncated, foreign, or does not fit the others.
        """
        directory = Path(save_directory)
        settings = _load_settings(directory / CONFIG_NAME)
        try:
            backbone = load_whole(AutoModel, directory, **model_kwargs)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"The backbone of the sequence value in {directory} cannot be loaded: {error}.") from error
        value = cls(backbone, settings["num_members"], settings["pooling"], bias=settings["bias"])
        if value.vocab_size != settings["vocab_size"]:
            raise ValueError(
                f"{directory} holds a backbone with {value.vocab_size} embeddings; {CONFIG_NAME} says "
                f"{settings['vocab_size']}. The files are of different models; save the value again."
            )
        value.head.load_state_dict(load_tensors(directory / HEAD_NAME, value.head.state_dict()))
        return value.eval()


def pool_scores(scores: Tensor, response_mask: Tensor, pooling: str) -> Tensor:
    """Pools the scores of tokens `[R, S, H]` to one of each response, `[R, H]`.

    The mask `[R, S]` has 1 on response tokens, at least one a row; `pooling` is `"mean"` over these, or `"last"`, the
    last one's.

    Example:
        >>> pool_scores(torch.tensor([[[9.0], [1.0], [3.0]]]), torch.tensor([[0, 1, 1]]), "mean")
        tensor([[2.]])
    """
    if pooling == "mean":
        weights = response_mask.to(scores.dtype)
        weights = weights / weights.sum(dim=-1, keepdim=True)
    else:
        positions = torch.arange(1, response_mask.shape[1] + 1, device=response_mask.device)
        last = (positions * response_mask).argmax(dim=-1)
        weights = F.one_hot(last, response_mask.shape[1]).to(scores.dtype)
    return torch.einsum("rs,rsh->rh", weights, scores)


def _load_settings(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist, so {str(path.parent)!r} is no saved sequence value. "
            "Expected the folder that SequenceValue.save_pretrained wrote."
        )
    settings = read_json(path)
    expected = {"num_members", "pooling", "bias", "vocab_size"}
    if set(settings) != expected:
        raise ValueError(f"{path} has fields {sorted(settings)}; expected {sorted(expected)}.")
    return settings
