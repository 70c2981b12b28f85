# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are whole or absent, and hold all that an uninterrupted run would have known."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from vgf_llm._compat import _BaseTrainer
from vgf_llm.models.language_model import inner_model
from vgf_llm.models.saving import (
    REF_MODEL_DIR,
    SEQUENCE_VALUE_DIR,
    VALUE_MODEL_DIR,
    load_value_adapter,
    load_value_head,
)
from vgf_llm.models.sequence_value import SequenceValue
from vgf_llm.models.tensor_files import load_tensors
from vgf_llm.vgf_model import VGFModel
from vgf_llm.trainer.buffer import ValueBuffer
from vgf_llm.trainer.faults import explained_save
from vgf_llm.trainer.sharding import is_zero3, whole_state_dict

if TYPE_CHECKING:
    from vgf_llm.trainer.metrics import MetricLog
    from vgf_llm.trainer.prompt_selection import UnsolvedFirst
    from vgf_llm.trainer.rounds import ValueRounds

STATE_NAME = "vgf_state.json"
ROUND_NAME = "value_round.safetensors"
_STAGING = ".incomplete"


class CheckpointMixin(_BaseTrainer):
    """Saving and resuming, over `transformers.Trainer`."""

    metrics: "MetricLog"
    prompts: "UnsolvedFirst | None"
    rounds: "ValueRounds"
    vgf_model: VGFModel
    _set_value_loss: Callable[[str | None], None]
    _staging: bool = False
    _step: int

    def _get_output_dir(self, trial: Any) -> str:
        run_dir = super()._get_output_dir(trial)
        return os.path.join(run_dir, _STAGING) if self._staging else run_dir

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes the checkpoint beside its place and moves it there once it is whole."""
        if self.args.should_save:
            self.create_model_card(model_name=Path(self.args.hub_model_id or self.args.output_dir).name)
        with explained_save(self._get_output_dir(trial), self.state.global_step):
            self._save_whole(model, trial)

    def _save_whole(self, model: nn.Module, trial: Any) -> None:
        run_dir = self._get_output_dir(trial)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._staging = True
        try:
            staged = Path(self._get_output_dir(trial)) / name
            if self.args.should_save and staged.parent.exists():
                shutil.rmtree(staged.parent)  # what an interrupted save left
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = False
        self._save_round(staged)
        final = Path(run_dir) / name
        best = Path(run_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if self.state.best_global_step and (best == final or best.exists()):
            self.state.best_model_checkpoint = str(best)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._publish(staged, final)
        self.accelerator.wait_for_everyone()

    def _publish(self, staged: Path, final: Path) -> None:
        """Moves a whole checkpoint to its place. Only renames touch the place, so that it never holds half of one."""
        self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
        if final.exists():
            os.replace(final, staged.parent / "replaced")
        os.replace(staged, final)
        shutil.rmtree(staged.parent, ignore_errors=True)
        rotate_checkpoints(
            output_dir=str(final.parent),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
            use_mtime=True,
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes model and tokenizer, whole, however the weights are sharded; every process has to call it."""
        if not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)
            return
        state_dict = None
        if is_zero3(self.accelerator):
            left_out = "" if self._saves_policy else "policy."
            state_dict = whole_state_dict(
                self.vgf_model,
                keep=self.args.should_save,
                wanted=lambda name: not left_out or not name.startswith(left_out) or ".lora_" in name,
            )
        self._save(output_dir, state_dict)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    @property
    def _saves_policy(self) -> bool:
        """Whether weights are written for the policy: within a checkpoint a frozen one with an origin is named."""
        frozen = self.args.distill_coef == 0 and bool(self.vgf_model.config._name_or_path)
        return not (self._staging and frozen)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Writes model and tokenizer on the main process."""
        if not self.args.should_save:
            return
        directory = Path(output_dir or self.args.output_dir)
        self.vgf_model.save_pretrained(directory, save_policy=self._saves_policy, state_dict=state_dict)
        self.processing_class.save_pretrained(directory)

    def _save_round(self, directory: Path) -> None:
        if not self.args.should_save or self.args.save_only_model:
            return
        rounds = self.rounds
        rounds.buffer.save(directory)
        fresh = ValueBuffer(capacity=max(1, sum(len(group) for group in rounds.fresh)))
        fresh.add(rounds.fresh)
        fresh.save(directory, ROUND_NAME)
        state = {
            "format_version": 1,
            "step": self._step,
            "held_out": rounds.held_out,
            "gate": rounds.gate.state(),
            "metrics": self.metrics.state(),
            "value_loss": rounds.loss_kind,
            "winner_coef": rounds.winner_coef,
            "prompts": None if self.prompts is None else self.prompts.state(),
        }
        (directory / STATE_NAME).write_text(json.dumps(state) + "\n", encoding="utf-8")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Leaves frozen weights out of DeepSpeed's shards: a resumed run starts from the same ones."""
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        engine = self.model_wrapped
        engine.save_checkpoint = partial(engine.save_checkpoint, exclude_frozen_parameters=True)
        try:
            super()._save_optimizer_and_scheduler(output_dir)
        finally:
            del engine.save_checkpoint

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """Wraps the model; DeepSpeed's shards are loaded here, without the frozen weights that they lack."""
        if resume_from_checkpoint is None or not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        check_whole(Path(resume_from_checkpoint), with_optimizer=False)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        deepspeed_load_checkpoint(self.model_wrapped, resume_from_checkpoint, load_module_strict=False)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        self._load_scaler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Loads the weights: before the model is wrapped, or FSDP's own shards after."""
        directory = Path(resume_from_checkpoint)
        check_whole(directory, with_optimizer=not self.is_fsdp_enabled)
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        load_weights(self.vgf_model, directory, policy=self.args.distill_coef > 0)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Loads the optimizer, the buffer and the round in progress; called with every kind of sharding."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._load_round(Path(checkpoint))

    def _load_round(self, directory: Path) -> None:
        state = _read_json(directory / STATE_NAME)
        if state.get("format_version") != 1:
            raise ValueError(
                f"{directory / STATE_NAME} has format_version {state.get('format_version')!r}; this release reads 1."
            )
        saved = "dataset" if state.get("prompts") is None else "unsolved"
        if saved != self.args.prompt_selection:
            raise ValueError(
                f"{directory} was saved with `prompt_selection={saved!r}`, but it is {self.args.prompt_selection!r} "
                "now, and the prompts that remain would be others. Resume with the setting of the interrupted run."
            )
        fresh = ValueBuffer(capacity=2**62)
        fresh.load(directory, ROUND_NAME)
        self.rounds.buffer.load(directory)
        self.rounds.restore(fresh.groups, state["held_out"])
        self._set_value_loss(state["value_loss"])
        self.rounds.winner_coef = state.get("winner_coef")
        self.rounds.gate.load(state["gate"])
        self.metrics.load(state["metrics"])
        if self.prompts is not None:
            self.prompts.load(state["prompts"])
        self._step = state["step"]

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if self.is_deepspeed_enabled:
            deepspeed_load_checkpoint(self.model_wrapped, best, load_module_strict=False)
        elif self.is_fsdp_enabled:
            super()._load_best_model()
        else:
            load_weights(self.vgf_model, Path(best), policy=self.args.distill_coef > 0)


