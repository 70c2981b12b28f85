# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are whole or absent, and hold all that an uninterrupted run would have known."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, rotate_checkpoints

from vgf_llm._compat import _BaseTrainer
from vgf_llm.models.backbones import VALUE_ADAPTER
from vgf_llm.models.config import CONFIG_NAME, VGFModelConfig
from vgf_llm.models.language_model import inner_model
from vgf_llm.models.origin import base_tensors, fingerprint, recorded_origin
from vgf_llm.models.saving import (
    ADAPTER_NAME,
    REF_MODEL_DIR,
    SEQUENCE_VALUE_DIR,
    VALUE_MODEL_DIR,
    load_adapter,
    load_value_head,
)
from vgf_llm.models.sequence_value import HEAD_NAME, SequenceValue
from vgf_llm.models.tensor_files import (
    check_files,
    file_digest,
    files_below,
    load_tensors,
    load_whole,
    read_json,
    write_json,
    write_tensors,
)
from vgf_llm.models.valued_policy import ValuedPolicy
from vgf_llm.trainer.save.run_record import RunRecord, masked_settings
from vgf_llm.trainer.save.sharding import is_zero3, load_deepspeed_shards, whole, whole_state_dict
from vgf_llm.trainer.save.sigterm import SIGTERM_STATUS, SaveOnSigterm

logger = get_logger(__name__)

STATE_NAME = "vgf_state.json"
ROUND_NAME = "value_round.safetensors"
FORMAT_VERSION = 2
_STAGING = ".incomplete"
_UNLISTED = {"README.md", "generation_config.json", STATE_NAME}
# Files in which Python objects are pickled; one that was not written with the checkpoint is not to be read with it.
_PICKLED = {".pt", ".pth", ".bin", ".pkl", ".distcp"}
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")
# Settings that say where a run writes and what it shows, not what it computes.
_SHOWN = (
    *("output_dir", "logging_", "log_", "report_to", "run_name", "project", "trackio", "disable_tqdm"),
    *("num_completions_to_print",),
    *("save_", "eval_", "do_", "load_best", "metric_for", "greater_is", "push_to", "hub_", "resume_from"),
    *("dataloader_num", "dataloader_pin", "dataloader_pers", "dataloader_pre", "ddp_", "local_rank", "skip_memory"),
    *("vllm_server", "vllm_group", "enable_jit", "include_", "restore_callback", "per_device_eval"),
)


