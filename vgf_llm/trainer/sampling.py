# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What happens between two rounds: completions are sampled, scored and grouped, and the value is measured on them."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.profiler import record_function
from transformers import PreTrainedTokenizerBase

from vgf_llm._compat import _BaseTrainer, profiling_context
from vgf_llm.functional import within_prompt_accuracy
from vgf_llm.models import VGFModel
from vgf_llm.models.backbones import evaluating
from vgf_llm.trainer.buffer import RolloutGroup, collate
from vgf_llm.trainer.choose.pairs import pair_rows
from vgf_llm.trainer.metrics import MetricLog, logger
from vgf_llm.trainer.objective import Batch, mean_over_rows, sequences, transport_batch
from vgf_llm.trainer.prefetch import Lookahead
from vgf_llm.trainer.prompt_selection import UnsolvedFirst
from vgf_llm.trainer.rollout import Rollout, RolloutEngine, prompts_in_a_row
from vgf_llm.trainer.rounds import ValueRounds
from vgf_llm.trainer.score.rewards import RewardRunner, combine
from vgf_llm.trainer.sequence_objective import gate_values, is_sequence
from vgf_llm.trainer.sharding import whole_parameters
from vgf_llm.trainer.vgf_config import are_outcomes


class SamplingMixin(_BaseTrainer):
    """Sampling rounds, over `transformers.Trainer`."""

    metrics: MetricLog
    reads_pairs: bool
    num_generations: int
    num_generations_eval: int
    num_iterations: int
    prompts: UnsolvedFirst | None
    reward_runner: RewardRunner
    rollout: RolloutEngine
    rounds: ValueRounds
    vgf_model: VGFModel
    _lookahead: Lookahead | None = None
    _step: int
    _tokenizer: PreTrainedTokenizerBase

    def generation_context(self) -> AbstractContextManager[Any]:
        """Gathers sharded weights once for a whole rollout."""
        return whole_parameters(
            self.model_wrapped,
            self.accelerator,
            gather_deepspeed3_params=self.args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        )

    @contextmanager
    def _scoring(self) -> Iterator[VGFModel]:
        """The bare model, without gradients and dropout, in the precision that the losses see it in."""
        with torch.no_grad(), evaluating(self.model), self.accelerator.autocast(), self.generation_context():
            yield self.vgf_model

    def _collate(self, groups: list[RolloutGroup]) -> Batch:
        batch = collate(groups, self._tokenizer.pad_token_id, self.accelerator.device)
        return {**batch, "num_groups": len(groups)}

    def _prepare_inputs(self, inputs: list[dict[str, Any]] | Batch) -> Batch:
        """Turns dataset rows into a collated batch, sampling a new round when the last is used up."""
        if isinstance(inputs, dict):  # `training_step` has prepared them
            return inputs
        with profiling_context(self, "_prepare_inputs"):
            return self._prepare_rows(inputs)

    def _prepare_rows(self, inputs: list[dict[str, Any]]) -> Batch:
        if not self.model.training:
            return self._eval_batch(self._sample_groups(inputs, "eval"))
        starts = self._step % self._round_steps == 0
        if starts and self._step >= self._sampled_steps:
            self.rounds.retire()
        samples = self._step < self._sampled_steps or len(self.rounds.buffer) == 0
        if samples and (starts or not self.rounds.fresh):
            self.rounds.begin(self._sample_round(inputs))
            self._measure_gate(self.rounds.held_out_groups(), "train")
        slice_index = self._step % self.args.steps_per_generation
        return self.rounds.micro_batch(slice_index, self._step, self.accelerator.device)

    @property
    def _round_steps(self) -> int:
        """Micro-steps of a round, all passes over it."""
        return self.args.steps_per_generation * self.num_iterations

    @property
    def _sampled_steps(self) -> int:
        """Micro-steps of the rounds that are sampled: all, or the number of rounds nearest to `rollout_fraction`."""
        steps = self.state.max_steps * self.args.gradient_accumulation_steps
        if self.args.rollout_fraction == 1:
            return steps
        rounds = math.floor(steps * self.args.rollout_fraction / self._round_steps + 0.5)
        return max(1, rounds) * self._round_steps

    def _eval_batch(self, groups: list[RolloutGroup]) -> Batch:
        num_processes = self.accelerator.num_processes
        own = groups[self.accelerator.process_index :: num_processes]
        self._measure_gate(own, "eval")
        batch = self._collate(own or groups[:1])
        if not own:  # a process without a group computes a loss all the same, of 0
            batch["completion_mask"].zero_()
            batch["rewards"].fill_(torch.nan)
        return {**batch, "num_groups": len(groups) / num_processes}

    def _resolve_value_loss(self, rewards: Tensor) -> None:
        """Decides what `value_loss="auto"` and `winner_coef=None` stand for, once there are rewards to tell by."""
        scored = rewards[~rewards.isnan()]
        outcomes = are_outcomes(scored)
        if self.rounds.loss_kind is None and len(scored) > 0:
            kind = self.args.resolve_value_loss(scored, pairs=self.reads_pairs)
            # Failures alone teach no log-ratio anything, and do not say yet what rewards there are.
            undecided = self.args.value_loss == "auto" and kind == "likelihood" and not bool(scored.any())
            self._set_value_loss(None if undecided else kind)
            self.rounds.winner_coef = None if undecided else self.args.resolve_winner_coef(scored)
        if self.rounds.loss_kind == "likelihood" and self.args.value_loss == "auto" and not outcomes:
            logger.warning(
                "Rewards were all 0 or 1 so far, and others arrived now, from %g to %g: `value_loss='auto'` is "
                "'pairwise' from here on, and earlier completions, of which only successes were kept, are dropped.",
                scored.min().item(), scored.max().item(),
            )  # fmt: skip
            self.rounds.forget()
            self._set_value_loss("pairwise")
            self.rounds.winner_coef = self.args.resolve_winner_coef(scored)
        if self.rounds.loss_kind == "bernoulli" and bool(((scored < 0) | (scored > 1)).any()):
            raise ValueError(
                f"`value_loss={self.args.value_loss!r}` fits the probability of success, but rewards from "
                f"{scored.min().item():g} to {scored.max().item():g} arrived. Set `value_loss='regression'`, or "
                "'pairwise', or let the reward functions return values in [0, 1]."
            )
        if self.prompts is not None and not outcomes:
            raise ValueError(
                f"`prompt_selection='unsolved'` counts a prompt as solved by a reward of 1, and rewards other than 0 "
                f"and 1 arrived, from {scored.min().item():g} to {scored.max().item():g}. Set "
                "`prompt_selection='dataset'`, or let the reward functions return 0 and 1."
            )
        if self.rounds.loss_kind == "likelihood" and not outcomes:
            raise ValueError(
                f"`value_loss={self.args.value_loss!r}` fits the likelihood of completions of reward 1, and rewards "
                f"other than 0 and 1 arrived, from {scored.min().item():g} to {scored.max().item():g}. Set "
                "`value_loss='pairwise'`, or let the reward functions return 0 and 1."
            )

    def _set_value_loss(self, kind: str | None) -> None:
        self.rounds.loss_kind = kind
        if kind is not None and not self.vgf_model.value.needs_logits:
            # Only Bernoulli scores are log-odds of success; transport has to read the others as they are.
            self.vgf_model.value.reward_kind = "bernoulli" if kind == "bernoulli" else "regression"

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Takes the batches of one optimizer step; with `rollout_prefetch`, later ones can be seen."""
        if self.args.rollout_prefetch > 0:
            if self._lookahead is None or not self._lookahead.follows(epoch_iterator):
                self._lookahead = Lookahead(epoch_iterator, self._step)
            self._lookahead.forget(self._step)
            epoch_iterator = self._lookahead
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _sample_ahead(self) -> None:
        """Starts sampling the next `rollout_prefetch` rounds of this epoch."""
        if self.args.rollout_prefetch == 0 or self._lookahead is None:
            return
        every = self._round_steps
        present = self._step // every
        steps_left = self.state.max_steps - self.state.global_step
        end = self._lookahead.first + steps_left * self.args.gradient_accumulation_steps
        end = min(end, self._sampled_steps)
        for index in range(present + 1, present + 1 + self.args.rollout_prefetch):
            inputs = self._lookahead.at(index * every) if index * every < end else None
            if inputs is None:
                return
            self.rollout.sample_ahead([row["prompt"] for row in inputs], index)

    def _sample_round(self, inputs: list[dict[str, Any]]) -> list[RolloutGroup]:
        """The groups of a new round, of the rows that the loader gives or of those that earlier outcomes choose."""
        if self.prompts is None:
            return self._sample_groups(inputs, "train")
        chosen = self.prompts.choose(self.rounds.groups_per_round)
        start = self.accelerator.process_index * len(inputs)
        own = [index for index in chosen for _ in range(self.num_generations)][start : start + len(inputs)]
        groups = self._sample_groups([self.train_dataset[index] for index in own], "train")
        self.prompts.record(chosen, torch.stack([group.rewards for group in groups]))
        self.metrics.set("train", "prompts/solved", self.prompts.solved_fraction)
        return groups

    def _sample_groups(self, inputs: list[dict[str, Any]], mode: str) -> list[RolloutGroup]:
        """Samples and scores completions of all processes; every process returns all groups in the same order."""
        if self.reads_pairs:
            rows = pair_rows(inputs, self.accelerator.process_index * len(inputs))
            texts = self.rollout.decode(rows.prompts, rows.completion_ids)
            extra = {"preferred": rows.labels}
            rollout = Rollout(rows.prompts, rows.prompt_ids, rows.completion_ids, texts, extra=extra)
        else:
            step = self._step // self._round_steps if mode == "train" else self.state.global_step
            rollout = self.rollout([row["prompt"] for row in inputs], mode=mode, step=step)
            if mode == "train":
                self._sample_ahead()
        if rollout.extra:
            inputs = [
                {**row, **{name: column[i] for name, column in rollout.extra.items()}} for i, row in enumerate(inputs)
            ]
        with record_function("vgf/score"):
            return self._score_groups(inputs, rollout, mode)

    def _score_groups(self, inputs: list[dict[str, Any]], rollout: Rollout, mode: str) -> list[RolloutGroup]:
        local = self.reward_runner(
            inputs,
            rollout.prompts,
            rollout.completions,
            rollout.completion_ids,
            self.state,
            self.metrics.log_extra,
            self.metrics.log_metric,
        )
        per_func = self.accelerator.gather(local)
        rewards = combine(per_func, self.reward_runner.reward_weights)
        count = self.num_generations if mode == "train" else self.num_generations_eval
        self._log_rollout(mode, rollout, per_func, rewards, count)
        if mode == "train":
            if self.args.base_generations > 0 and self.rollout.rollout_func is None:
                sampled = rewards.view(-1, count)[:, self.args.base_generations :]
                self.metrics.add("train", "rollout/reward", sampled.nanmean().item())
            self._resolve_value_loss(rewards)
        logps = self._ref_logps(rollout, self._learned_rows(rewards.view(-1, count), mode))
        rows = gather_object(list(zip(rollout.prompt_ids, rollout.completion_ids, logps, strict=True)))
        if self.args.mask_truncated_completions:
            ended = torch.tensor([bool(c) and c[-1] in self.rollout.eos_token_ids for _, c, _ in rows])
            rewards = rewards.masked_fill(~ended.to(rewards.device), torch.nan)
        groups = []
        for start in range(0, len(rows), count):
            part = rows[start : start + count]
            ref_logps = None if part[0][2] is None else [row[2] for row in part]
            ids = [row[1] for row in part]
            step = self.state.global_step
            groups.append(RolloutGroup(part[0][0], ids, rewards[start : start + count].tolist(), ref_logps, step))
        return groups

    def _learned_rows(self, rewards: Tensor, mode: str) -> list[int]:
        """Which of this process's completions a loss will look at, given the gathered rewards `[groups, G]`."""
        if self.rounds.loss_kind == "likelihood":
            return []
        local = rewards.numel() // self.accelerator.num_processes
        rows = range(self.accelerator.process_index * local, (self.accelerator.process_index + 1) * local)
        if mode == "eval" or not self.rounds.drops_ties:
            return list(range(local))
        mixed = (rewards.nan_to_num(-torch.inf).amax(dim=1) > rewards.nan_to_num(torch.inf).amin(dim=1)).tolist()
        return [index for index, row in enumerate(rows) if mixed[row // rewards.shape[1]]]

    @property
    def _rows_without_gradients(self) -> int:
        """Rows of a pass that keeps nothing for a backward; four times those of a step then take less memory."""
        return max(4 * self.args.per_device_train_batch_size, self.args.per_device_eval_batch_size)

    def _ref_logps(self, rollout: Rollout, needed: list[int]) -> list[list[float] | None]:
        """Log-probabilities of this process's completions under the reference, once per round, where `needed`."""
        result: list[list[float] | None] = [None] * len(rollout.completion_ids)
        if not self.vgf_model.value.needs_logits:
            return result
        if rollout.ref_logps is not None:  # sampling has told them
            return list(rollout.ref_logps)
        shared = prompts_in_a_row([rollout.prompt_ids[i] for i in needed])
        size = max(1, self._rows_without_gradients // shared) * shared
        with self._scoring() as model:
            for start in range(0, len(needed), size):
                part = needed[start : start + size]
                groups = [
                    RolloutGroup(
                        rollout.prompt_ids[part[first]],
                        [rollout.completion_ids[i] for i in part[first : first + shared]],
                        [0.0] * shared,
                    )
                    for first in range(0, len(part), shared)
                ]
                input_ids, attention_mask, mask = sequences(self._collate(groups))
                logps = model.ref_logps(input_ids, attention_mask, mask.shape[1], group_size=shared).cpu()
                for i, row in zip(part, logps, strict=True):
                    result[i] = row[: len(rollout.completion_ids[i])].tolist()
        return result

    def _log_rollout(self, mode: str, rollout: Rollout, per_func: Tensor, rewards: Tensor, count: int) -> None:
        accelerator, metrics = self.accelerator, self.metrics
        lengths = torch.tensor([len(ids) for ids in rollout.completion_ids], device=accelerator.device)
        ended = [bool(ids) and ids[-1] in self.rollout.eos_token_ids for ids in rollout.completion_ids]
        truncated = ~torch.tensor(ended, device=accelerator.device)
        lengths, truncated = accelerator.gather(lengths), accelerator.gather(truncated)
        if mode == "train":
            prompt_tokens = torch.tensor(sum(map(len, rollout.prompt_ids)), device=accelerator.device)
            self.state.num_input_tokens_seen += int(accelerator.gather(prompt_tokens).sum() + lengths.sum())
        metrics.set(mode, "num_tokens", self.state.num_input_tokens_seen)
        metrics.add_lengths(mode, lengths, truncated)
        metrics.add_rewards(mode, per_func, rewards, count)
        if rollout.kl is not None:
            metrics.add(mode, "rollout/kl", accelerator.gather(rollout.kl).mean().item())
        metrics.flush_reward_logs(mode, len(rollout.prompts))
        metrics.add_rows(gather_object(rollout.prompts), gather_object(rollout.completions), per_func)

    def _measure_gate(self, groups: list[RolloutGroup], mode: str) -> None:
        """Measures the value, and what transport by it would do, on groups that it does not train on."""
        counts = torch.zeros(5, dtype=torch.float64)
        size = max(1, self._rows_without_gradients // self.num_generations)
        transports = self.vgf_model.transport.space == "logit" and self.args.transport_steps > 0
        with self._scoring() as model:
            for start in range(0, len(groups), size):
                # Scored in one pass with the reference, which groups without a pair to learn from were spared.
                part = groups[start : start + size]
                batch = self._collate([RolloutGroup(g.prompt_ids, g.completion_ids, g.rewards) for g in part])
                input_ids, attention_mask, mask = sequences(batch)
                if is_sequence(self.args):
                    values = gate_values(model, batch)
                else:
                    values = model.score(input_ids, attention_mask, mask, group_size=batch["group_shape"][1]).values
                shape = batch["group_shape"]
                correct, pairs = within_prompt_accuracy(values.view(shape), batch["rewards"].view(shape))
                counts[:2] += torch.stack([correct, pairs]).cpu().double()
                if transports:
                    moved = transport_batch(model, batch, self.args)
                    moves = torch.stack([mean_over_rows(x, batch) for x in (moved.kl, moved.distance)])
                    counts[2:4] += moves.cpu().double() * shape[0]
                    counts[4] += shape[0]
        counts = self.accelerator.reduce(counts.to(self.accelerator.device, torch.float32), reduction="sum").cpu()
        correct, pairs, kl, distance, measured = counts.tolist()
        if mode == "train":
            self.rounds.gate.add(correct, int(pairs))
            accuracy = self.rounds.gate.accuracy
            self.metrics.set("train", "value/buffer_size", len(self.rounds.buffer))
            self.metrics.set("train", "value/within_prompt_accuracy", accuracy)
        elif pairs:
            self.metrics.add("eval", "value/within_prompt_accuracy", correct / pairs, weight=pairs)
        if measured:
            self.metrics.add(mode, "transport/kl", kl / measured, weight=measured)
            self.metrics.add(mode, "transport/distance", distance / measured, weight=measured)
