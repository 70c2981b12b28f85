# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The methods that a table compares: how each samples, how many responses it takes, and how it chooses among them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from eval.sampling import Draw
from eval.tasks import Task
from vgf_llm.models import VGFModel

# What `--methods` may name, and what it gives.
METHODS = {
    "greedy": "the most likely token, without transport",
    "temperature": "one response at every temperature of the grid",
    "majority": "majority vote over N base responses",
    "best_of_n": "the base response of highest value among N",
    "best_of_n_proxy": "the base response of highest proxy reward among N",
    "value_vote": "vote over N base responses, weighted by value",
    "best_of_m": "best-of-M by value at the decode cost of N transported particles",
    "oracle": "whether one of N base responses is right (pass@N; no method, a ceiling)",
    "vgf": "transport in every space that the model can do",
    "random_direction": "transport with directions of the value's spread and random sense",
    "shuffled_value": "transport with the value's numbers given to the wrong candidates",
}
# Ways to transport, each a method of its own as `vgf_<name>`.
SPACES: dict[str, dict[str, Any]] = {
    "logit": {"space": "logit"},
    "sequence_embedding": {"space": "sequence_embedding"},
    "sequence_logit": {"space": "sequence_logit"},
}
METHODS |= {f"vgf_{name}": f"transport, {settings}" for name, settings in SPACES.items()}
DEFAULT_METHODS = tuple(name for name in METHODS if not name.startswith("vgf_"))
_NEED_VALUE = ("best_of_n", "value_vote", "best_of_m", "vgf", "random_direction", "shuffled_value")


@dataclass(frozen=True)
class Method:
    """One row of a table.

    Attributes:
        label: Its name there.
        family: What it is an instance of; rows of one family that differ in L are a curve.
        draw: How it samples.
        num_samples: Responses drawn per problem to give one answer.
        selection: How the answer is chosen, see `Samples.pick`.
        steps: L, for methods that transport.
        draws: Responses to draw at least, so that the mean over single responses has less noise.
    """

    label: str
    family: str
    draw: Draw
    num_samples: int = 1
    selection: str = "single"
    steps: int | None = None
    draws: int = 1


@dataclass(frozen=True)
class Abilities:
    """What a model can do on a task.

    Attributes:
        has_value: Whether the model carries a learned value.
        spaces: Names of `SPACES` that it can move in.
        has_proxy: Whether the task has a proxy reward.
        has_answers: Whether responses have an answer to vote on.
        binary: Whether gold is 0 or 1.
        forwards: Decode forwards per token of a transported response: policy, value and reference.
        interacting: Whether particles interact, so that N of them are not the first N of more.
    """

    has_value: bool
    spaces: tuple[str, ...] = ()
    has_proxy: bool = False
    has_answers: bool = True
    binary: bool = True
    forwards: int = 1
    interacting: bool = False

    def missing(self, method: str) -> str | None:
        """Returns what a method lacks, or `None` if it can run."""
        if (method in _NEED_VALUE or method.startswith("vgf_")) and not self.has_value:
            return "a learned value; this is a plain language model (train one with VGFTrainer)"
        if method.startswith("vgf_") and method.removeprefix("vgf_") not in self.spaces:
            return f"another kind of value; this model's moves in {', '.join(self.spaces)}"
        if method == "best_of_n_proxy" and not self.has_proxy:
            return "a proxy reward, which this task has not"
        if method in ("majority", "value_vote") and not self.has_answers:
            return "answers to vote on, which responses of this task have not"
        if method == "oracle" and not self.binary:
            return "right and wrong answers; this task's score is a number"
        return None


def abilities(model: VGFModel, task: Task, *, has_value: bool = True) -> Abilities:
    """Finds out what a model can do on a task, by building every space.

    Args:
        model: The model.
        task: The task.
        has_value: Whether the model's value was learned; a plain language model has an empty one.

    Returns:
        `Abilities`.
    """
    spaces = [name for name, settings in SPACES.items() if _can_move(model, settings)]
    models = len(model.value_blocks()) + (model.value_model is not None)
    return Abilities(
        has_value=has_value,
        spaces=tuple(spaces) if has_value else (),
        has_proxy=task.proxy is not None,
        has_answers=task.answer_of is not None,
        binary=task.binary,
        forwards=models + (model.ref_model is not None and model.value.needs_logits),
        interacting=model.transport.interaction,
    )


