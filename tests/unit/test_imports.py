# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""No module of the package imports itself by way of others, lazily or for types alone."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "vgf_llm"


def imports() -> dict[str, set[str]]:
    """What every module below the trainer imports, anywhere in it; a module's own package does not count."""
    files = {
        ".".join(("vgf_llm", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                parts = package.split(".")
                parts = parts[: len(parts) - node.level + 1] if node.level else []
                module = ".".join([*parts, *([node.module] if node.module else [])])
                names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
            found[name] |= {target for target in names if target in files} - {name, name.rpartition(".")[0]}
    return found


def test_models_spaces_and_generation_are_no_circle() -> None:
    edges = {name: found for name, found in imports().items() if not name.startswith("vgf_llm.trainer")}
    while True:  # take away what imports nothing that is left
        free = {name for name, found in edges.items() if not found & edges.keys()}
        if not free:
            break
        edges = {name: found for name, found in edges.items() if name not in free}
    assert not edges
