# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The Python blocks of the documentation: they parse, and those that need nothing from outside run."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vgf_llm import TransportConfig, VGFConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUNNABLE = ("generation.md", "method.md", "sequences.md")
_BLOCK = re.compile(r"^```python([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; one marked `no-run` needs something from outside."""

    page: Path
    line: int
    runs: bool
    source: str

    def compiled(self) -> Any:
        # Empty lines in front give errors the line numbers of the page.
        return compile("\n" * self.line + self.source, str(self.page), "exec")


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        mark = match[1].strip()
        assert mark in ("", "no-run"), f"{page.name}: a block is marked {mark!r}; the one mark is `no-run`"
        found.append(Block(page, text[: match.start()].count("\n") + 1, not mark, match[2]))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_parses(page: Path) -> None:
    for block in blocks(page):
        block.compiled()


@pytest.mark.parametrize("name", RUNNABLE)
def test_pages_run_from_top_to_bottom(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runnable = [block for block in blocks(ROOT / "docs" / name) if block.runs]
    assert len(runnable) > 5
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in runnable:
        exec(block.compiled(), namespace)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in RUNNABLE], ids=lambda page: page.name)
def test_other_pages_promise_nothing_that_is_not_checked(page: Path) -> None:
    unchecked = [block.line for block in blocks(page) if block.runs]
    assert not unchecked, f"{page.name}: mark the blocks at lines {unchecked} `no-run`, or run the page here"


def test_the_training_page_names_every_own_setting() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    own = set(VGFConfig.__annotations__) - {"learning_rate"}
    assert not {name for name in own if f"`{name}`" not in text}


def test_the_generation_page_states_every_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", (ROOT / "docs" / "generation.md").read_text(encoding="utf-8"), re.M)
    words = {"none": None, "off": False, "on": True}
    stated = {name: words.get(value, value.strip('`"')) for name, value in rows}
    defaults = vars(TransportConfig())
    assert stated.keys() == defaults.keys()
    for name, value in defaults.items():
        found = stated[name]
        assert found == value if isinstance(value, bool | str | None) else float(found) == value, name
