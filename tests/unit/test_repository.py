# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Promises that the repository makes about itself: packaging, imports, file headers, configs and documentation."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import vgf_llm
from scripts import check_docs

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("vgf_llm", "recipes", "reward_models", "eval")
COPYRIGHT = "# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0."
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def files(*folders: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files with one of the suffixes below the folders of the repository."""
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes and "__pycache__" not in path.parts
    )


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The names that a module imports, dotted to the last, with their lines; `from a import b` gives `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def private_trl_imports(source: str) -> list[tuple[str, int]]:
    """Imports from TRL other than the public names of its top level and of `trl.rewards`, which its docs list."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(a.name, node.lineno) for a in node.names if a.name.startswith("trl.")]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            module = node.module or ""
            if module in ("trl", "trl.rewards"):
                found += [(f"{module}.{a.name}", node.lineno) for a in node.names if a.name.startswith("_")]
            elif module.startswith("trl."):
                found.append((module, node.lineno))
    return found


def unsafe_serialisation(source: str) -> list[tuple[str, int]]:
    """Uses of pickle, by import or through torch."""
    tree = ast.parse(source)
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
    calls = {"torch.save", "torch.load"}
    found = [(name, line) for name, line in imported_modules(tree) if name.split(".")[0] in modules or name in calls]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in calls:
            found.append((ast.unparse(node), node.lineno))
    return found


def bash_blocks(markdown: str) -> list[str]:
    return re.findall(r"^```(?:bash|sh|shell)\n(.*?)^```", markdown, flags=re.MULTILINE | re.DOTALL)


def test_version_is_stated_once_and_the_same() -> None:
    assert PYPROJECT["project"]["version"] == vgf_llm.__version__


def test_editable_install_reaches_the_other_folders() -> None:
    assert PYPROJECT["tool"]["hatch"]["build"]["dev-mode-dirs"] == ["."]


def test_console_script_exists() -> None:
    module, _, function = PYPROJECT["project"]["scripts"]["vgf"].partition(":")
    assert check_docs.resolves(f"{module}.{function}")


def test_every_extra_is_there() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    names = {"deepspeed", "vllm", "math", "plots", "track", "lm-eval", "demo", "ogbench", "test", "docs", "dev"}
    assert set(extras) == names


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("from trl import GRPOTrainer\nimport trl", 0),
        ("from trl.rewards import accuracy_reward", 0),
        ("from trl.rewards.accuracy_rewards import accuracy_reward", 1),
        ("from trl.trainer.utils import pad", 1),
        ("import trl.trainer.base_trainer as b", 1),
        ("def f():\n    from trl import _hidden", 1),
    ],
)
def test_private_trl_imports_are_recognised(source: str, count: int) -> None:
    assert len(private_trl_imports(source)) == count


def test_only_compat_reaches_into_trl() -> None:
    compat = ROOT / "vgf_llm" / "_compat.py"
    offenders = [
        f"{relative(path)}:{line} imports {name}"
        for path in files(*PACKAGES, suffixes=(".py",))
        if path != compat
        for name, line in private_trl_imports(path.read_text(encoding="utf-8"))
    ]
    assert not offenders, "move these imports to vgf_llm/_compat.py:\n" + "\n".join(offenders)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import json\nfrom safetensors.torch import save_file", 0),
        ("import pickle", 1),
        ("from pickle import dumps", 1),
        ("import torch\ntorch.save({}, 'f')", 1),
        ("from torch import load", 1),
    ],
)
def test_unsafe_serialisation_is_recognised(source: str, count: int) -> None:
    assert len(unsafe_serialisation(source)) == count


def test_nothing_is_pickled() -> None:
    offenders = [
        f"{relative(path)}:{line} uses {name}"
        for path in files(*PACKAGES, suffixes=(".py",))
        for name, line in unsafe_serialisation(path.read_text(encoding="utf-8"))
    ]
    assert not offenders, "artefacts are safetensors and JSON:\n" + "\n".join(offenders)


def test_every_source_file_opens_with_the_copyright_line() -> None:
    sources = files(*PACKAGES, "tests", "benchmarks", "scripts", suffixes=(".py", ".sh"))
    sources += [ROOT / "Makefile", ROOT / ".ci" / "run"]
    without = []
    for path in sources:
        lines = path.read_text(encoding="utf-8").splitlines()
        first = lines[1:2] if lines and lines[0].startswith("#!") else lines[:1]
        if first != [COPYRIGHT]:
            without.append(relative(path))
    assert not without, f"these files do not open with {COPYRIGHT!r}: {without}"


def test_yaml_configs_parse_and_say_how_they_are_launched() -> None:
    configs = files("recipes", "reward_models", suffixes=(".yaml", ".yml"))
    assert configs, "recipes/ ships no YAML config"
    for path in configs:
        text = path.read_text(encoding="utf-8")
        assert isinstance(yaml.safe_load(text), dict), f"{relative(path)} is not a mapping"
        opening = "".join(line for line in text.splitlines(keepends=True)[:12] if line.startswith("#"))
        if "accelerate_configs" not in path.parts:
            assert "accelerate launch" in opening, f"{relative(path)} does not open with its launch command"
            assert path.name in opening, f"the launch command of {relative(path)} names another file"


def test_readme_commands_are_make_targets() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [line.strip() for block in bash_blocks(readme) for line in block.splitlines()]
    assert "make demo" in commands
    assert "make test" in commands
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = {match for command in commands for match in re.findall(r"^make ([a-z-]+)", command)}
    assert named <= targets


def test_ci_runs_quality_and_the_readme_test_command() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    quality = next(i for i, line in enumerate(lines) if line.startswith("make quality"))
    tests = next(i for i, line in enumerate(lines) if line.startswith("make test"))
    assert quality < tests


def test_documentation_points_at_things_that_exist() -> None:
    assert (ROOT / "docs" / "method.md").is_file()
    assert not check_docs.problems(), "\n".join(check_docs.problems())


def test_broken_references_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "here.md").write_text("# One title\n## Two, and a half\n", encoding="utf-8")
    (tmp_path / "docs" / "page.md").write_text(
        "[fine](here.md#two-and-a-half) [gone](nowhere.md) [no heading](here.md#three) [web](https://example.org)\n"
        "`vgf_llm.__version__` `vgf_llm.no_such_name` `scripts/no_such_file.py`\n",
        encoding="utf-8",
    )
    assert [line.partition(": ")[2] for line in check_docs.problems(tmp_path)] == [
        "link to nowhere.md: no such file",
        "link to here.md#three: no such heading",
        "vgf_llm.no_such_name: no such name",
        "scripts/no_such_file.py: no such file",
    ]
