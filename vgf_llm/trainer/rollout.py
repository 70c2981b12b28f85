# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Sampling completions: prompts to token ids, an engine, token ids to completions."""

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.profiler import record_function
from transformers import PreTrainedTokenizerBase
from trl import is_conversational

from vgf_llm._compat import pad
from vgf_llm.generation import TokenLogps, decoding_attention, generate_from_value, mask_after_eos
from vgf_llm.models.config import SEQUENCE_SPACES
from vgf_llm.models.language_model import inner_model
from vgf_llm.trainer.prefetch import RolloutQueue
from vgf_llm.trainer.rollout_config import settings_dict
from vgf_llm.trainer.choose.prompts import check_prompt_lengths, tokenize_prompts
from vgf_llm.trainer.vgf_config import VGFConfig
from vgf_llm.trainer.vllm_engine import Request, VLLMSampler

if TYPE_CHECKING:
    from vgf_llm.trainer.vgf_trainer import VGFTrainer

Prompt = str | list[dict[str, str]]
# Completions sampled together: a round may be a whole data set, and a cache of all its rows would not fit. A CPU gains
# nothing from more than some hundreds, and wastes less padding on fewer of similar length.
_ROWS_AT_A_TIME = 512
_ROWS_ON_CPU = 256
# Completions, their mean KL to the base per token, and their tokens' log-probabilities under it.
Sampled = tuple[list[list[int]], Tensor | None, list[list[float]] | None]
RolloutFunc = Callable[[list[Prompt], "VGFTrainer"], dict[str, Any]]


@dataclass
class Rollout:
    """The completions of one process, one row per completion.

    Attributes:
        prompts: As the dataset gave them.
        prompt_ids: Token ids without padding.
        completion_ids: Token ids without padding, with the end-of-sequence token where there is one.
        completions: Texts, or lists of one assistant message for conversational prompts.
        kl: `[rows]`, mean KL to the base per token in nats, if the rollout was transported.
        ref_logps: Log-probability of each completion token under the reference, where sampling told.
        extra: Further columns for the reward functions, from a `rollout_func`.
    """

    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    completions: list[Any]
    kl: Tensor | None = None
    ref_logps: list[list[float]] | None = None
    extra: dict[str, list[Any]] = field(default_factory=dict)


def eos_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns every token that ends a completion: the tokenizer's, and those the model (any policy) declares."""
    declared = model.generation_config.eos_token_id
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    own = tokenizer.eos_token_id
    return declared if own in declared else [own, *declared]


def prompts_in_a_row(prompts: Sequence[Sequence[int]]) -> int:
    """The largest N such that prompts come in blocks of N equal ones.

    Args:
        prompts: Token ids, one list per row.

    Returns:
        N, a divisor of the number of rows; 1 without rows.

    Example:
        >>> prompts_in_a_row([[5], [5], [6], [6], [6], [6]])
        2
    """
    return math.gcd(*(len(list(run)) for _, run in itertools.groupby(prompts))) or 1


