# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The configuration that a saved VGF model carries, `vgf_config.json`."""

import math
import warnings
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from vgf_llm.models.tensor_files import read_json, write_json

CONFIG_NAME = "vgf_config.json"
FORMAT_VERSION = 2
# Transport settings that format 1 wrote and that are gone, with the only value that still means something.
_REMOVED_TRANSPORT = {"metric": "fisher", "noise": 0.0}
PARAMETRIZATIONS = ("log_ratio", "bilinear", "vocab", "v_head")
SEQUENCE_SPACES = ("sequence_embedding", "sequence_logit")


def check_finite_positive(name: str, value: float, *, allow_zero: bool = False) -> None:
    """Raises ValueError unless `value` is a finite number above zero (or at zero, where allowed)."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not allow_zero):
        bound = ">= 0" if allow_zero else "> 0"
        raise ValueError(f"`{name}` must be a finite number {bound}, got {value!r}.")


@dataclass
class TransportConfig:
    """How far and in which space particles move; the defaults of `VGFModel.generate`.

    Args:
        transport_steps: L, the step budget; 0 is the base model.
        step_size: epsilon. In logit space only the product `transport_steps * step_size` matters (the inverse
            temperature of the KL-regularised optimum).
        num_particles: N, responses per prompt.
        selection: `"value"`, `"weighted_vote"`, `"majority"` or `"none"`.
        space: `"logit"` or `"hidden"`, token by token; `"sequence_embedding"` or `"sequence_logit"`, whole responses
            moved by the model's sequence value. The latter two are experimental: they have not been shown to beat
            best-of-M of the same compute.
        metric: `"fisher"` (closed form) or `"euclidean"`, for the logit spaces.
        top_k_candidates: K, the tokens of the base that transport may reach.
        min_candidate_prob: A candidate's least probability under the base.
        alpha: Entropy temperature; `None` tilts without end, a number flows to the Boltzmann target of that
            temperature and no further.
        max_kl: Cap on the KL to the base, in nats: of each token, and in sequence spaces of a response's mean token.
        min_entropy: Tokens whose base entropy is below this many nats are left alone.
        interaction: Whether the particles of one prompt interact through the RBF kernel.
        repulsion: Whether the interaction includes the kernel's gradient.
        max_distance: Trust radius of every token in `"sequence_embedding"`, in mean embedding norms.
        anchor: Pull of every token to its start in `"sequence_embedding"`.
        projection: How moved responses become text: `"redecode"` writes them anew with the base, tilted towards where
            their tokens moved; `"nearest"` takes the nearest of the base's candidates at each position.
        decode_strength: What the tilt of `"sequence_embedding"` is multiplied by.
        block_size: Tokens that a sequence space moves and selects at a time; `None` for whole responses.
        noise: Temperature of the annealed Langevin noise in `"sequence_logit"`.
        rescore: Whether a sequence space values the text of every step and keeps each response's best, the start
            included; without it text is made after the last step alone.
        relift: Whether the gradient is taken at the text of the last step instead of at the moved particles.
        lower_bound_coef: How many standard deviations of the ensemble a sequence value is below its mean.

    Example:
        >>> TransportConfig(transport_steps=-1)
        Traceback (most recent call last):
        ...
        ValueError: `transport_steps` must be an integer >= 0, got -1.
    """

    transport_steps: int = 8
    step_size: float = 0.125
    num_particles: int = 1
    selection: str = "value"
    space: str = "logit"
    metric: Literal["fisher", "euclidean"] = "fisher"
    top_k_candidates: int = 40
    min_candidate_prob: float = 0.02
    alpha: float | None = None
    max_kl: float | None = None
    min_entropy: float = 0.0
    interaction: bool = False
    repulsion: bool = False
    max_distance: float | None = None
    anchor: float = 0.0
    projection: Literal["redecode", "nearest"] = "redecode"
    decode_strength: float = 10.0
    block_size: int | None = None
    noise: float = 0.0
    rescore: bool = True
    relift: bool = False
    lower_bound_coef: float = 1.0

    def __post_init__(self) -> None:
        counts = {"transport_steps": 0, "num_particles": 1, "top_k_candidates": 1, "block_size": 1}
        for name, least in counts.items():
            value = getattr(self, name)
            if value is None and name == "block_size":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"`{name}` must be an integer >= {least}, got {value!r}.")
        check_finite_positive("step_size", self.step_size)
        for name in ("min_entropy", "min_candidate_prob", "anchor", "decode_strength", "noise", "lower_bound_coef"):
            check_finite_positive(name, getattr(self, name), allow_zero=True)
        for name in ("alpha", "max_kl", "max_distance"):
            if getattr(self, name) is not None:
                check_finite_positive(name, getattr(self, name))
        if self.min_candidate_prob >= 1:
            raise ValueError(f"`min_candidate_prob` must be in [0, 1), got {self.min_candidate_prob!r}.")
        choices = {
            "selection": ("value", "weighted_vote", "majority", "none"),
            "space": ("logit", "hidden", *SEQUENCE_SPACES),
            "metric": ("fisher", "euclidean"),
            "projection": ("redecode", "nearest"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}; got {getattr(self, name)!r}.")
        if self.repulsion and not self.interaction:
            raise ValueError("`repulsion=True` needs `interaction=True`: particles repel each other by the kernel.")
        if self.space in SEQUENCE_SPACES and self.max_kl is not None and self.projection == "nearest":
            raise ValueError("`max_kl` is measured while re-decoding; `projection='nearest'` has no distribution.")
        if self.relift and not self.rescore:
            raise ValueError("`relift=True` takes gradients at the text of every step, which `rescore=False` skips.")


@dataclass
class VGFModelConfig:
    """What a saved VGF model is made of.

    Args:
        parametrization: `"log_ratio"`, `"bilinear"`, `"vocab"` or `"v_head"`.
        backbone: Where the value reads: `"policy"` (the policy's own features), `"lora"` (an adapter on it) or
            `"model"` (a model of its own, in `value_model/`).
        hidden_size: D of the value backbone.
        vocab_size: V of the policy.
        head_hidden_size: Width of the head's MLP; `None` for a linear head.
        reward_kind: `"bernoulli"` or `"regression"`.
        base_model_name_or_path: The policy's origin, for folders that do not hold its weights.
        base_model_revision: Its commit on the hub, from which the policy is loaded.
        base_model_dtype: The type in which the policy's weights were, such as `"bfloat16"`.
        base_model_fingerprint: Checksum of the policy's weights without adapters; see `vgf_llm.models.origin`.
        transformers_version: The release that wrote the folder.
        transport: Defaults of `VGFModel.generate`.
        files: Digest of every file that belongs to the folder, by its path in it; see `tensor_files.file_digest`.
            The card, the tokenizer's files and `generation_config.json` may change. `None` in format 1.
        format_version: Version of this format.
    """

    parametrization: str
    backbone: str
    hidden_size: int
    vocab_size: int
    head_hidden_size: int | None = None
    reward_kind: str = "bernoulli"
    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    base_model_dtype: str | None = None
    base_model_fingerprint: str | None = None
    transformers_version: str | None = None
    transport: TransportConfig = field(default_factory=TransportConfig)
    files: dict[str, str] | None = None
    format_version: int = FORMAT_VERSION

    def save(self, directory: str | Path) -> None:
        """Writes `vgf_config.json` into `directory`."""
        write_json(asdict(self), Path(directory) / CONFIG_NAME)

    @classmethod
    def load(cls, directory: str | Path) -> "VGFModelConfig":
        """Reads `vgf_config.json` from `directory`.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is not JSON, of another format version, or has unknown or missing fields.
        """
        path = Path(directory) / CONFIG_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist, so {str(directory)!r} is no saved VGF model, or not a whole one. "
                "Expected the folder that VGFModel.save_pretrained or VGFTrainer.save_model wrote."
            )
        data = read_json(path)
        version = data.get("format_version")
        if version not in (1, FORMAT_VERSION):
            raise ValueError(
                f"{path} has format_version {version!r}; this release reads 1 and {FORMAT_VERSION}. "
                "Upgrade vgf-llm, or save the model again with this release."
            )
        known = {item.name for item in fields(cls)}
        needed = {"parametrization", "backbone", "hidden_size", "vocab_size", *(("files",) if version > 1 else ())}
        if set(data) - known or not needed <= set(data):
            raise ValueError(f"{path} has fields {sorted(data)}; expected {sorted(known)}.")
        transport = data.get("transport", {})
        known = {item.name for item in fields(TransportConfig)}
        if version == 1:
            warnings.warn(
                f"{path} is of an earlier release and lists no checksums, so that its files cannot be checked. Save "
                "the model again to have them listed.",
                stacklevel=2,
            )
            gone = {name for name, value in _REMOVED_TRANSPORT.items() if transport.get(name) == value} - known
            transport = {name: value for name, value in transport.items() if name not in gone}
        if set(transport) - known:
            raise ValueError(f"{path} has transport fields {sorted(transport)}; expected {sorted(known)}.")
        data["transport"] = TransportConfig(**transport)
        return cls(**data)
