# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What docs/evaluation.md, docs/budget.md and the Makefile say can be typed, and names everything that there is."""

import re
import shlex
from pathlib import Path

import pytest

from eval import compare, run, tune_budget
from eval.baselines import TRAINABLE
from eval.methods import METHODS
from eval.tasks import TASKS

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
BUDGET_PAGE = (ROOT / "docs" / "budget.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)/", "").replace("$(ARGS)", "")
PARSERS = {"run": run.parse, "tune_budget": tune_budget.parse, "compare": compare.parse}
COMMANDS = [
    (match[1], match[2].replace("\\\n", " "))
    for text in (PAGE, BUDGET_PAGE, MAKEFILE)
    for match in re.finditer(r"^\t?python -m eval\.(\w+) ((?:[^\n]*\\\n)*[^\n]*)$", text, re.MULTILINE)
    if match[1] in PARSERS
]


@pytest.mark.parametrize(("module", "options"), COMMANDS, ids=[module for module, _ in COMMANDS])
def test_commands_parse(module: str, options: str) -> None:
    args = PARSERS[module](shlex.split(options))
    if module == "compare":
        assert args.recipe in compare.RECIPES
    else:
        assert args.task in TASKS


def test_there_are_commands_of_every_kind() -> None:
    assert {module for module, _ in COMMANDS} == set(PARSERS)
    assert len(COMMANDS) >= 7


def test_every_task_and_method_is_named() -> None:
    for name in (*TASKS, *METHODS, *TRAINABLE):
        assert f"`{name}`" in PAGE, name
