# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What arrives in Weights & Biases and in Trackio, read back from the packages themselves.

Neither is among the test dependencies; after `pip install wandb trackio` these run. Each trains in a process of its
own: both packages keep one run per process and read their folders when they are imported.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.trainer import tiny
from vgf_llm import PlotCallback

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
PLOTS = ("plots/eval_calibration", "plots/reward_over_completions")
# A metric's name in a tracker and in the history of a trainer.
METRICS = {
    "train/reward": "reward",
    "train/rollout/reward": "rollout/reward",
    "train/value/within_prompt_accuracy": "value/within_prompt_accuracy",
    "train/transport/kl": "transport/kl",
    "eval/reward": "eval_reward",
    "eval/value/within_prompt_accuracy": "eval_value/within_prompt_accuracy",
    "eval/loss": "eval_loss",
}


def train(tracker: str, output_dir: str) -> None:
    """Two steps and an evaluation; writes the logged history, and what Weights & Biases holds of the run."""
    run = tiny.trainer(
        output_dir,
        report_to=[tracker],
        project="tiny",
        run_name="a run",
        eval_dataset=tiny.prompts(6),
        eval_strategy="steps",
        eval_steps=2,
        max_steps=2,
        log_completions=True,
        num_completions_to_print=1,
        num_base_generations=1,
        value_holdout_ratio=0.5,
    )
    run.add_callback(PlotCallback(run))
    run.train()
    result: dict[str, Any] = {"history": run.state.log_history}
    if tracker == "wandb":
        import wandb

        result["summary"] = json.loads(json.dumps(dict(wandb.run.summary), default=dict))
        wandb.finish()
    (Path(output_dir) / "result.json").write_text(json.dumps(result), encoding="utf-8")


def trained(tracker: str, folder: Path) -> dict[str, Any]:
    code = f"from tests.trainer.test_trackers import train; train({tracker!r}, {str(folder)!r})"
    folders = {"WANDB_DIR": str(folder), "TRACKIO_DIR": str(folder / "trackio")}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "WANDB_SILENT": "true", **folders}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def logged(history: list[dict[str, Any]], name: str) -> list[float]:
    return [entry[name] for entry in history if name in entry]


def assert_plot(path: Path) -> None:
    with Image.open(path) as image:
        assert image.format == "PNG" and min(image.size) > 400


def test_metrics_plots_and_completions_arrive_in_wandb(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs wandb")
    result = trained("wandb", tmp_path)
    summary = result["summary"]
    for tag, name in METRICS.items():
        assert summary[tag] == pytest.approx(logged(result["history"], name)[-1]), tag
    (files,) = tmp_path.glob("wandb/offline-run-*/files")
    for name in PLOTS:
        assert_plot(files / summary[name]["path"])
    # The table of the first round: one completion of each prompt is the base's, three are the value's.
    tables = sorted((files / "media" / "table").glob("completions_*.json"), key=lambda p: int(p.stem.split("_")[1]))
    table = json.loads(tables[0].read_text(encoding="utf-8"))
    samplers = [row[table["columns"].index("sampler")] for row in table["data"]]
    assert samplers == ["base", "value", "value", "value"] * 2
    assert {"step", "prompt", "completion", "high_tokens", "advantage"} <= set(table["columns"])


def test_metrics_plots_and_completions_arrive_in_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="needs trackio: the extra `track`")
    result = trained("trackio", tmp_path)
    code = (
        "import json; from trackio import Api; from trackio.sqlite_storage import SQLiteStorage; "
        "(run,) = Api().runs('tiny'); print(json.dumps(SQLiteStorage.get_logs('tiny', run.name)))"
    )
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    read = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    logs = json.loads(read.stdout)
    for tag, name in METRICS.items():
        assert logged(logs, tag) == pytest.approx(logged(result["history"], name)) != [], tag
    for name in PLOTS:
        assert_plot(tmp_path / "trackio" / "media" / logged(logs, name)[-1]["file_path"])
    rows = logged(logs, "completions")[0]["_value"]
    assert [row["sampler"] for row in rows] == ["base", "value", "value", "value"] * 2
    assert {"step", "prompt", "completion", "high_tokens", "advantage"} <= set(rows[0])
