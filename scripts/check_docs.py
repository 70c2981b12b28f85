# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Check that the documentation points at things that exist.

Three kinds of reference are followed, in `docs/*.md` and in the Markdown files of the root: relative links (with
their `#anchor`), dotted names such as `vgf_llm.functional.flow.transport`, and paths in backticks that start with a
folder of this repository. Nothing is fetched. Run it with `make docs`.
"""

import importlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_FENCE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_IMAGE_TAG = re.compile(r"<img\b[^>]*\bsrc=\"([^\"]+)\"")
_DOTTED = re.compile(r"\bvgf_llm(?:\.[A-Za-z_]\w*)+")
_PATH = re.compile(r"`((?:vgf_llm|recipes|reward_models|eval|tests|benchmarks|scripts|docs)/[\w./-]*)`")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)


def documents(root: Path) -> list[Path]:
    """The Markdown files that are checked, in a stable order (the changelog may name what is gone)."""
    in_root = [path for path in root.glob("*.md") if path.name != "CHANGELOG.md"]
    return sorted(in_root) + sorted((root / "docs").rglob("*.md"))


def anchors(text: str) -> set[str]:
    """The anchors that the headings of a Markdown text get, by GitHub's rule (repeated headings count up)."""
    seen: dict[str, int] = {}
    found: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words.lower()).strip().replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        found.add(f"{slug}-{count}" if count else slug)
    return found


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute reached from one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        module_name = ".".join(parts[:cut])
        try:
            target: object = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # Only the absence of the name itself means "look one level up"; a broken import inside it is an error.
            if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
                raise
            continue
        for attribute in parts[cut:]:
            if not hasattr(target, attribute):
                return _is_field(target, attribute)
            target = getattr(target, attribute)
        return True
    return False


def _is_field(target: object, attribute: str) -> bool:
    """Whether a class annotates the attribute (dataclass fields without a default are not class attributes)."""
    return isinstance(target, type) and any(
        attribute in vars(base).get("__annotations__", {}) for base in target.__mro__
    )


def _link_problem(document: Path, target: str) -> str | None:
    if re.match(r"[a-z][a-z0-9+.-]*:", target):
        return None
    path_part, _, anchor = target.partition("#")
    path = (document.parent / path_part).resolve() if path_part else document
    if not path.exists():
        return f"link to {target}: no such file"
    if anchor and path.suffix == ".md" and anchor not in anchors(path.read_text(encoding="utf-8")):
        return f"link to {target}: no such heading"
    return None


def problems(root: Path = ROOT) -> list[str]:
    """Every reference in the documentation that leads nowhere, as `file: what is wrong`."""
    found: list[str] = []
    for document in documents(root):
        text = document.read_text(encoding="utf-8")
        prose = _FENCE.sub("", text)
        complaints = [_link_problem(document, link) for link in _LINK.findall(prose) + _IMAGE_TAG.findall(prose)]
        complaints += [f"{name}: no such name" for name in sorted(set(_DOTTED.findall(text))) if not resolves(name)]
        complaints += [
            f"{path}: no such file" for path in sorted(set(_PATH.findall(text))) if not (root / path).exists()
        ]
        found += [f"{document.relative_to(root)}: {complaint}" for complaint in complaints if complaint]
    return found


def main() -> int:
    """Print what is wrong; the exit status is 1 when something is."""
    checked = documents(ROOT)
    found = problems()
    for problem in found:
        print(problem)
    print(f"{len(checked)} documents checked, {len(found)} broken references")
    return 1 if found or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