def _can_move(model: VGFModel, settings: dict[str, Any]) -> bool:
    try:
        replace(model.transport, **settings)
    except ValueError:  # the refusal of the configuration is the answer
        return False
    return settings["space"] == "logit" or model.sequence_value is not None


def check_methods(names: Sequence[str] | None, able: Abilities) -> list[str]:
    """Resolves `--methods` before anything expensive happens.

    Args:
        names: Names; `None` or `all` for every method that the model can do.
        able: What it can do.

    Returns:
        Names, `vgf` replaced by its spaces.

    Raises:
        ValueError: For unknown methods, or one that the model or the task cannot do.
    """
    if names is not None and not names:
        raise ValueError(f"`methods` is empty; name some of: {', '.join(METHODS)}.")
    chosen = list(DEFAULT_METHODS)
    if names is not None and list(names) != ["all"]:
        unknown = [name for name in names if name not in METHODS]
        if unknown:
            raise ValueError(f"`methods` must be among {', '.join(METHODS)}, or all; got {', '.join(unknown)}.")
        chosen = list(names)
        for name in chosen:
            missing = able.missing(name)
            if missing is not None:
                possible = [method for method in METHODS if able.missing(method) is None]
                raise ValueError(f"The method {name!r} needs {missing}. Possible here: {', '.join(possible)}.")
    resolved: list[str] = []
    for name in chosen:
        if able.missing(name) is None:
            resolved += [f"vgf_{space}" for space in able.spaces] if name == "vgf" else [name]
    return list(dict.fromkeys(resolved))


@dataclass(frozen=True)
class PlanOptions:
    """The sizes of a table.

    Args:
        steps: Budgets L.
        num_particles: Counts N.
        temperatures: Grid of the method `temperature`.
        control_steps: Budgets of the controls; those of `steps` above 0 if left out.
        extra_counts: Further counts N for the base's votes and best-of rows.
        sampling: Generation arguments of every sampled draw, where it is not plain sampling.
    """

    steps: Sequence[int] = (0, 1, 2, 4, 8, 16)
    num_particles: Sequence[int] = (1, 4, 8)
    temperatures: Sequence[float] = (0.3, 0.7, 1.0)
    control_steps: Sequence[int] | None = None
    extra_counts: Sequence[int] = ()
    sampling: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("num_particles", 1)):
            values = getattr(self, name)
            if not values or any(value < least for value in values):
                raise ValueError(f"`{name}` must be one or more integers >= {least}, got {list(values)}.")
        if not self.temperatures or any(not value > 0 for value in self.temperatures):
            raise ValueError(f"`temperatures` must be one or more numbers > 0, got {list(self.temperatures)}.")


def plan(names: Sequence[str], able: Abilities, options: PlanOptions) -> list[Method]:
    """Lays out the rows of a table; rows that can share samples name the same draw.

    Args:
        names: What `check_methods` returned.
        able: What the model can do.
        options: Sizes.

    Returns:
        Methods, in the order of `METHODS`.
    """
    rows: list[Method] = []
    for name in sorted(names, key=list(METHODS).index):
        if name.startswith("vgf_"):
            rows += _transported(name.removeprefix("vgf_"), able, options)
        elif name in ("random_direction", "shuffled_value"):
            rows += _controls(name, able, options)
        else:
            rows += _base_rows(name, able, options)
    return rows


