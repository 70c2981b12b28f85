# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Writing responses with the base under common random numbers, as often as transport asks.

Every token is the largest of the base's log-probabilities, tilted and perturbed by Gumbel noise that depends on row and
position alone (Gumbel-max sampling). So a text without a tilt is an ordinary sample, writing it again gives it again,
and what a re-decoding changes is due to the tilt.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from vgf_llm.generation.candidates import candidate_tokens
from vgf_llm.generation.decoding import effective_config, end_token_ids
from vgf_llm.generation.ends import Ends, response_mask
from vgf_llm.generation.responses import run_generate
from vgf_llm.models.adapter_rows import adapter_rows
from vgf_llm.models.config import TransportConfig
from vgf_llm.models.language_model import inner_model, last_hidden_states, logits_of_states
from vgf_llm.models.valued_policy import ValuedPolicy
from vgf_llm.spaces.sequence import TextCandidates, Tilt

_SAMPLING = ("temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True)
class Prefix:
    """What stands before the tokens that are written next, R = B * N rows."""

    ids: Tensor  # `[R, P]`
    mask: Tensor  # `[R, P]`, 1 on real tokens
    response: Tensor  # `[R, P]`, 1 on tokens that belong to the response
    finished: Tensor  # `[R]`, true where the response has ended
    # `[R, P]`, KL to the base of each token's distribution, in nats; `None` for tokens that were not decoded
    kl: Tensor | None
    cache: DynamicCache | None = None  # the base's keys and values of all but the last column, or `None`

    def followed_by(self, text: "Text") -> "Prefix":
        """The prefix of what stands behind a text, without a cache."""
        grown = text.mask.to(self.mask.dtype)
        return Prefix(
            ids=torch.cat([self.ids, text.tokens], dim=1),
            mask=torch.cat([self.mask, grown], dim=1),
            response=torch.cat([self.response, grown], dim=1),
            finished=self.finished | text.ended,
            kl=None if self.kl is None or text.kl is None else torch.cat([self.kl, text.kl], dim=1),
        )


@dataclass(frozen=True)
class Text:
    """Tokens after a prefix."""

    tokens: Tensor  # `[R, T]`, padded on the right
    mask: Tensor  # `[R, T]`, true up to and with the token that ended the response
    ended: Tensor  # `[R]`, true where the response ended here, and no limit cut it
    kl: Tensor | None  # `[R, T]`, as in `Prefix`

    @property
    def last(self) -> Tensor:
        """`[R, T]`, true on tokens that ended a response."""
        position = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return self.ended.unsqueeze(-1) & (position == self.mask.sum(dim=-1, keepdim=True) - 1)

    def padded(self, length: int, pad_id: int) -> "Text":
        """The text in `length` columns."""
        more = (0, length - self.tokens.shape[1])
        kl = None if self.kl is None else F.pad(self.kl, more)
        return Text(F.pad(self.tokens, more, value=pad_id), F.pad(self.mask, more), self.ended, kl)


class _AlreadyFinished(StoppingCriteria):
    """Ends rows at once whose response had ended before."""

    def __init__(self, finished: Tensor) -> None:
        self.finished = finished

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return self.finished


class _TiltProcessor(LogitsProcessor):
    """Picks the next token of every row and leaves `generate` no other."""

    def __init__(self, decoder: "SequenceDecoder", prefix: Prefix, offset: int, tilt: Tilt | None) -> None:
        self.decoder, self.prefix, self.offset, self.tilt = decoder, prefix, offset, tilt
        self.kl: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        position = input_ids.shape[1] - self.prefix.ids.shape[1]
        log_probs = scores.float().log_softmax(dim=-1)
        kl = log_probs.new_zeros(log_probs.shape[0])
        if self.tilt is not None:
            log_probs, kl = self._tilted(log_probs, self.tilt, position)
        self.kl.append(kl)
        perturbed = self.decoder.perturb(input_ids, log_probs, self.offset + position)
        token = perturbed.argmax(dim=-1)
        if bool(self.prefix.finished.any()):
            token = torch.where(self.prefix.finished, self.decoder.end_id, token)
        return torch.full_like(scores, -torch.inf).scatter_(-1, token.unsqueeze(-1), 0.0)

    def _tilted(self, log_probs: Tensor, tilt: Tilt, position: int) -> tuple[Tensor, Tensor]:
        """Returns the tilted log-probabilities `[R, V]` and their KL to the base `[R]`.

        The least of the candidates' gains is taken from all, so that tokens that are no candidates gain as little as
        the worst candidate, and without a tilt the distribution is the base's to the bit.
        """
        config = self.decoder.transport
        ids, mask, _ = candidate_tokens(log_probs, top_k=config.top_k_candidates, min_prob=config.min_candidate_prob)
        gain = tilt(position, ids).to(log_probs.dtype)
        least = gain.masked_fill(~mask, torch.inf).amin(dim=-1, keepdim=True)
        gain = torch.where(mask, gain - least, 0.0)
        if config.min_entropy > 0:
            entropy = -(log_probs.exp() * log_probs.clamp(min=-1e4)).sum(dim=-1, keepdim=True)
            gain = torch.where(entropy < config.min_entropy, 0.0, gain)
        moved = log_probs.scatter_add(-1, ids, gain)
        normaliser = moved.logsumexp(dim=-1, keepdim=True)
        weights = torch.where(mask, (moved.gather(-1, ids) - normaliser).exp(), 0.0)
        kl = ((weights * gain).sum(dim=-1) - normaliser.squeeze(-1)).clamp(min=0)
        still = ~gain.any(dim=-1)
        return torch.where(still.unsqueeze(-1), log_probs, moved - normaliser), torch.where(still, 0.0, kl)


class SequenceDecoder:
    """Writes and reads texts with the base, the model's policy.

    `transport` has candidates and gates; the arguments after it are those of the policy's `generate`.
    """

    def __init__(
        self,
        model: ValuedPolicy,
        transport: TransportConfig,
        generation_config: GenerationConfig | None,
        logits_processor: LogitsProcessorList | None,
        *,
        prompt_length: int = 0,
        **kwargs: Any,
    ) -> None:
        policy = inner_model(model.policy)
        self.model, self.policy, self.transport = model, policy, transport
        config, self._options = effective_config(policy, generation_config, kwargs, prompt_length)
        self.max_new_tokens = int(config.max_new_tokens or 1)
        eos = end_token_ids(config)
        self.pad_id: int = config.pad_token_id if config.pad_token_id is not None else (eos or [0])[0]
        self.end_id = eos[0] if eos else self.pad_id
        self.do_sample = bool(config.do_sample)
        self.temperature = float(config.temperature) if self.do_sample else 1.0
        # What `generate` does to log-probabilities before it samples.
        sampling = GenerationConfig(do_sample=True, **{name: getattr(config, name) for name in _SAMPLING})
        self._warpers = policy._get_logits_processor(sampling, device=policy.device)
        self._caches = config.use_cache and config.cache_implementation in (None, "dynamic")
        # Tokens are chosen by `_TiltProcessor`, which leaves `generate` no other.
        config.update(do_sample=False, output_scores=False, output_logits=False)
        config.update(**dict.fromkeys(_SAMPLING))
        config.pad_token_id = self.pad_id
        self._config, self._processors = config, logits_processor or LogitsProcessorList()
        self._ends = Ends()  # the criteria of the last writing
        # Drawn once, so that torch.manual_seed decides all of a call's noise.
        self._seed = int(torch.randint(2**48, ()))
        self._generator = torch.Generator(device=policy.device)

    def perturb(self, input_ids: Tensor, log_probs: Tensor, position: int) -> Tensor:
        """Returns scores `[R, V]` whose largest entry is a sample under the call's temperature, top-k and top-p.

        The response position decides the noise, with the row.
        """
        if not self.do_sample:
            return log_probs
        self._generator.manual_seed(self._seed + position)
        exponential = torch.empty_like(log_probs).exponential_(generator=self._generator)
        return self._warpers(input_ids, log_probs) - exponential.log()

    def prefix(self, input_ids: Tensor, attention_mask: Tensor, num_particles: int) -> Prefix:
        """Reads prompts `[B, P]` once for all of their particles."""
        cache = None
        if self._caches and input_ids.shape[1] > 1:
            cache = DynamicCache(config=self.policy.config.get_text_config(decoder=True))
            self._read(input_ids[:, :-1], attention_mask[:, :-1], cache)
            cache.batch_repeat_interleave(num_particles)
        ids, mask = (x.repeat_interleave(num_particles, dim=0) for x in (input_ids, attention_mask))
        finished, kl = torch.zeros_like(ids[:, 0], dtype=torch.bool), torch.zeros_like(ids, dtype=torch.float32)
        return Prefix(ids, mask, torch.zeros_like(mask), finished, kl, cache)

    def extend(self, prefix: Prefix, text: Text, rows: Tensor) -> Prefix:
        """Puts text behind a prefix; row r of the result continues row `rows[r]`."""
        whole, cache = prefix.followed_by(text), prefix.cache
        ids, mask, kl = whole.ids[rows], whole.mask[rows], None if whole.kl is None else whole.kl[rows]
        if cache is not None:
            cache.batch_select_indices(rows)
            self._read(ids[:, prefix.ids.shape[1] - 1 : -1], mask[:, :-1], cache)
        return Prefix(ids, mask, whole.response[rows], whole.finished[rows], kl, cache)

    def write(self, prefix: Prefix, max_new_tokens: int, offset: int = 0, tilt: Tilt | None = None) -> Text:
        """Decodes up to `max_new_tokens` tokens behind a prefix, from response position `offset` on, tilted or not."""
        processor = _TiltProcessor(self, prefix, offset, tilt)
        options = dict(self._options)
        if prefix.cache is not None:
            options["past_key_values"] = copy.deepcopy(prefix.cache)
        config = copy.deepcopy(self._config)
        config.max_new_tokens = max_new_tokens
        criteria = [*(options.pop("stopping_criteria", None) or []), _AlreadyFinished(prefix.finished)]
        with adapter_rows(self.model.policy, self.model.policy_adapter):
            found = run_generate(
                self.policy,
                prefix.ids,
                prefix.mask,
                defaults=config,
                num_particles=1,  # the prompt is in the cache already
                generation_config=config,
                last=processor,
                logits_processor=self._processors,
                stopping_criteria=StoppingCriteriaList(criteria),
                **options,
            )
        self._ends = found.ends
        mask = found.mask.bool() & ~prefix.finished.unsqueeze(-1)
        kl = torch.stack(processor.kl[: mask.shape[1]], dim=-1)
        ended = found.ends.finished & ~prefix.finished
        return Text(torch.where(mask, found.tokens, self.pad_id), mask, ended, kl * mask)

    def as_text(self, prefix: Prefix, tokens: Tensor, mask: Tensor) -> Text:
        """Ends tokens `[R, T]` within `mask` where the criteria that end responses would have ended them."""
        ends = self._ends.replayed(torch.cat([prefix.ids, tokens], dim=1), prefix.ids.shape[1])
        kept = mask & response_mask(ends.lengths, tokens.shape[1]).bool()
        ended = ends.finished & (kept.sum(dim=-1) == ends.lengths)
        return Text(torch.where(kept, tokens, self.pad_id), kept, ended, None)

    def candidates(self, prefix: Prefix, text: Text, offset: int = 0) -> TextCandidates:
        """Reads a text once and returns the base's candidates `[R, T, K]` at every position of it.

        The text's own token is among them and largest in `perturbed`.
        """
        whole, known = prefix.followed_by(text), prefix.ids.shape[1] - 1
        ids, mask = whole.ids[:, :-1], whole.mask[:, :-1]
        if prefix.cache is not None:
            hidden = self._read(ids[:, known:], mask, copy.deepcopy(prefix.cache))
        else:
            hidden = self._read(ids, mask, None)[:, known:]
        with adapter_rows(self.model.policy, self.model.policy_adapter):
            found = [
                self._candidates_at(prefix, text, hidden[:, position], position, offset)
                for position in range(text.tokens.shape[1])
            ]
        return TextCandidates(*(torch.stack(part, dim=1) for part in zip(*found, strict=True)))

    def _candidates_at(self, prefix: Prefix, text: Text, hidden: Tensor, position: int, offset: int) -> list[Tensor]:
        log_probs = logits_of_states(self.model.policy, hidden).log_softmax(dim=-1)
        config, own = self.transport, text.tokens[:, position : position + 1]
        ids, mask, _ = candidate_tokens(log_probs, top_k=config.top_k_candidates, min_prob=config.min_candidate_prob)
        # A sample may stand outside the candidates; it then takes the place of the least likely one.
        missing = ~((ids == own) & mask).any(dim=-1)
        elsewhere = (ids == own).int().argmax(dim=-1)
        slot = torch.where((ids == own).any(dim=-1), elsewhere, ids.shape[-1] - 1)
        slot_mask = F.one_hot(slot, ids.shape[-1]).bool() & missing.unsqueeze(-1)
        ids, mask = torch.where(slot_mask, own, ids), mask | slot_mask
        written = torch.cat([prefix.ids, text.tokens[:, :position]], dim=1)
        perturbed = self.perturb(written, log_probs, offset + position).gather(-1, ids)
        # Penalties and rounding aside, the text's own token is the largest already.
        largest = perturbed.masked_fill(~mask, -torch.inf).amax(dim=-1, keepdim=True)
        perturbed = torch.where((ids == own) & mask, largest.clamp(min=-1e30), perturbed)
        perturbed = torch.where((ids != own) & (perturbed >= largest), perturbed.nextafter(perturbed - 1), perturbed)
        return [ids, mask, log_probs.gather(-1, ids), perturbed]

    def _read(self, ids: Tensor, mask: Tensor, cache: DynamicCache | None) -> Tensor:
        """Runs the base on the last columns of what `mask` covers; returns hidden states."""
        kwargs: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        with adapter_rows(self.model.policy, self.model.policy_adapter):
            return last_hidden_states(self.policy, ids, mask, **kwargs)


def joined(old: Text, new: Text, take: Tensor, pad_id: int) -> Text:
    """Takes rows of `new` where `take` `[R]` is true and rows of `old` elsewhere; the shorter is padded."""
    length = max(old.tokens.shape[1], new.tokens.shape[1])
    old, new = old.padded(length, pad_id), new.padded(length, pad_id)
    rows = take.unsqueeze(-1)
    kl = None if old.kl is None or new.kl is None else torch.where(rows, new.kl, old.kl)
    tokens, mask = torch.where(rows, new.tokens, old.tokens), torch.where(rows, new.mask, old.mask)
    return Text(tokens, mask, torch.where(take, new.ended, old.ended), kl)
