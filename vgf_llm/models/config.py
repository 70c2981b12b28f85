# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The configuration that a saved VGF model carries, `vgf_config.json`."""

import warnings
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch

from vgf_llm.functional import Range, check_choice
from vgf_llm.models.tensor_files import read_json, write_json

CONFIG_NAME = "vgf_config.json"
FORMAT_VERSION = 2
PARAMETRIZATIONS = ("log_ratio", "bilinear", "vocab")
REWARD_KINDS = ("bernoulli", "regression")
SEQUENCE_SPACES = ("sequence_embedding", "sequence_logit")

# Fields that earlier releases had, with the one value that still means something and why they are gone.
_GONE: dict[str, tuple[Any, str]] = {
    "metric": ("fisher", "flow on the simplex follows the Fisher metric always"),
    "noise": (0.0, "sequence spaces move without Langevin noise"),
    "anchor": (0.0, "no token is pulled back to its start"),
    "max_distance": (None, "tokens have no trust radius; `max_kl` bounds what a response spends"),
    "projection": ("redecode", "moved responses are written anew with the base always"),
}


@dataclass
class TransportConfig:
    """How far and in which space particles move; the defaults of `VGFModel.generate`.

    Args:
        transport_steps: L, the step budget; 0 is the base model.
        step_size: epsilon. In logit space only the product `transport_steps * step_size` matters (the inverse
            temperature of the KL-regularised optimum).
        num_particles: N, responses per prompt.
        selection: `"value"`, `"weighted_vote"`, `"majority"` or `"none"`.
        space: `"logit"`, token by token; `"sequence_embedding"` or `"sequence_logit"`, whole responses moved by the
            model's sequence value. The latter two are experimental: they have not been shown to beat best-of-M of the
            same compute.
        top_k_candidates: K, the tokens of the base that transport may reach.
        min_candidate_prob: A candidate's least probability under the base.
        alpha: Entropy temperature; `None` tilts without end, a number flows to the Boltzmann target of that
            temperature and no further.
        max_kl: Cap on the KL to the base, in nats: of each token, and in sequence spaces of a response's mean token.
        min_entropy: Tokens whose base entropy is below this many nats are left alone.
        interaction: Whether the particles of one prompt interact through the RBF kernel.
        repulsion: Whether the interaction includes the kernel's gradient.
        decode_strength: What the tilt of `"sequence_embedding"` is multiplied by, with which a moved response is
            written anew.
        block_size: Tokens that a sequence space moves and selects at a time; `None` for whole responses.
        rescore: Whether a sequence space values the text of every step and keeps each response's best, the start
            included; without it text is made after the last step alone.
        relift: Whether the gradient is taken at the text of the last step instead of at the moved particles.
        lower_bound_coef: How many standard deviations of the ensemble a sequence value is below its mean.

    Raises:
        TypeError: If a field has another type than its default, or is unknown.
        ValueError: If a field is out of range, excludes another, or is no longer one.

    Example:
        >>> TransportConfig(transport_steps=-1)
        Traceback (most recent call last):
        ...
        ValueError: `transport_steps` must be an integer >= 0 and finite, got -1.
    """

    transport_steps: int = 8
    step_size: float = 0.125
    num_particles: int = 1
    selection: str = "value"
    space: str = "logit"
    top_k_candidates: int = 40
    min_candidate_prob: float = 0.02
    alpha: float | None = None
    max_kl: float | None = None
    min_entropy: float = 0.0
    interaction: bool = False
    repulsion: bool = False
    decode_strength: float = 10.0
    block_size: int | None = None
    rescore: bool = True
    relift: bool = False
    lower_bound_coef: float = 1.0

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Refuses fields that are no longer any, with the reason."""
        for name in settings:
            if name in _GONE:
                raise ValueError(f"`{name}` is no longer a transport setting: {_GONE[name][1]}. Leave it out.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, allowed in TRANSPORT_RANGES.items():
            setattr(self, name, allowed.read(name, getattr(self, name)))
        for name, choices in TRANSPORT_CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        if self.repulsion and not self.interaction:
            raise ValueError("`repulsion=True` needs `interaction=True`: particles repel each other by the kernel.")
        if self.relift and not self.rescore:
            raise ValueError("`relift=True` takes gradients at the text of every step, which `rescore=False` skips.")

    @classmethod
    def from_dict(cls, settings: Any, source: str) -> Self:
        """Builds the configuration of settings that were read from `source`; raises ValueError, which names it."""
        known = {item.name for item in fields(cls)}
        if not isinstance(settings, dict) or set(settings) - known - set(_GONE):
            found = sorted(map(str, settings)) if isinstance(settings, dict) else settings
            raise ValueError(f"{source} has transport fields {found!r}; expected {sorted(known)}.")
        try:
            return cls(**settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: {error}") from error


_POSITIVE = Range(0, open_low=True, optional=True)
TRANSPORT_RANGES = {
    "transport_steps": Range(0, integer=True),
    "step_size": Range(0, open_low=True),
    "num_particles": Range(1, integer=True),
    "top_k_candidates": Range(1, integer=True),
    "min_candidate_prob": Range(0, 1, open_high=True),
    "alpha": _POSITIVE,
    "max_kl": _POSITIVE,
    "min_entropy": Range(0),
    "decode_strength": Range(0),
    "block_size": Range(1, integer=True, optional=True),
    "lower_bound_coef": Range(0),
}
TRANSPORT_CHOICES: dict[str, tuple[Any, ...]] = {
    "selection": ("value", "weighted_vote", "majority", "none"),
    "space": ("logit", *SEQUENCE_SPACES),
    "interaction": (False, True),
    "repulsion": (False, True),
    "rescore": (False, True),
    "relift": (False, True),
}


@dataclass
class VGFModelConfig:
    """What a saved VGF model is made of."""

    parametrization: str  # `"log_ratio"`, `"bilinear"` or `"vocab"`
    # Where the value reads: `"policy"` (the policy's own features), `"lora"` (an adapter on it) or `"model"` (a model
    # of its own, in `value_model/`)
    backbone: str
    hidden_size: int  # D of the value backbone
    vocab_size: int  # V of the policy
    head_hidden_size: int | None = None  # width of the head's MLP; `None` for a linear head
    reward_kind: str = "bernoulli"  # `"bernoulli"` or `"regression"`
    base_model_name_or_path: str | None = None  # the policy's origin, for folders that do not hold its weights
    base_model_revision: str | None = None  # its commit on the hub, from which the policy is loaded
    base_model_dtype: str | None = None  # the type in which the policy's weights were, such as `"bfloat16"`
    # Checksum of the policy's weights without adapters; see `vgf_llm.models.origin`
    base_model_fingerprint: str | None = None
    transformers_version: str | None = None  # the release that wrote the folder
    transport: TransportConfig = field(default_factory=TransportConfig)  # defaults of `VGFModel.generate`
    # Digest of every file that belongs to the folder, by its path in it; see `tensor_files.file_digest`. The card, the
    # tokenizer's files and `generation_config.json` may change. `None` in format 1.
    files: dict[str, str] | None = None
    format_version: int = FORMAT_VERSION  # version of this format

    def save(self, directory: str | Path) -> None:
        """Writes `vgf_config.json` into `directory`."""
        write_json(asdict(self), Path(directory) / CONFIG_NAME)

    @classmethod
    def load(cls, directory: str | Path) -> "VGFModelConfig":
        """Reads `vgf_config.json` from `directory`; raises FileNotFoundError, or ValueError for other fields."""
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
        _check_settings(data, path)
        transport = data.get("transport", {})
        if version == 1:
            warnings.warn(
                f"{path} is of an earlier release and lists no checksums, so that its files cannot be checked. Save "
                "the model again to have them listed.",
                stacklevel=2,
            )
        if isinstance(transport, dict):
            for name in _GONE.keys() & transport.keys():
                if transport[name] == _GONE[name][0]:
                    del transport[name]
        data["transport"] = TransportConfig.from_dict(transport, str(path))
        return cls(**data)


_SIZES = {
    "hidden_size": Range(1, integer=True),
    "vocab_size": Range(1, integer=True),
    "head_hidden_size": Range(1, integer=True, optional=True),
}
_TEXTS = ("base_model_name_or_path", "base_model_revision", "base_model_fingerprint", "transformers_version")


def check_parametrization(name: Any) -> None:
    """Raises ValueError unless `name` is the parametrization of a value over next tokens."""
    if name == "v_head":
        raise ValueError("`parametrization` is 'v_head'. Values of a state alone are no longer part of this package.")
    check_choice("parametrization", name, PARAMETRIZATIONS)


def _check_settings(data: dict[str, Any], path: Path) -> None:
    """Refuses settings that would be read as others, or that fail where nobody knows of the file any more."""
    try:
        for name, allowed in _SIZES.items():
            allowed.check(name, data.get(name, 1))
        check_parametrization(data["parametrization"])
        check_choice("backbone", data["backbone"], ("policy", "lora", "model"))
        check_choice("reward_kind", data.get("reward_kind", "bernoulli"), REWARD_KINDS)
        for name in _TEXTS:
            if not isinstance(data.get(name), str | None):
                raise TypeError(f"`{name}` must be text or null, got {data[name]!r}.")
        dtype = data.get("base_model_dtype")
        if dtype is not None and not (isinstance(dtype, str) and isinstance(getattr(torch, dtype, None), torch.dtype)):
            raise ValueError(f"`base_model_dtype` must be the name of a dtype of torch, got {dtype!r}.")
        files = data.get("files")
        if files is not None and not (
            isinstance(files, dict) and all(isinstance(item, str) for item in files.values())
        ):
            raise TypeError(f"`files` must hold a checksum by the path of every file, got {files!r}.")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