def check_whole(directory: Path, *, with_optimizer: bool) -> None:
    """Checks that a folder is a checkpoint to resume from, so that nothing starts afresh without a word.

    Args:
        directory: The checkpoint.
        with_optimizer: Whether optimizer and scheduler are files of their own, as they are without sharding.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If a file is missing or truncated; the message names it.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"`resume_from_checkpoint` {str(directory)!r} does not exist or is no folder.")
    files = [STATE_NAME, TRAINER_STATE_NAME, *((OPTIMIZER_NAME, SCHEDULER_NAME) if with_optimizer else ())]
    for path in (directory / name for name in files):
        if not path.is_file():
            raise ValueError(
                f"{path} does not exist: {str(directory)!r} was saved with `save_only_model=True` or by another "
                "trainer, or is not whole. Pass it as `model=` to start from its weights."
            )
        if path.suffix == ".json":
            _read_json(path)
        elif not zipfile.is_zipfile(path):  # PyTorch's format; the index stands at the end
            raise ValueError(f"{path} is truncated or foreign; resume from another checkpoint.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is truncated or foreign ({error}); resume from another checkpoint.") from error


def load_weights(model: VGFModel, directory: Path, *, policy: bool) -> None:
    """Loads the trained weights of a checkpoint into a model of the same shape.

    Args:
        model: The model.
        directory: The checkpoint.
        policy: Whether the policy was trained.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is truncated or of another shape.
    """
    load_value_head(model.value, directory)
    if model.has_value_adapter:
        load_value_adapter(model, directory)
    if model.value_model is not None:
        _load_language_model(model.value_model, directory / VALUE_MODEL_DIR)
    if model.sequence_value is not None:
        loaded = SequenceValue.from_pretrained(directory / SEQUENCE_VALUE_DIR)
        model.sequence_value.load_state_dict(loaded.state_dict())
    if not policy:
        return
    if model.policy_adapter is None:
        _load_language_model(inner_model(model.policy), directory)
        if model.ref_model is not None:
            _load_language_model(model.ref_model, directory / REF_MODEL_DIR)
        return
    own = {
        name.replace(f".{model.policy_adapter}.", "."): parameter
        for name, parameter in model.policy.named_parameters()
        if ".lora_" in name and f".{model.policy_adapter}." in name
    }
    found = load_tensors(directory / "adapter_model.safetensors", own)
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)


def _load_language_model(model: nn.Module, directory: Path) -> None:
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{directory / 'config.json'} does not exist; the checkpoint is incomplete.")
    try:
        loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=inner_model(model).dtype).state_dict()
    except (OSError, SafetensorError) as error:
        raise ValueError(f"The weights in {directory} are not whole ({error}); take another checkpoint.") from error
    own = {name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for name, tensor in loaded.items():
            own[name].copy_(tensor)
