# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Measures what a comparison trained: on validation problems to choose, on test problems to report."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from eval.baselines import TRAINABLE, recipe_init_kwargs, recipe_transport
from eval.methods import Method, PlanOptions, abilities, plan
from eval.sampling import Samples, sample
from eval.scaling import choose_steps, measure
from eval.tasks import Task
from vgf_llm.models import VGFModel
from vgf_llm.models.merging import merging_obstacle

# The base itself, all of whose rows are measured in one run.
UNTRAINED = "base"
# What follows the key of a method for rows of the plain model behind its value, what limits that one's candidates, and
# what follows for rows of a policy that is limited likewise.
EXPORTED = ", exported"
LIMITED = ", likely tokens"
CANDIDATE_DEFAULTS = ("top_k", "epsilon_cutoff")
Rows = dict[str, Any]


class Problems(Protocol):
    """What is read of a comparison."""

    args: Any
    recipe: Any
    vgf_config: Path
    validation: Task
    test: Task


def validate(problems: Problems, name: str, folder: Path, seed: int) -> dict[str, Any]:
    """Scores sampled responses to validation problems, a value's at the budget L that they choose.

    Args:
        problems: The comparison.
        name: Method.
        folder: What it saved; unused for the base.
        seed: Seed.

    Returns:
        `"validation"`, a mean and its standard error; of models with a value `"steps"`, and where a proxy chooses
        among several responses `"steps_best_of"`, the L that is best for them.
    """
    if name == UNTRAINED or not TRAINABLE[name].has_value:
        return {"validation": _score(problems, _policy(problems, name, folder), folder, seed)}
    model = VGFModel.from_pretrained(folder, **recipe_init_kwargs(problems.vgf_config))
    able = abilities(model, problems.test)
    options = PlanOptions(steps=problems.args.steps, num_particles=(1, 4))
    sampler = task_sampler(model, _tokenizer(folder), problems.validation)
    methods = plan([f"vgf_{able.spaces[0]}"], able, options)
    steps = choose_steps(sampler, methods, seed=seed)
    found: dict[str, Any] = {"steps": steps}
    if able.has_proxy:
        votes = problems.args.num_votes
        found["steps_best_of"] = choose_steps(sampler, methods, seed=seed, num_samples=votes, selection="proxy")
    if TRAINABLE[name].distilled:
        return {"validation": _score(problems, _policy(problems, name, folder), folder, seed), **found}
    return {"validation": _score(problems, model, folder, seed, steps=steps), **found}


def test(problems: Problems, name: str, folder: Path, seed: int, chosen: dict[str, Any]) -> dict[str, Rows]:
    """Measures every mode of decoding on test problems.

    Args:
        problems: The comparison.
        name: Method.
        folder: What it saved; unused for the base.
        seed: Seed.
        chosen: What `validate` returned.

    Returns:
        Rows by mode, for the method and for what else its model can be used as.
    """
    votes = problems.args.num_votes
    if name == UNTRAINED:
        # A transported response may cost two forwards per token: twice the responses are its match in compute.
        policy = _policy(problems, name, folder)
        methods = _plain_methods(policy, problems.test, (votes, 2 * votes), (0.3, 0.7, 1.0))
        return {name: _rows(problems, policy, problems.recipe.base, methods, seed)}
    found = {}
    method = TRAINABLE[name]
    if not method.has_value or method.distilled:
        policy = _policy(problems, name, folder)
        found[name] = _rows(problems, policy, folder, _plain_methods(policy, problems.test, (votes,), (1.0,)), seed)
    if method.scheduled:
        transport = recipe_transport(problems.vgf_config, problems.args.num_generations)
        limits = {"top_k": transport.top_k_candidates, "epsilon_cutoff": transport.min_candidate_prob}
        plain = _plain_methods(policy, problems.test, (votes,), (1.0,), limits)
        found[f"{name}{LIMITED}"] = _rows(problems, policy, folder, plain, seed)
    if not method.has_value:
        return found
    model = VGFModel.from_pretrained(folder, **recipe_init_kwargs(problems.vgf_config))
    able = abilities(model, problems.test)
    options = PlanOptions(steps=(chosen["steps"],), num_particles=(1, votes))
    space = f"vgf_{able.spaces[0]}"
    modes = _transported_methods(plan([space], able, options), votes)
    # The whole curve of one training: a sampled response at every budget.
    budgets = plan([space], able, replace(options, steps=problems.args.steps, num_particles=(1,)))
    curve = [row for row in budgets if row.draw.options.get("do_sample")]
    modes |= {f"sampled, L={row.steps}": replace(row, draws=options.num_particles[-1]) for row in curve}
    if able.has_proxy:
        several = plan([space], able, replace(options, steps=(chosen["steps_best_of"],)))
        by_value = next(method for method in several if method.selection == "value")
        label = by_value.label.replace("by value", "by proxy")
        modes[f"best-of-{votes} by proxy"] = replace(by_value, label=label, selection="proxy")
    transported = f"{name} + transport" if method.distilled else name
    found[transported] = _rows(problems, model, folder, modes, seed)
    if name == "vgf":
        by_value_rows = {row.label: row for row in plan(["best_of_n", "best_of_m"], able, options)}
        found["base, chosen by VGF's value"] = _rows(problems, model, folder, by_value_rows, seed)
    if merging_obstacle(model) is None:
        exported = _beside_base(problems, model.merge_value())
        sampling = {name: getattr(exported.generation_config, name) for name in CANDIDATE_DEFAULTS}
        # Cooled, it is the control of budgets beyond L * epsilon = 1.
        plain = _plain_methods(exported, problems.test, (votes,), (0.5, 0.7, 1.0), sampling)
        found[f"{name}{EXPORTED}"] = _rows(problems, exported, folder, plain, seed)
    return found


