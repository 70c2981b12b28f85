# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What a wheel holds, and that it works without a checkout."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("recipes", "reward_models", "eval")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the project's backend in a process of its own, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    built = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return folder / built.stdout.split()[-1]


def test_the_wheel_puts_one_name_into_site_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"vgf_llm"}


def test_the_wheel_holds_the_package_and_all_that_runs_from_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())

    def sources(folder: str) -> set[str]:
        kept = ("__pycache__", "conftest.py")
        return {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and not any(part in kept for part in path.parts)
        }

    assert sources("vgf_llm") <= names
    for folder in SHIPPED:
        assert {f"vgf_llm/_shipped/{name}" for name in sources(folder)} <= names
    assert "vgf_llm/_shipped/recipes/embedded_math/base/model.safetensors" in names
    assert not any("__pycache__" in name or "conftest" in name for name in names)


@pytest.mark.slow
def test_an_installed_wheel_trains_answers_and_measures(wheel: Path, tmp_path: Path) -> None:
    """An environment of its own, which sees this one's dependencies, but neither its editable installs nor the root."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    site = next((home / "lib").glob("python*/site-packages"))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel],
        check=True,
    )
    # A line of a .pth file is a folder to import from; links of editable installs inside it are not followed.
    (site / "dependencies.pth").write_text(next(path for path in sys.path if path.endswith("site-packages")))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(*command: str, module: str = "vgf_llm.cli") -> str:
        done = subprocess.run(
            [home / "bin" / "python", "-m", module, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    place = str(site / "vgf_llm" / "_shipped")
    assert run("recipe", "--path") == f"{place}\n"
    for name in SHIPPED:
        code = f"import importlib.util; assert importlib.util.find_spec('{name}') is None"
        subprocess.run([home / "bin" / "python", "-c", code], cwd=tmp_path, env=environment, check=True)
    code = "from vgf_llm.shipped import add_to_path; add_to_path(); import recipes.data, reward_models, eval.run"
    subprocess.run([home / "bin" / "python", "-c", code], cwd=tmp_path, env=environment, check=True)

    small = [
        "--num_train_problems",
        "64",
        "--num_threads",
        "1",
        "--max_steps",
        "4",
        "--skip_evaluation",
        "true",
        "--output_dir",
        "model",
    ]
    run("recipe", "gsm8k_vgf", "--config", "recipes/configs/gsm8k_embedded.yaml", *small)
    prompt = "Ann has 12 pens. Ann gives 5 of them to Ben. How many pens does Ann have now?"
    assert run("generate", "model", prompt, "--max_new_tokens", "20").strip()
    few = ["--num_problems", "2", "--methods", "greedy", "--max_new_tokens", "8"]
    assert "greedy" in run("eval", "model", "--task", "embedded_math", *few, "--output_dir", "out")
    environment["PYTHONPATH"] = place
    assert "--samples" in run("--help", module="eval.win_rate")