class CheckpointedTrainer(_BaseTrainer):
    """Saving and resuming, over `transformers.Trainer`.

    A checkpoint holds the model with `vgf_config.json`, optimizer, scheduler and random states as transformers writes
    them, `value_round.safetensors` with the tensors of a subclass, and `vgf_state.json`: its state, the settings and
    versions that the result depends on, and a digest of every file. The last is written last, and the folder gets its
    name once it is whole.

    A subclass has `vgf_model`, the model without the wrappers of training, and gives the state of its own that a
    resumed run needs by `round_state`, `round_tensors` and `load_round_state`.

    Attributes:
        fixed_on_resume: Names of settings with which a run has to be resumed as it was started. Others may change, and
            one warning names them.
        sigterm: Saves when the run is told to stop.
    """

    fixed_on_resume: ClassVar[tuple[str, ...]] = ()
    vgf_model: Any
    _staging: bool = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sigterm = SaveOnSigterm(self.accelerator)
        self.add_callback(self.sigterm)
        self.add_callback(RunRecord())

    def round_state(self) -> dict[str, Any]:
        """Returns the subclass's own state, as JSON can hold it; the same on every process."""
        raise NotImplementedError

    def round_tensors(self) -> dict[str, Tensor]:
        """Returns the tensors of its own state, by name."""
        raise NotImplementedError

    def load_round_state(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Puts what `round_state` and `round_tensors` returned in place."""
        raise NotImplementedError

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains; a checkpoint to resume from is checked before anything is loaded."""
        resume: Any = resume_from_checkpoint
        if resume is True:
            resume = get_last_checkpoint(self.args.output_dir) or True
        if resume and resume is not True:
            resume = str(resume)
            self._compare_settings(check_whole(Path(resume)), resume)
        return super().train(resume, *args, **kwargs)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        try:
            output = super()._inner_training_loop(*args, **kwargs)
        finally:
            self.sigterm.restore()
        if self.sigterm.received:
            logger.warning(
                "SIGTERM ended training after step %d, with a checkpoint in %s; `resume_from_checkpoint=True` goes on.",
                self.state.global_step,
                self.args.output_dir,
            )
            raise SystemExit(SIGTERM_STATUS)
        return output

    # Saving

    def _get_output_dir(self, trial: Any) -> str:
        run_dir = super()._get_output_dir(trial)
        return os.path.join(run_dir, _STAGING) if self._staging else run_dir

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes the checkpoint beside its place and moves it there once it is whole; errors say what is left."""
        try:
            if self.args.should_save:
                self.create_model_card(model_name=Path(self.args.hub_model_id or self.args.output_dir).name)
            self._save_whole(model, trial)
        except Exception as error:
            error.add_note(_what_is_left(Path(self._get_output_dir(trial)).resolve(), self.state.global_step))
            raise

    def _save_whole(self, model: nn.Module, trial: Any) -> None:
        run_dir = self._get_output_dir(trial)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._staging = True
        try:
            staged = Path(self._get_output_dir(trial)) / name
            if self.args.should_save:
                shutil.rmtree(staged.parent, ignore_errors=True)  # what an interrupted save left
                staged.parent.unlink(missing_ok=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = False
        final = Path(run_dir) / name
        best = Path(run_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if self.state.best_global_step and (best == final or best.exists()):
            self.state.best_model_checkpoint = str(best)
        self.accelerator.wait_for_everyone()  # every process has written its random state
        if self.args.should_save:
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
            if not self.args.save_only_model:
                self._save_state(staged)
            self._publish(staged, final)
        self.accelerator.wait_for_everyone()

    def _save_state(self, directory: Path) -> None:
        """Writes what the subclass knows, and the list of all files."""
        write_tensors(self.round_tensors(), directory / ROUND_NAME)
        # Those of the model are listed in vgf_config.json, which is listed here.
        skipped = _UNLISTED | set(VGFModelConfig.load(directory).files or {})
        state = {
            "format_version": FORMAT_VERSION,
            "versions": {name: version(name) for name in _PACKAGES},
            "settings": self._result_settings(),
            "round": self.round_state(),
            "files": {name: file_digest(directory / name) for name in files_below(directory) if name not in skipped},
        }
        write_json({**state, "checksum": _checksum(state)}, directory / STATE_NAME)

    def _publish(self, staged: Path, final: Path) -> None:
        """Moves a whole checkpoint to its place. Only renames touch the place, so that it never holds half of one."""
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

    @property
    def _trains_policy(self) -> bool:
        return any(parameter.requires_grad for parameter in self.vgf_model.policy_parameters().values())

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes model and tokenizer, whole, however the weights are sharded; every process has to call it."""
        if not is_zero3(self.accelerator):
            super().save_model(output_dir, _internal_call)
            return
        policy = self.vgf_model.policy
        weights = fingerprint(base_tensors(policy), whole)
        named = self._staging and not self._trains_policy and recorded_origin(policy, weights) is not None
        state_dict = whole_state_dict(
            self.vgf_model,
            keep=self.args.should_save,
            wanted=lambda name: not (named and name.startswith("policy.")) or ".lora_" in name,
        )
        self._save(output_dir, state_dict, save_policy=not named, policy_fingerprint=weights)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None, **policy_settings: Any
    ) -> None:
        """Writes model and tokenizer on the main process; a frozen policy is named where its origin is the same."""
        if not self.args.should_save:
            return
        directory = Path(output_dir or self.args.output_dir)
        settings = {"save_policy": None if self._staging and not self._trains_policy else True, **policy_settings}
        self.vgf_model.save_pretrained(directory, state_dict=state_dict, **settings)
        self.processing_class.save_pretrained(directory)

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

    # Resuming

    def _result_settings(self) -> dict[str, Any]:
        """The settings that the result depends on, as JSON gives them back; secrets are masked, and may change."""
        settings, _ = masked_settings(self.args)
        settings = {name: item for name, item in settings.items() if not name.startswith(_SHOWN)}
        return {**settings, "num_processes": self.accelerator.num_processes}

    def _compare_settings(self, saved: Mapping[str, Any], directory: str) -> None:
        """Refuses or names settings and versions that are not those of the interrupted run."""
        before = {**saved["settings"], **saved["versions"]}
        now = {**self._result_settings(), **{name: version(name) for name in _PACKAGES}}
        changed = [name for name in before if name in now and before[name] != now[name]]
        for name in self.fixed_on_resume:
            if name in changed:
                raise ValueError(
                    f"{directory} was saved with `{name}={before[name]!r}`, but it is {now[name]!r} now, and what the "
                    "run has measured would not fit. Resume with the setting of the interrupted run, or pass the "
                    "folder as `model=` to start from its weights."
                )
        if changed:
            logger.warning(
                "The result will not be that of the uninterrupted run: since %s was saved, %s changed.",
                directory,
                ", ".join(f"{name} from {before[name]!r} to {now[name]!r}" for name in changed),
            )

    def _check_policy(self, directory: Path) -> None:
        """Refuses to go on over another policy than the interrupted run's; of a trained one all weights are loaded."""
        if self._trains_policy and self.vgf_model.policy_adapter is None:
            return
        found = fingerprint(base_tensors(self.vgf_model.policy), whole)  # every process takes part
        expected = VGFModelConfig.load(directory)
        message = None
        if found != expected.base_model_fingerprint:
            message = (
                f"{directory} was saved by a run over another policy: fingerprint {expected.base_model_fingerprint} "
                f"of {expected.base_model_name_or_path!r} in {expected.base_model_dtype}, found {found} in "
                f"{inner_model(self.vgf_model.policy).dtype}. Pass the policy of the interrupted run as `model=`."
            )
        message = broadcast_object_list([message])[0]  # a process that loaded nothing yet has nothing to compare
        if message is not None:
            raise ValueError(message)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """Wraps the model; DeepSpeed's shards are loaded here, without the frozen weights that they lack."""
        if resume_from_checkpoint is None or not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        load_deepspeed_shards(self.model_wrapped, resume_from_checkpoint)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        self._load_scaler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Loads the weights: before the model is wrapped, or FSDP's own shards after."""
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_weights(self.vgf_model, Path(resume_from_checkpoint), policy=self._trains_policy)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Loads the optimizer and the state of the subclass; called with every kind of sharding, after wrapping."""
        if checkpoint is not None:
            self._check_policy(Path(checkpoint))
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            directory = Path(checkpoint)
            self.load_round_state(read_json(directory / STATE_NAME)["round"], load_file(directory / ROUND_NAME))

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        if self.is_deepspeed_enabled:
            check_whole(best)
            load_deepspeed_shards(self.model_wrapped, str(best))
            return
        check_files(best, VGFModelConfig.load(best).files or {}, CONFIG_NAME)
        if self.is_fsdp_enabled:
            super()._load_best_model()
        else:
            load_weights(self.vgf_model, best, policy=self._trains_policy)


def _what_is_left(folder: Path, step: int) -> str:
    """Says what an error while a checkpoint of `folder` is written means, and how to go on."""
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    whole = (
        f"the last whole one is {last}, from which `resume_from_checkpoint=True` goes on"
        if last
        else "there is no earlier one"
    )
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free / 2**20
    return (
        f"The checkpoint of step {step} was not written whole and does not count; {whole}. {free:.0f} MiB are free on "
        f"the disk of {str(folder)!r}: make room, or lower `save_total_limit`."
    )


def _checksum(state: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(state, sort_keys=True).encode(), digest_size=16).hexdigest()


def check_whole(directory: Path) -> dict[str, Any]:
    """Checks that a folder is a checkpoint to resume from, file by file, and returns what `vgf_state.json` holds.

    Nothing else in it is loaded before. Checksums are no signature: they tell a whole checkpoint from a mixed one, not
    a friend's from a stranger's. Pickled files are read as tensors and plain data alone, see `load_deepspeed_shards`,
    and none that came later is accepted. Errors name the file.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"`resume_from_checkpoint` {str(directory)!r} does not exist or is no folder.")
    path = directory / STATE_NAME
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist: {str(directory)!r} was saved with `save_only_model=True` or by another "
            "trainer, or is not whole. Pass it as `model=` to start from its weights."
        )
    state = read_json(path)
    if state.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {state.get('format_version')!r}; this release resumes from {FORMAT_VERSION}. "
            "Pass the folder as `model=` to start from its weights."
        )
    if state.pop("checksum", None) != _checksum(state):
        raise ValueError(f"{path} was changed after it was written; resume from another checkpoint.")
    check_files(directory, state["files"], STATE_NAME)
    model_files = VGFModelConfig.load(directory).files or {}
    check_files(directory, model_files, CONFIG_NAME)
    listed = {**state["files"], **model_files}
    for name in files_below(directory):
        if Path(name).suffix in _PICKLED and name not in listed:
            raise ValueError(f"{directory / name} was not written with this checkpoint and may run code; remove it.")
    return state