class RolloutEngine:
    """Samples completions with transformers, vLLM or a function of the caller's.

    Args:
        trainer: The trainer; its model, tokenizer and accelerator are used.
        rollout_func: TRL's contract: `(prompts, trainer) -> {"prompt_ids", "completion_ids", ...}`.
    """

    def __init__(self, trainer: "VGFTrainer", rollout_func: RolloutFunc | None = None) -> None:
        self.trainer = trainer
        self.args: VGFConfig = trainer.args
        self.tokenizer = trainer._tokenizer
        self.rollout_func = rollout_func
        self.eos_token_ids = eos_token_ids(trainer.vgf_model, self.tokenizer)
        if rollout_func is not None and self.args.rollout_prefetch > 0:
            raise ValueError(
                f"`rollout_prefetch` ({self.args.rollout_prefetch}) samples in a thread while the trainer trains, and "
                "`rollout_func` is given that trainer. Leave `rollout_func` out, or set `rollout_prefetch=0`."
            )
        self._sampler = VLLMSampler(trainer) if self.args.use_vllm else None
        if self._sampler is not None:
            self._queue = RolloutQueue(self._sampler)

    def __call__(self, prompts: list[Prompt], *, mode: str = "train", step: int = 0) -> Rollout:
        """Samples one completion for every prompt.

        Args:
            prompts: They come repeated, as TRL's sampler gives them.
            mode: `"train"` or `"eval"`.
            step: The round of training, or the optimisation step of an evaluation.

        Returns:
            The completions.
        """
        if self._sampler is not None:
            self._sampler.sync()
        if self.rollout_func is not None:
            return self._from_function(prompts)
        if self._sampler is not None:
            request = self._request(prompts, mode, step)
            completion_ids = self._queue.result(request)
            return Rollout(prompts, request.prompt_ids, completion_ids, self.decode(prompts, completion_ids))
        prompt_ids = self._prompt_ids(prompts)
        with record_function("vgf/sample"):
            completion_ids, kl, ref_logps = self._generate_all(prompt_ids, mode)
        return Rollout(prompts, prompt_ids, completion_ids, self.decode(prompts, completion_ids), kl, ref_logps)

    def _generate_all(self, prompt_ids: list[list[int]], mode: str) -> Sampled:
        """Samples any number of rows, those of a prompt together; of a training prompt the first ones from the base."""
        count = self.args.base_generations if mode == "train" else 0
        with self.trainer.generation_context():
            if count == 0:
                return self._generate_parts(prompt_ids, self.args.rolls_out_value)
            place = [row % self.trainer.num_generations for row in range(len(prompt_ids))]
            of_base = [ids for ids, at in zip(prompt_ids, place, strict=True) if at < count]
            others = [ids for ids, at in zip(prompt_ids, place, strict=True) if at >= count]
            from_base, (from_value, kl, _) = self._generate_parts(of_base, False), self._generate_parts(others, True)
        base, value = iter(from_base[0]), iter(from_value)
        return [next(base if at < count else value) for at in place], kl, None

    def _generate_parts(self, prompt_ids: list[list[int]], with_value: bool) -> Sampled:
        """`_generate` for any number of rows, those of a prompt together, prompts of similar length in one call."""
        count = prompts_in_a_row(prompt_ids)
        firsts = sorted(range(0, len(prompt_ids), count), key=lambda first: len(prompt_ids[first]))
        order = [row for first in firsts for row in range(first, first + count)]
        on_cpu = self.trainer.accelerator.device.type == "cpu"
        size = max(1, (_ROWS_ON_CPU if on_cpu else _ROWS_AT_A_TIME) // count) * count
        starts = range(0, len(order), size)
        parts = [
            self._generate([prompt_ids[row] for row in order[start : start + size]], with_value) for start in starts
        ]
        place = sorted(range(len(order)), key=order.__getitem__)  # where each row's completion came to stand
        completion_ids = [ids for part in parts for ids in part[0]]
        kl = None if parts[0][1] is None else torch.cat([part[1] for part in parts if part[1] is not None])
        logps = None if parts[0][2] is None else [row for part in parts for row in part[2] or ()]
        return (
            [completion_ids[at] for at in place],
            None if kl is None else kl[place],
            None if logps is None else [logps[at] for at in place],
        )

    def _prompt_ids(self, prompts: list[Prompt]) -> list[list[int]]:
        prompt_ids = self.tokenize(prompts)
        config = self.trainer.vgf_model.config
        check_prompt_lengths(prompt_ids, config, self.args.max_completion_length, prompts=prompts)
        return prompt_ids

    def tokenize(self, prompts: list[Prompt]) -> list[list[int]]:
        """Returns the token ids of prompts, through the chat template for conversational ones."""
        return tokenize_prompts(prompts, self.tokenizer, settings_dict(self.args.chat_template_kwargs))

    def decode(self, prompts: list[Prompt], completion_ids: list[list[int]]) -> list[Any]:
        """Returns the texts of completions, as messages for conversational prompts."""
        texts = self.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        if is_conversational({"prompt": prompts[0]}):
            return [[{"role": "assistant", "content": text}] for text in texts]
        return texts

    @property
    def _samples_reference(self) -> bool:
        """Whether completions are samples of the reference itself, in a precision that scores them as a pass would."""
        model, args = self.trainer.vgf_model, self.args
        if args.samples_value_model or args.rollout_transport_steps > 0 or not model.value.needs_logits:
            return False
        if "likelihood" in (args.value_loss, self.trainer.rounds.loss_kind):  # which has no use for the reference
            return False
        is_policy = model.ref_model is None and model.policy_adapter is None
        exact = model.policy.dtype == torch.float32 and self.trainer.accelerator.mixed_precision == "no"
        return is_policy and exact

    def _generate(self, prompt_ids: list[list[int]], with_value: bool) -> Sampled:
        """Samples rows in one call, from the base or where the configuration has the value sample."""
        trainer, args = self.trainer, self.args
        tensors = [torch.tensor(ids, device=trainer.accelerator.device) for ids in prompt_ids]
        options = {"padding_side": "left", "pad_to_multiple_of": args.pad_to_multiple_of}
        input_ids = pad(tensors, padding_value=self.tokenizer.pad_token_id, **options)
        attention_mask = pad([torch.ones_like(ids) for ids in tensors], padding_value=0, **options)
        steps = args.rollout_transport_steps if with_value else 0
        model = trainer.vgf_model
        # Completions of one prompt are its particles, so that it is read once. Whole responses move row by row.
        n = prompts_in_a_row(prompt_ids) if steps == 0 or model.transport.space not in SEQUENCE_SPACES else 1
        # Without steps they are the policy's own samples, whatever the value is going to move.
        space = model.transport.space if steps > 0 else "logit"
        was_training = model.training
        model.eval()  # dropout has no place in sampling
        prompts, kwargs = (input_ids[::n], attention_mask[::n]), self._sampling_arguments()
        output: Any
        recorder = TokenLogps() if self._samples_reference else None
        recording = nullcontext() if recorder is None else recorder.installed(inner_model(model.policy))
        try:
            with recording, decoding_attention(model.policy, model.value_model):
                if with_value and args.samples_value_model:
                    output = generate_from_value(
                        model,
                        *prompts,
                        num_particles=n,
                        top_k_candidates=args.top_k_candidates,
                        min_candidate_prob=args.min_candidate_prob,
                        **kwargs,
                    )
                else:
                    output = model.generate(
                        *prompts,
                        space=space,
                        transport_steps=steps,
                        num_particles=n,
                        interaction=False,
                        selection="none",
                        return_dict_in_generate=steps > 0,
                        **kwargs,
                    )
        finally:
            model.train(was_training)
        sequences = output if isinstance(output, Tensor) else output.sequences
        token_kl = None if isinstance(output, Tensor) else output.kl
        tokens = sequences[:, input_ids.shape[1] :]
        mask = mask_after_eos(tokens, self.eos_token_ids)
        kl = None if token_kl is None else token_kl.flatten(0, 1).sum(dim=-1) / mask.sum(dim=-1)
        ref_logps = None if recorder is None else recorder.of(tokens)
        return _unpadded(tokens, mask), kl, None if ref_logps is None else _unpadded(ref_logps, mask)

    def _sampling_arguments(self) -> dict[str, Any]:
        args = self.args
        kwargs = {
            "max_new_tokens": args.max_completion_length,
            "do_sample": True,
            "pad_token_id": self.tokenizer.pad_token_id,
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.eos_token_ids,
            "temperature": args.temperature,
            "top_p": args.top_p,
            "top_k": args.top_k,
            "min_p": args.min_p,
            "repetition_penalty": args.repetition_penalty,
            "cache_implementation": args.cache_implementation,
            "disable_compile": True,
        }
        return {**kwargs, **settings_dict(args.generation_kwargs)}

    @property
    def vllm(self) -> Any:
        """The vLLM engine, or `None`."""
        return None if self._sampler is None else self._sampler.engine

    def _request(self, prompts: list[Prompt], mode: str, step: int) -> Request:
        trainer = self.trainer
        prompt_ids = self._prompt_ids(prompts)
        count = trainer.num_generations if mode == "train" else trainer.num_generations_eval
        first_row = trainer.accelerator.process_index * len(prompts)
        return Request(prompt_ids, count, first_row, mode, step, self.args.seed)

    def sample_ahead(self, prompts: list[Prompt], round_index: int) -> None:
        """Starts sampling the completions of a later training round, which a call will then ask for."""
        self._queue.submit(round_index, lambda: self._request(prompts, "train", round_index))

    def close(self) -> None:
        """Ends sampling ahead; a call still samples."""
        if self._sampler is not None:
            self._queue.close()

    def _from_function(self, prompts: list[Prompt]) -> Rollout:
        # A copy, because conversations are lists that the function may extend.
        with record_function("vgf/sample"):
            output = dict(self.rollout_func(copy.deepcopy(prompts), self.trainer))  # type: ignore[misc]
        missing = {"prompt_ids", "completion_ids"} - set(output)
        if missing:
            raise ValueError(
                f"`rollout_func` must return 'prompt_ids' and 'completion_ids'; {sorted(missing)} are missing from "
                f"{sorted(output)}."
            )
        prompt_ids, completion_ids = output.pop("prompt_ids"), output.pop("completion_ids")
        output.pop("logprobs", None)  # of whatever policy sampled
        ref_logps = output.pop("ref_logprobs", None)
        columns = {"prompt_ids": prompt_ids, "completion_ids": completion_ids, **output}
        if ref_logps is not None:
            columns["ref_logprobs"] = ref_logps
        for name, column in columns.items():
            if len(column) != len(prompts):
                raise ValueError(
                    f"`rollout_func` returned {len(column)} {name} for {len(prompts)} prompts; return one per prompt "
                    "(prompts come repeated `num_generations` times)."
                )
        # A completion without tokens ended at once, which is a choice the value can learn from.
        completion_ids = [list(ids) or [self.tokenizer.eos_token_id] for ids in completion_ids]
        for prompt, ids, row in zip(prompts, completion_ids, ref_logps or (), strict=False):
            if len(row) != len(ids):
                raise ValueError(
                    f"`rollout_func` returned {len(row)} ref_logprobs for a completion of {len(ids)} tokens, of the "
                    f"prompt {prompt!r}. Return one per token, or leave them out to have them computed."
                )
        texts = self.decode(prompts, completion_ids)
        return Rollout(prompts, prompt_ids, completion_ids, texts, ref_logps=ref_logps, extra=output)


def _unpadded(rows: Tensor, mask: Tensor) -> list[list[Any]]:
    return [row[m.bool()].tolist() for row, m in zip(rows.cpu(), mask.cpu(), strict=True)]
