# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Recipes by name, and the embedded model that a demo shows."""

import logging
from pathlib import Path
from typing import Any

import pytest

from recipes.gsm8k_vgf import EMBEDDED_CONFIG
from vgf_llm import __version__, shipped
from vgf_llm.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `accelerate launch` would have run."""
    seen: list[Any] = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", seen.append)
    return seen


def test_a_checkout_has_them_at_its_root(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "--path"]) == 0
    assert capsys.readouterr().out == f"{ROOT}\n"
    names = {"gsm8k_vgf", "hh_vgf", "tldr_vgf", "preference_vgf", "toy_bandit", "offline_control", "ogbench_vgf"}
    assert set(shipped.recipes()) == names | {"reward_model"}


def test_a_recipe_is_launched_with_its_options(launched: list[Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    config = "recipes/configs/gsm8k_embedded.yaml"
    assert main(["recipe", "--num_processes", "2", "gsm8k_vgf", "--config", config, "--seed", "1"]) == 0
    (args,) = launched
    assert args.num_processes == 2 and args.training_script == str(ROOT / "recipes" / "gsm8k_vgf.py")
    assert args.training_script_args == ["--config", str(EMBEDDED_CONFIG), "--seed", "1"]
    own = tmp_path / config  # a file of the user's comes first
    own.parent.mkdir(parents=True)
    own.touch()
    main(["recipe", "gsm8k_vgf", "--config", config])
    assert launched[1].training_script_args == ["--config", config]


def test_defaults_of_the_launcher_are_told_where_there_is_a_choice(
    launched: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("accelerate.commands.launch")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    for gpu, level in ((True, logging.NOTSET), (False, logging.ERROR)):
        monkeypatch.setattr("torch.accelerator.is_available", lambda gpu=gpu: gpu)
        shipped.launch(["gsm8k_vgf"])
        assert logger.level == level
    assert len(launched) == 2


def test_unknown_recipes_are_named(launched: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "gsm8k"]) == 1
    assert capsys.readouterr().err == "vgf: error: There is no recipe 'gsm8k'. Did you mean gsm8k_vgf?\n"
    assert main(["recipe", "--cpu", "xyz"]) == 1
    assert "There is no recipe 'xyz'. There are gsm8k_vgf, " in capsys.readouterr().err
    assert not launched


def test_a_recipe_that_fails_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    failing = tmp_path / "failing.py"
    failing.write_text("raise SystemExit(3)")
    monkeypatch.setattr(shipped, "recipes", lambda: {"failing": failing})
    assert main(["recipe", "--cpu", "failing"]) == 1
    assert "vgf: error: a process ended with status 3; its own message is above." in capfd.readouterr().err


def test_the_embedded_model_is_trained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls: list[list[str]] = []

    def train(argv: list[str]) -> None:
        calls.append(argv)
        folder = Path(argv[argv.index("--output_dir") + 1])
        folder.mkdir(parents=True)
        if len(calls) == 1:
            raise KeyboardInterrupt
        (folder / "vgf_config.json").touch()

    monkeypatch.setattr(shipped, "launch", train)
    with pytest.raises(KeyboardInterrupt):
        shipped.embedded_model(__version__)
    assert "Nothing of the model is kept" in capsys.readouterr().out
    kept = tmp_path / "cache" / "vgf-llm" / __version__ / "gsm8k_embedded"
    assert not list(kept.parent.iterdir())
    assert shipped.embedded_model(__version__) == kept == shipped.embedded_model(__version__)
    assert [path.name for path in kept.iterdir()] == ["vgf_config.json"] and len(calls) == 2
    assert "It will be kept in" in capsys.readouterr().out
    own = tmp_path / "outputs" / "gsm8k_embedded"  # what `make demo` leaves comes first
    own.mkdir(parents=True)
    (own / "vgf_config.json").touch()
    assert shipped.embedded_model(__version__) == Path("outputs", "gsm8k_embedded")