def load_weights(model: ValuedPolicy, directory: Path, *, policy: bool) -> None:
    """Loads the trained weights of a checkpoint, those of the policy too if it was trained, into a model."""
    load_value_head(model.value, directory)
    if model.has_value_adapter:
        load_adapter(model.policy, VALUE_ADAPTER, directory / VALUE_ADAPTER / ADAPTER_NAME)
    if model.value_model is not None:
        _load_into(model.value_model, directory / VALUE_MODEL_DIR)
    if model.sequence_value is not None:
        sequence_value = cast(SequenceValue, model.sequence_value)
        _load_into(sequence_value.backbone, directory / SEQUENCE_VALUE_DIR)
        head = sequence_value.head
        head.load_state_dict(load_tensors(directory / SEQUENCE_VALUE_DIR / HEAD_NAME, head.state_dict()))
    if not policy:
        return
    if model.policy_adapter is not None:
        load_adapter(model.policy, model.policy_adapter, directory / ADAPTER_NAME)
        return
    _load_into(model.policy, directory)
    if model.ref_model is not None:
        _load_into(model.ref_model, directory / REF_MODEL_DIR)


def _load_into(model: nn.Module, directory: Path) -> None:
    """Loads the weights of a folder; with the model's own class, code of its repository need not be trusted again."""
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{directory / 'config.json'} does not exist; the checkpoint is incomplete.")
    inner: PreTrainedModel = inner_model(model)
    loaded = load_whole(type(inner), directory, dtype=inner.dtype).state_dict()
    own = base_tensors(model)
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in (loaded, own)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"The weights in {directory} are of another model: other names or shapes of tensors.")
    with torch.no_grad():
        for name, tensor in loaded.items():
            own[name].copy_(tensor)