def _beside_base(problems: Problems, policy: PreTrainedModel) -> VGFModel:
    """A trained policy; divergences are to the base that every method started from."""
    reference = AutoModelForCausalLM.from_pretrained(problems.recipe.base, **recipe_init_kwargs(problems.vgf_config))
    return VGFModel(policy, ref_model=reference).eval()


def _policy(problems: Problems, name: str, folder: Path) -> VGFModel:
    """The base, or the plain policy that a method saved."""
    source = problems.recipe.base if name == UNTRAINED else folder
    policy = AutoModelForCausalLM.from_pretrained(source, **recipe_init_kwargs(problems.vgf_config))
    return VGFModel(policy).eval() if name == UNTRAINED else _beside_base(problems, policy)


def _tokenizer(folder: Path | str) -> Any:
    return AutoTokenizer.from_pretrained(folder, padding_side="left")


def task_sampler(model: VGFModel, tokenizer: Any, task: Task) -> Callable[..., Samples]:
    """Samples responses to a task as every comparison does, but for what the draw says."""
    options = {"cache_implementation": "static", "disable_compile": True, "pad_token_id": tokenizer.pad_token_id}
    return partial(sample, model, tokenizer, task, batch_size=512, **options)


def _score(problems: Problems, model: VGFModel, folder: Path, seed: int, *, steps: int | None = None) -> list[float]:
    """Mean and standard error of sampled responses to validation problems."""
    task = problems.validation
    able = abilities(model, task, has_value=steps is not None)
    name = "temperature" if steps is None else f"vgf_{able.spaces[0]}"
    options = PlanOptions(steps=(steps or 0,), num_particles=(1, 4), temperatures=(1.0,))
    methods = [m for m in plan([name], able, options) if m.selection == "single" and m.draw.options.get("do_sample")]
    tokenizer = _tokenizer(folder if folder.is_dir() else problems.recipe.base)
    row = measure(task_sampler(model, tokenizer, task), methods[-1:], seeds=[seed]).rows[0]
    return [row.score, row.standard_error]


def _rows(problems: Problems, model: VGFModel, folder: Path | str, modes: dict[str, Method], seed: int) -> Rows:
    """Per-problem scores and costs by mode."""
    sampler = task_sampler(model, _tokenizer(folder), problems.test)
    result = measure(sampler, list(modes.values()), seeds=[seed])
    rows = {}
    for mode, method in modes.items():
        row = result.row(method.label)
        rows[mode] = {
            "scores": [round(x, 6) for x in result.scores[method.label].tolist()],
            "seconds": row.seconds,
            "tokens": row.tokens,
            "kl": row.kl,
            "proxy": row.proxy,
        }
    return rows


def _plain_methods(
    model: VGFModel,
    task: Task,
    votes: Sequence[int],
    temperatures: Sequence[float],
    sampling: dict[str, Any] | None = None,
) -> dict[str, Method]:
    """Greedy, sampled and voted rows of a policy, by mode."""
    able = abilities(model, task, has_value=False)
    options = PlanOptions(num_particles=(1, *votes), temperatures=temperatures, sampling=sampling or {})
    names = [name for name in ("greedy", "temperature", "majority", "best_of_n_proxy") if able.missing(name) is None]
    return {method.label.replace("sampled, T=1", "sampled"): method for method in plan(names, able, options)}


def _transported_methods(methods: Sequence[Method], votes: int) -> dict[str, Method]:
    names = {"single": "sampled", "value": f"best-of-{votes} by value", "majority": f"majority@{votes}",
             "weighted_vote": f"value-weighted vote of {votes}"}  # fmt: skip
    return {names[method.selection] if method.draw.options.get("do_sample") else "greedy": method for method in methods}
