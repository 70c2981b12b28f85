# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The Python blocks of the documentation: they parse, and those that need nothing from outside run."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scripts import draw_concepts
from vgf_llm import TransportConfig, VGFConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Pages that run from top to bottom; those that name another page go on from the first block of it.
RUNNABLE = {
    "budget.md": "generation.md",
    "generation.md": None,
    "method.md": None,
    "quickstart.md": None,
    "reward_models.md": None,
    "sequences.md": None,
    "test_time.md": "generation.md",
    "training.md": None,
}
# Sizes of a page that a test makes smaller.
SMALLER = {"num_problems, num_epochs = 256, 4": "num_problems, num_epochs = 64, 1", "num_tests = 200": "num_tests = 8"}
_BLOCK = re.compile(r"^```python([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; one marked `no-run` needs something from outside."""

    page: Path
    line: int
    runs: bool
    source: str

    def compiled(self) -> Any:
        source = self.source
        for size, smaller in SMALLER.items():
            source = source.replace(size, smaller)
        # Empty lines in front give errors the line numbers of the page.
        return compile("\n" * self.line + source, str(self.page), "exec")


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
    assert runnable
    set_up = RUNNABLE[name]
    first = blocks(ROOT / "docs" / set_up)[:1] if set_up else []
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in first + runnable:
        exec(block.compiled(), namespace)


def test_what_is_made_smaller_is_on_a_page() -> None:
    sources = [block.source for name in RUNNABLE for block in blocks(ROOT / "docs" / name)]
    assert all(any(size in source for source in sources) for size in SMALLER)


def is_run(page: Path) -> bool:
    return page.parent.name == "docs" and page.name in RUNNABLE


@pytest.mark.parametrize("page", [page for page in PAGES if not is_run(page)], ids=lambda page: page.name)
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


def messages() -> Iterator[str]:
    """What the package and the reward models raise and warn, with `\0` for what is filled in."""
    for path in sorted(path for folder in ("vgf_llm", "reward_models") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%\.?\d*[a-z]", "\0", node.value)
            elif isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)


def test_troubleshooting_quotes_messages_that_exist() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^```text\n(.*?)\n```", page, re.MULTILINE | re.DOTALL)
    assert len(quoted) >= 20
    known = list(messages())
    # Where the text of a message names a value by `{value!r}`, the page shows the quotes of a name.
    patterns = {q: ".*".join(re.escape(part) for part in q.replace("'...'", "...").split("...")) for q in quoted}
    gone = [q for q, pattern in patterns.items() if not any(re.search(pattern, text, re.DOTALL) for text in known)]
    assert not gone, f"no source has these messages any more: {gone}"


@pytest.mark.parametrize("name", draw_concepts.FIGURES)
def test_drawings_are_those_of_the_script(name: str) -> None:
    assert (draw_concepts.IMAGES / name).read_text(encoding="utf-8") == draw_concepts.FIGURES[name]()