def _base_rows(name: str, able: Abilities, options: PlanOptions) -> list[Method]:
    base = Draw("base", {"do_sample": True, **options.sampling}, with_values=able.has_value)
    counts = sorted({n for n in (*options.num_particles, *options.extra_counts) if n > 1})
    if name == "greedy":
        return [Method("greedy", name, Draw("greedy", {"do_sample": False}))]
    if name == "temperature":
        rows = []
        for value in sorted(set(options.temperatures)):
            draw = base if value == 1 else _cooled(value, options)
            rows.append(Method(f"sampled, T={value:g}", name, draw, draws=max(options.num_particles)))
        return rows
    if name == "majority":
        cool = min(options.temperatures, key=lambda value: abs(value - 0.7))
        rows = [Method(f"majority@{n}", name, base, n, "majority") for n in counts]
        if cool != 1 and counts:
            label = f"majority@{counts[-1]}, T={cool:g}"
            rows.insert(0, Method(label, name, _cooled(cool, options), counts[-1], "majority"))
        return rows
    if name == "best_of_m":
        matched = max(options.num_particles) * able.forwards
        if matched in counts:  # a value on the policy's own features: best-of-N is the matched row already
            return []
        return [Method(f"best-of-{matched} by value (compute-matched)", name, base, matched, "value")]
    selections = {
        "best_of_n": ("best-of-{n} by value", "value"),
        "best_of_n_proxy": ("best-of-{n} by proxy", "proxy"),
        "value_vote": ("value-weighted vote of {n}", "weighted_vote"),
        "oracle": ("pass@{n} (oracle)", "oracle"),
    }
    label, selection = selections[name]
    return [Method(label.format(n=n), name, base, n, selection) for n in counts]


def _cooled(temperature: float, options: PlanOptions) -> Draw:
    settings = {"do_sample": True, **options.sampling, "temperature": temperature}
    return Draw(f"T={temperature:g}", settings)


def _transported(space: str, able: Abilities, options: PlanOptions) -> list[Method]:
    """One particle, best by value and the votes, at every L; L = 0 are the base's samples."""
    title = "VGF" if space == able.spaces[0] else f"VGF {space}"
    rows: list[Method] = []
    first = space == able.spaces[0]
    for steps in sorted(steps for steps in set(options.steps) if first or steps > 0):
        for n in sorted(set(options.num_particles)):
            draw = Draw("base", {"do_sample": True, **options.sampling}, with_values=True)
            if steps > 0:
                settings = {"do_sample": True, **options.sampling, **SPACES[space], "transport_steps": steps}
                # Particles that interact are drawn for each N; others are the first N of the most.
                tag = f" N={n}" if able.interacting and n > 1 else ""
                draw = Draw(f"VGF {space} L={steps}{tag}", settings, with_values=True)
            choices = [("one particle", "single")]
            if n > 1:
                choices = [(f"best of {n} by value", "value")]
                if able.has_answers:
                    choices += [(f"majority of {n}", "majority"), (f"value-weighted vote of {n}", "weighted_vote")]
            rows += [
                Method(f"{title}, {text}, L={steps}", f"{title}, {text}", draw, n, selection, steps)
                for text, selection in choices
            ]
        if steps > 0 and not space.startswith("sequence"):  # whole responses start from samples
            greedy = {"do_sample": False, **SPACES[space], "transport_steps": steps}
            name = f"{title} greedy"
            rows.append(
                Method(f"{name}, L={steps}", name, Draw(f"VGF {space} greedy L={steps}", greedy, True), steps=steps)
            )
    return rows


def _controls(name: str, able: Abilities, options: PlanOptions) -> list[Method]:
    control = {"random_direction": "random", "shuffled_value": "shuffled"}[name]
    title = name.replace("_", " ")
    budgets = options.steps if options.control_steps is None else options.control_steps
    rows = []
    for steps in sorted({steps for steps in budgets if steps > 0}):
        settings = {"do_sample": True, **options.sampling, **SPACES[able.spaces[0]]}
        draw = Draw(f"{title} L={steps}", {**settings, "transport_steps": steps, "control": control}, True)
        rows.append(Method(f"{title}, L={steps}", title, draw, steps=steps, draws=max(options.num_particles)))
    return rows
