# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Sampling responses to a task's problems, and what each way of choosing among them scores.

Problems are sampled in fixed batches, each from a seed of its own. So an evaluation that was interrupted and goes on
gives the samples that it would have given at once, and several processes together give those of one.
"""

import hashlib
import math
import sys
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import BatchEncoding, PreTrainedTokenizerBase

from eval.costs import ForwardCounter, PeakMemory
from eval.likelihood import likelihood
from eval.store import Record, SampleStore
from eval.tasks import Task
from vgf_llm.generation import response_mask, select
from vgf_llm.generation.sample import sample as sample_responses
from vgf_llm.models import VGFModel
from vgf_llm.models.config import SEQUENCE_SPACES, TransportConfig
from vgf_llm.trainer.choose.prompts import tokenize_prompts

# Checkpoints carry sampling defaults of their own (temperature 0.7, top_k 20, repetition_penalty 1.1 and others), which
# transformers applies wherever a call says nothing. These arguments are what "nothing" has to mean in a table: the
# model's whole distribution. A call's `None` is a setting for transformers, and resets the checkpoint's.
PLAIN_GREEDY: dict[str, Any] = {
    "do_sample": False,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "min_length": 0,
    "min_new_tokens": None,
    "watermarking_config": None,
    "num_beams": 1,
}
PLAIN_SAMPLING: dict[str, Any] = {
    **PLAIN_GREEDY,
    "do_sample": True,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}

_TRANSPORT_FIELDS = {item.name for item in fields(TransportConfig)}


@dataclass(frozen=True)
class Draw:
    """One way of sampling, from which several methods may choose.

    Attributes:
        name: Names it in result files; two draws of a folder with one name are the same draw.
        options: Handed to `VGFModel.generate`; what they leave open is plain sampling or plain greedy decoding.
        with_values: Whether responses are valued; transported ones are valued on the way.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    with_values: bool = False

    @property
    def transported(self) -> bool:
        """Whether the value moves this draw."""
        return self.options.get("transport_steps", 0) > 0

    @property
    def values_itself(self) -> bool:
        """Whether `generate` returns the values: where it transports, and where a value of whole responses ranks."""
        return self.transported or (self.with_values and self.options.get("space") in SEQUENCE_SPACES)


@dataclass(frozen=True)
class Samples:
    """N responses to each of B problems.

    Attributes:
        gold: `[B, N]`, scores that are reported.
        num_tokens: `[B, N]`, sampled tokens.
        kl: `[B, N]`, divergence to the reference in nats, summed over the response; NaN where it is not known.
        base_logps: `[B, N]`, log-probability under the reference.
        seconds: `[B, N]`, each response's share of the sampling time.
        forwards: `[B, N]`, its share of the tokens that models processed.
        answers: `B` lists of `N` extracted answers, `None` where there is none.
        responses: `B` lists of `N` texts.
        proxy: `[B, N]`, scores that training could see; `None` if the task has none.
        values: `[B, N]`, the model's value of each response; `None` if it was not computed.
        weights: `[B, N]`, its weight in a vote.
        value_seconds: `[B, N]`, the time of valuing, where that was apart from sampling.
        value_forwards: `[B, N]`, the tokens processed in valuing.
        peak_mb: Most memory in use while sampling; `None` where the platform does not tell.
    """

    gold: Tensor
    num_tokens: Tensor
    kl: Tensor
    base_logps: Tensor
    seconds: Tensor
    forwards: Tensor
    answers: list[list[str | None]]
    responses: list[list[str]]
    proxy: Tensor | None = None
    values: Tensor | None = None
    weights: Tensor | None = None
    value_seconds: Tensor | None = None
    value_forwards: Tensor | None = None
    peak_mb: float | None = None

    def take(self, n: int) -> "Samples":
        """Returns the first `n` responses of each problem, with their share of the cost."""
        if not 1 <= n <= self.gold.shape[1]:
            raise ValueError(f"`n` must be from 1 to the {self.gold.shape[1]} samples of a problem, got {n}.")
        cut: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                cut[item.name] = value[:, :n]
            elif isinstance(value, list):
                cut[item.name] = [row[:n] for row in value]
        return replace(self, **cut)

    def choose(self, selection: str) -> Tensor:
        """Returns the index of the chosen response, `[B]`.

        Args:
            selection: `"value"`, `"majority"` and `"weighted_vote"` as in `VGFModel.generate`; `"proxy"` for the
                highest proxy score. A majority's ties go to the answer that was drawn first.
        """
        if selection == "majority":
            order = -torch.arange(self.gold.shape[1], dtype=torch.float32).expand_as(self.gold)
            return select(order, "majority", answers=self.answers)
        ranked = self.proxy if selection == "proxy" else self.values
        if ranked is None:
            raise ValueError(
                f"These samples have no {'proxy scores' if selection == 'proxy' else 'values'} to rank by."
            )
        if selection == "weighted_vote":
            return select(ranked, selection, answers=self.answers, weights=self.weights)
        return select(ranked, "value", answers=())

    def pick(self, scores: Tensor, selection: str) -> Tensor:
        """Score of the answer that a method gives, per problem `[B]`.

        Args:
            scores: `[B, N]`.
            selection: As for `choose`; `"single"`: one response, as the mean over all N; `"oracle"`: the best one.
        """
        if selection == "single":
            return scores.mean(dim=-1)
        if selection == "oracle":
            return scores.amax(dim=-1)
        return scores.gather(-1, self.choose(selection).unsqueeze(-1)).squeeze(-1)


