# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What is shown while a run trains: in a terminal of any width, in a file, and not at all."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from transformers import PrinterCallback, ProgressCallback

from tests.trainer import tiny
from vgf_llm import VGFProgressCallback

ROOT = Path(__file__).resolve().parents[2]
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "disable_tqdm": False, "value_holdout_ratio": 0.5}


def watched(folder, **settings):
    run = tiny.trainer(folder, eval_dataset=tiny.prompts(4), **{**EVALUATED, **settings})
    shown = VGFProgressCallback(run)
    run.add_callback(shown)
    return run, shown


def test_a_file_gets_one_line_per_log_and_no_control_characters(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    run, _ = watched(tmp_path)
    run.train()
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and "\r" not in out + err
    lines = [line for line in out.splitlines() if re.match(r"\[\d+/", line)]
    assert [line.split()[0] for line in lines] == ["[1/3]", "[2/3]", "[2/3]", "[3/3]", "[3/3]", "[3/3]"]
    for name, line in (("reward", 0), ("value/within_prompt_accuracy", 3), ("transport/kl", 3), ("eval_reward", 2),
                       ("eval_value/within_prompt_accuracy", 2), ("train_loss", 5)):  # fmt: skip
        assert f" {name}=" in lines[line]
    assert f" reward={tiny.history(run, 'reward')[0]:.4g}" in lines[0]
    assert "step_time" not in out and "{" not in out  # transformers' dictionaries are not there beside it


@pytest.mark.parametrize("width", [16, 40, 200])
def test_a_terminal_of_any_width_shows_whole_numbers(tmp_path, width):
    run, shown = watched(tmp_path)
    screen = io.StringIO()
    shown.console = Console(file=screen, width=width, force_terminal=True, force_interactive=True)
    run.train()
    assert "\x1b[?25l" in screen.getvalue()  # the bar hides the cursor
    assert screen.getvalue().count("\x1b[?25h") == 1  # and gives it back
    assert f"reward={tiny.history(run, 'reward')[-1]:.4g}" in screen.getvalue()
    assert ("evaluation" in screen.getvalue()) or width < 40


def test_it_takes_the_place_of_the_bar_unless_that_is_off(tmp_path, capsys):
    run, _ = watched(tmp_path / "on")
    kinds = [type(callback) for callback in run.callback_handler.callbacks]
    assert VGFProgressCallback in kinds and ProgressCallback not in kinds
    run, _ = watched(tmp_path / "off", disable_tqdm=True, max_steps=1)
    assert any(isinstance(callback, PrinterCallback) for callback in run.callback_handler.callbacks)
    run.train()
    out = capsys.readouterr().out
    assert "[1/1]" not in out and "'step_time'" in out


FAILS = """
import sys
from rich.console import Console
from tests.trainer import tiny
from vgf_llm import VGFProgressCallback

def reward(completion_ids, trainer_state, **kwargs):
    if trainer_state.global_step == 1:
        raise RuntimeError("no reward today")
    return tiny.high_tokens(completion_ids)

run = tiny.trainer(sys.argv[1], reward, disable_tqdm=False)
run.add_callback(VGFProgressCallback(run))
run.train()
"""


def test_an_error_gives_the_cursor_back(tmp_path):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    command = [sys.executable, "-c", FAILS, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.STDOUT, env=environment, cwd=ROOT) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            seen += part
    os.close(ours)
    assert process.returncode == 1 and b"no reward today" in seen
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")
