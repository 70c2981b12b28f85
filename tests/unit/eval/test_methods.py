# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Plans: which rows a table has, what they share, and what is refused."""

import pytest

from eval.methods import DEFAULT_METHODS, METHODS, SPACES, Abilities, PlanOptions, abilities, check_methods, plan
from eval.tasks import Task, TaskOptions, load_task
from tests.layouts import tiny_model, vgf_model

HEAD = Abilities(has_value=True, spaces=("logit", "sequence_embedding"), forwards=1)
RATIO = Abilities(has_value=True, spaces=("logit", "sequence_embedding"), forwards=2)
PLAIN = Abilities(has_value=False)
SMALL = PlanOptions(steps=(0, 2, 4), num_particles=(1, 4), temperatures=(0.3, 0.7, 1.0))


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("embedded_math", TaskOptions(num_problems=2))


def labels(names: list[str], able: Abilities = HEAD, options: PlanOptions = SMALL) -> list[str]:
    return [method.label for method in plan(check_methods(names, able), able, options)]


def test_spaces_are_those_that_the_value_can_move_in(task: Task) -> None:
    found = {
        name: abilities(vgf_model(tiny_model(), name, backbone), task).spaces
        for name, backbone in (("bilinear", "policy"), ("vocab", "policy"))
    }
    assert found == {"bilinear": ("logit",), "vocab": ("logit",)}
    ratio = vgf_model(tiny_model(), "log_ratio", value_model=tiny_model(seed=2))
    assert abilities(ratio, task).forwards == 2
    assert abilities(ratio, task, has_value=False).spaces == ()


def test_every_method_is_described_and_gives_rows() -> None:
    able = Abilities(has_value=True, spaces=tuple(SPACES), has_proxy=True, forwards=2)
    for name in METHODS:
        assert plan(check_methods([name], able), able, SMALL), name
    assert set(check_methods(None, able)) >= set(DEFAULT_METHODS) - {"vgf"}


def test_rows_of_the_base_share_one_draw() -> None:
    methods = plan(check_methods(["majority", "best_of_n", "value_vote", "oracle"], HEAD), HEAD, SMALL)
    assert {method.draw.name for method in methods} == {"base", "T=0.7"}
    assert [method.label for method in methods if method.draw.name == "T=0.7"] == ["majority@4, T=0.7"]


def test_best_of_m_has_the_decode_cost_of_n_particles() -> None:
    assert labels(["best_of_m"], RATIO) == ["best-of-8 by value (compute-matched)"]
    assert labels(["best_of_m"], HEAD) == []  # one forward per token: best-of-4 is matched already


def test_transport_has_a_row_for_every_budget_and_choice() -> None:
    rows = labels(["vgf"])
    assert "VGF, one particle, L=0" in rows
    assert "VGF, majority of 4, L=4" in rows
    assert "VGF sequence_embedding, best of 4 by value, L=2" in rows
    assert "VGF sequence_embedding, one particle, L=0" not in rows  # the base once is enough
    assert "VGF greedy, L=4" in rows
    assert labels(["random_direction"]) == ["random direction, L=2", "random direction, L=4"]


def test_controls_move_in_the_space_of_the_model() -> None:
    able = Abilities(has_value=True, spaces=("sequence_logit",))
    for method in plan(["random_direction", "shuffled_value"], able, SMALL):
        assert method.draw.options["space"] == "sequence_logit"
        assert method.draw.options["control"] in ("random", "shuffled")
        assert method.draws == 4


def test_interacting_particles_are_drawn_for_each_count() -> None:
    able = Abilities(has_value=True, spaces=("logit",), interacting=True)
    options = PlanOptions(steps=(2,), num_particles=(1, 4, 8))
    assert len({method.draw.name for method in plan(["vgf_logit"], able, options)}) == 4  # N = 1, 4, 8 and greedy


@pytest.mark.parametrize(
    ("names", "able", "message"),
    [
        (["ppo"], HEAD, "`methods` must be among greedy, temperature, .*, or all; got ppo"),
        ([], HEAD, "`methods` is empty"),
        (["vgf"], PLAIN, "'vgf' needs a learned value; this is a plain language model.*Possible here: greedy"),
        (["vgf_sequence_logit"], HEAD, "needs another kind of value; this model's moves in logit, sequence_embedding"),
        (["best_of_n_proxy"], HEAD, "needs a proxy reward"),
        (["majority"], Abilities(has_value=False, has_answers=False), "needs answers to vote on"),
        (["oracle"], Abilities(has_value=False, binary=False), "needs right and wrong answers"),
    ],
)
def test_what_cannot_be_done_is_refused(names: list[str], able: Abilities, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_methods(names, able)


def test_all_leaves_out_what_cannot_be_done() -> None:
    assert check_methods(["all"], PLAIN) == ["greedy", "temperature", "majority", "oracle"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": ()}, "`steps` must be one or more integers >= 0"),
        ({"steps": (-1,)}, r"`steps` must be one or more integers >= 0, got \[-1\]"),
        ({"num_particles": (0,)}, "`num_particles` must be one or more integers >= 1"),
        ({"temperatures": (0.0,)}, "`temperatures` must be one or more numbers > 0"),
    ],
)
def test_impossible_sizes_are_refused(settings: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlanOptions(**settings)  # type: ignore[arg-type]