def sample(
    model: VGFModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    draw: Draw,
    *,
    num_samples: int,
    seed: int = 0,
    batch_size: int = 512,
    store: SampleStore | None = None,
    with_likelihood: bool = True,
    processes: PartialState | None = None,
    **generate_kwargs: Any,
) -> Samples:
    """Samples `num_samples` responses per problem and scores them.

    With several `processes` every one of them has to call this. The batches are shared out, every process calls
    `generate` as often as every other, and all of them return all samples.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        task: Problems and scores.
        draw: How to sample.
        num_samples: N.
        seed: Seed of the sampling.
        batch_size: Responses sampled at a time; part of what decides the samples.
        store: Where samples are kept and those of an earlier run are found.
        with_likelihood: Whether the base's log-probabilities and the KL to it are measured, which takes a pass; else
            they are NaN.
        processes: The processes that share the batches; this one alone if left out.
        **generate_kwargs: Handed to `VGFModel.generate` beside the draw's options.

    Returns:
        `Samples`.

    Raises:
        ValueError: If there is nothing to sample.
    """
    if num_samples < 1 or batch_size < 1:
        raise ValueError(f"`num_samples` and `batch_size` must be at least 1, got {num_samples} and {batch_size}.")
    prompts = list(task.problems["prompt"])
    order = sorted(range(len(prompts)), key=lambda i: len(str(prompts[i])))  # like lengths together: less padding
    per_batch = max(1, batch_size // num_samples)
    # The number of samples enters the seed, so it has to be in the name that finds them again.
    name = f"{draw.name} x{num_samples}"
    count, own = (1, 0) if processes is None else (processes.num_processes, processes.process_index)
    if count > 1 and store is not None:
        raise ValueError("`store` keeps the samples of one process; leave it out with several `processes`.")
    batches = [order[start : start + per_batch] for start in range(0, len(order), per_batch)]
    done: list[Record] = []
    # None leaves the bar out of log files, which get a line instead.
    for turn in tqdm(range(0, len(batches), count), desc=name, leave=False, disable=True if own else None):
        # A process without a batch of its own samples the last one too: sharded weights need every process.
        rows = batches[min(turn + own, len(batches) - 1)]
        records = store.find(name, seed, rows, num_samples) if store is not None else None
        if records is None:
            records = _sample_batch(
                model,
                tokenizer,
                task,
                draw,
                rows,
                prompts,
                num_samples,
                _batch_seed(name, seed, rows),
                with_likelihood,
                generate_kwargs,
            )
            records = [{"draw": name, "seed": seed, **record} for record in records]
            if store is not None:
                store.append(records)
        done += records if turn + own < len(batches) else []
    if not own and not sys.stderr.isatty():
        print(f"{name}, seed {seed}: {len(prompts) * num_samples} responses", file=sys.stderr, flush=True)
    return collect(gather_object(done) if count > 1 else done, len(prompts), num_samples)


def collect(records: Sequence[Record], num_problems: int, num_samples: int) -> Samples:
    """Arranges the records of one draw and seed as `Samples`."""
    table: list[list[Record]] = [[{}] * num_samples for _ in range(num_problems)]
    for record in records:
        table[record["prompt"]][record["sample"]] = record

    def tensor(name: str) -> Tensor | None:
        if name != "kl" and table[0][0].get(name) is None:
            return None
        numbers = [[math.nan if record[name] is None else record[name] for record in row] for row in table]
        return torch.tensor(numbers, dtype=torch.float32)

    peaks = [record["peak_mb"] for record in records if record.get("peak_mb") is not None]
    numbers = {item.name: tensor(item.name) for item in fields(Samples) if item.type in (Tensor, Tensor | None)}
    return Samples(
        **numbers,  # type: ignore[arg-type]
        answers=[[record["answer"] for record in row] for row in table],
        responses=[[record["response"] for record in row] for row in table],
        peak_mb=max(peaks) if peaks else None,
    )


def _batch_seed(draw: str, seed: int, rows: Sequence[int]) -> int:
    digest = hashlib.sha256(f"{draw}|{seed}|{','.join(map(str, rows))}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


@dataclass
class _Batch:
    """What sampling one batch gave, flat over R = problems x N."""

    sequences: Tensor
    attention: Tensor
    mask: Tensor
    seconds: float
    forwards: int
    peak_mb: float | None
    values: Tensor | None = None
    transport_kl: Tensor | None = None
    kl_known: bool = True
    value_seconds: float = 0.0
    value_forwards: int = 0


def _sample_batch(
    model: VGFModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    draw: Draw,
    rows: Sequence[int],
    prompts: Sequence[Any],
    num_samples: int,
    seed: int,
    with_likelihood: bool,
    generate_kwargs: dict[str, Any],
) -> list[Record]:
    """Samples and scores the responses of some problems."""
    inputs = encode(tokenizer, [prompts[i] for i in rows], task.chat_template_kwargs).to(model.device)
    plain = PLAIN_SAMPLING if draw.options.get("do_sample") else PLAIN_GREEDY
    ends = {"eos_token_id": end_token_ids(model, tokenizer) or None}
    options = {"transport_steps": 0, **plain, **ends, "max_new_tokens": task.max_new_tokens, **generate_kwargs}
    options |= draw.options
    cuda = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):  # an evaluation inside a training run leaves its randomness alone
        torch.manual_seed(seed)
        batch = _generate(model, inputs, draw, num_samples, options)
    responses = batch.sequences[:, inputs["input_ids"].shape[1] :]
    ids = [row[mask.bool()].tolist() for row, mask in zip(responses.cpu(), batch.mask.cpu(), strict=True)]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    problems = [i for i in rows for _ in range(num_samples)]
    scores = task.score(problems, texts, ids)
    kl: list[float | None] = [None] * len(texts)
    base_logps = [math.nan] * len(texts)
    if with_likelihood:
        found = likelihood(
            model,
            batch.sequences,
            batch.attention,
            batch.mask,
            greedy=not options["do_sample"],
            temperature=options.get("temperature", 1.0),
            transport_kl=batch.transport_kl,
            group_size=num_samples,
        )
        base_logps = found.base_logps.tolist()
        if batch.kl_known:
            kl = found.kl.tolist()
    weights: list[float | None] = [None] * len(texts)
    values: list[float | None] = [None] * len(texts)
    if batch.values is not None:
        values = batch.values.flatten().tolist()
        weights = model.value.vote_weights(batch.values).flatten().tolist()
    share = 1 / len(texts)
    return [
        {
            "prompt": problem,
            "sample": index % num_samples,
            "response": texts[index],
            "answer": None if task.answer_of is None else task.answer_of(texts[index]),
            **{name: column[index] for name, column in scores.items()},
            "num_tokens": len(ids[index]),
            "kl": kl[index],
            "base_logps": base_logps[index],
            "values": values[index],
            "weights": weights[index],
            "seconds": batch.seconds * share,
            "forwards": batch.forwards * share,
            "value_seconds": batch.value_seconds * share,
            "value_forwards": batch.value_forwards * share,
            "peak_mb": batch.peak_mb,
        }
        for index, problem in enumerate(problems)
    ]


def _generate(model: VGFModel, inputs: Any, draw: Draw, num_samples: int, options: dict[str, Any]) -> _Batch:
    """Runs `generate`, then values what was not valued on the way; each is timed by itself."""
    prompts = inputs["input_ids"], inputs["attention_mask"]
    with PeakMemory(model.device) as memory, ForwardCounter(model).counting() as counter:
        began = _now(model)
        output: Any
        if draw.values_itself:
            output = model.generate(
                *prompts, num_particles=num_samples, selection="none", return_dict_in_generate=True, **options
            )
            tokens = output.sequences[:, prompts[0].shape[1] :]
        else:
            plain = {name: value for name, value in options.items() if name not in _TRANSPORT_FIELDS}
            output = sample_responses(model, *prompts, who="base", num_particles=num_samples, **plain)
            tokens = output.tokens
        seconds = _now(model) - began
    prompt_ids, prompt_mask = (part.repeat_interleave(num_samples, dim=0) for part in prompts)
    mask = response_mask(output.lengths.flatten(), tokens.shape[1])
    sequences, attention = torch.cat([prompt_ids, tokens], dim=1), torch.cat([prompt_mask, mask], dim=1)
    batch = _Batch(sequences, attention, mask, seconds, counter.tokens, memory.megabytes)
    if draw.values_itself:
        batch.values = output.values.float()
        # Responses that were not decoded token by token have no distribution to measure.
        batch.kl_known = output.kl is not None
        if batch.kl_known:
            batch.transport_kl = output.kl.view(len(sequences), -1)
    elif draw.with_values:
        with ForwardCounter(model).counting() as counter:
            began = _now(model)
            batch.values = model.score(sequences, attention, mask).values.float().view(-1, num_samples)
            batch.value_seconds = _now(model) - began
        batch.value_forwards = counter.tokens
    return batch


def _now(model: VGFModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def end_token_ids(model: VGFModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns every token that ends a response, as in training: the tokenizer's, and those that the model declares."""
    declared = model.generation_config.eos_token_id
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    own = tokenizer.eos_token_id
    return declared if own is None or own in declared else [own, *declared]


def encode(
    tokenizer: PreTrainedTokenizerBase, prompts: list[Any], chat_template_kwargs: dict[str, Any] | None = None
) -> BatchEncoding:
    """Tokenizes texts or conversations as training does, padded left.

    Args:
        tokenizer: The tokenizer.
        prompts: Texts, or lists of messages.
        chat_template_kwargs: Switches of the chat template, such as `{"enable_thinking": False}`.

    Returns:
        `input_ids` and `attention_mask`, `[B, P]` each.
    """
    rows = [torch.tensor(ids) for ids in tokenize_prompts(prompts, tokenizer, chat_template_kwargs)]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    ids = pad_sequence(rows, batch_first=True, padding_value=pad, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    return BatchEncoding({"input_ids": ids, "attention_mask": mask})


def distinct_tokens(texts: Sequence[Sequence[str]]) -> list[list[Hashable]]:
    """Splits responses into words, the tokens of distinct-n: one count for models of any tokenizer."""
    return [list(text.split()) for row in texts for text in row]
