# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Generation of whole responses: sample N, move them together, decode, keep the best, select."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from vgf_llm.generation.output import VGFGenerateOutput
from vgf_llm.generation.particles import for_particles
from vgf_llm.generation.selection import AnswerFn, chosen_sequences
from vgf_llm.generation.sequence_decoding import Prefix, SequenceDecoder, Text, joined
from vgf_llm.generation.sequence_scoring import ScoreFn, TextScorer, check_sequence_value
from vgf_llm.models.config import TransportConfig
from vgf_llm.models.language_model import output_vocab_size
from vgf_llm.models.sequence_value import DifferentiableValue
from vgf_llm.models.valued_policy import ValuedPolicy
from vgf_llm.spaces import SequenceSpace, SequenceState, build_sequence_space

# Short steps change a token now and then: one step without a change is no end.
_PATIENCE = 2


@dataclass(frozen=True)
class _Best:
    """The best text so far of every row: its lower bound `[R]` (`None`: not valued yet) and its step `[R]`."""

    text: Text
    values: Tensor | None
    step: Tensor

    def against(self, text: Text, values: Tensor, step: int, allowed: Tensor, pad_id: int) -> "_Best":
        """Takes the rows of `text` that are allowed and better."""
        better = allowed if self.values is None else allowed & (values > self.values)
        kept = values if self.values is None else torch.where(better, values, self.values)
        return _Best(joined(self.text, text, better, pad_id), kept, torch.where(better, step, self.step))


@dataclass
class SequenceTransport:
    """Moves the N samples of a block and returns the best text of each; without a space tokens are swapped."""

    decoder: SequenceDecoder
    scorer: TextScorer
    space: SequenceSpace | None
    transport: TransportConfig
    num_steps: int = 0  # of all blocks so far, as is the reason
    stop_reason: str = "num_steps"

    def run(self, prefix: Prefix, start: Text, max_new_tokens: int, offset: int, *, valued: bool) -> _Best:
        """Moves samples behind a prefix, whose first token has the response position `offset`.

        Texts are re-decoded up to `max_new_tokens`. With `valued` there are values even if no step compares them.
        """
        best = _Best(start, None, torch.zeros(len(start.tokens), dtype=torch.long, device=start.tokens.device))
        if self.transport.transport_steps > 0 and bool(start.mask.any()):
            if self.space is None:
                best = self._swap(prefix, best, offset)
            else:
                best = self._flow(self.space, prefix, best, max_new_tokens, offset)
        if best.values is None and valued:
            best = replace(best, values=self.scorer(prefix, best.text))
        return best

    def _flow(self, space: SequenceSpace, prefix: Prefix, best: _Best, max_new_tokens: int, offset: int) -> _Best:
        config, pad_id = self.transport, self.decoder.pad_id
        text = best.text
        state = self._state(space, prefix, text, offset)
        start = particles = space.lift(state)
        active = torch.ones(len(text.tokens), dtype=torch.bool, device=particles.device)
        unchanged, changed, self.stop_reason = 0, False, "num_steps"
        every_step = config.rescore or config.max_kl is not None

        def written() -> Text:
            return self.decoder.write(prefix, max_new_tokens, offset, space.project(particles, start, state))

        for index in range(config.transport_steps):
            velocity = space.velocity(particles, start, state, at_text=config.relift)
            self.scorer.calls += 1
            if config.rescore and (index == 0 or config.relift):
                best = best.against(text, self.scorer.lower_bound(velocity.values), index, active, pad_id)
            moved = space.step(particles, velocity.direction, state)
            moved = torch.where(active.view(-1, 1, 1), moved, particles)
            if torch.allclose(moved, particles, rtol=0.0, atol=1e-6):  # rounding alone is no move
                self.stop_reason = "stationary"
                break
            particles, last = moved, index == config.transport_steps - 1
            self.num_steps += 1
            if not every_step:
                continue
            new = written()
            if config.max_kl is not None:
                active = active & (_mean_kl(new) <= config.max_kl)
            new = joined(text, new, active, pad_id)
            differs = not (torch.equal(text.tokens, new.tokens) and torch.equal(text.mask, new.mask))
            changed, unchanged, text = changed or differs, 0 if differs else unchanged + 1, new
            if config.rescore and not config.relift:
                best = best.against(text, self.scorer(prefix, text), index + 1, active, pad_id)
            if not bool(active.any()):
                self.stop_reason = "max_kl"
                break
            if changed and unchanged == _PATIENCE and not last:
                self.stop_reason = "no_change"
                break
            if config.relift and not last:
                lifted = self._state(space, prefix, text, offset)
                particles, start, state = space.relift(particles, start, state, lifted), space.lift(lifted), lifted
        if not every_step:
            text = written()
        if not config.rescore:
            return replace(best, text=text, step=torch.full_like(best.step, self.num_steps))
        if config.relift and unchanged == 0:
            best = best.against(text, self.scorer(prefix, text), self.num_steps, active, pad_id)
        return best

    def _state(self, space: SequenceSpace, prefix: Prefix, text: Text, offset: int) -> SequenceState:
        return SequenceState(
            prefix_embeds=space.value.embed(prefix.ids).float(),
            prefix_mask=prefix.mask,
            prefix_response=prefix.response,
            tokens=text.tokens,
            mask=text.mask,
            num_particles=self.transport.num_particles,
            candidates=self.decoder.candidates(prefix, text, offset) if space.needs_candidates else None,
            prefix=self.scorer.read(prefix, self.transport.num_particles),
        )

    def _swap(self, prefix: Prefix, best: _Best, offset: int) -> _Best:
        """Random search: one token of every response becomes another of the base's candidates; better ones are kept."""
        self.scorer.read(prefix, self.transport.num_particles)
        best = replace(best, values=self.scorer(prefix, best.text), text=replace(best.text, kl=None))
        config = self.transport
        # As many values as the flow takes: one a step, and one more of every text that it decodes.
        proposals = 2 * config.transport_steps - 1 if config.rescore and not config.relift else config.transport_steps
        candidates, read = self.decoder.candidates(prefix, best.text, offset), best.text.tokens
        for index in range(proposals):
            if not torch.equal(read, best.text.tokens):
                candidates, read = self.decoder.candidates(prefix, best.text, offset), best.text.tokens
            tokens, mask = best.text.tokens, best.text.mask
            choices = candidates.mask & (candidates.ids != tokens.unsqueeze(-1))
            choices = choices & (mask & ~best.text.last).unsqueeze(-1)
            rows = choices.flatten(1)
            possible = rows.any(dim=-1)
            # A position first, then a token there, both uniformly.
            weights = (choices / choices.sum(dim=-1, keepdim=True).clamp(min=1)).flatten(1)
            pick = torch.where(possible.unsqueeze(-1), weights, 1.0).multinomial(1).squeeze(-1)
            position, slot = pick // choices.shape[-1], pick % choices.shape[-1]
            row = torch.arange(len(tokens), device=tokens.device)
            swapped = tokens.clone()
            swapped[row, position] = torch.where(possible, candidates.ids[row, position, slot], tokens[row, position])
            text = self.decoder.as_text(prefix, swapped, mask)
            self.num_steps += 1
            best = best.against(text, self.scorer(prefix, text), index + 1, possible, self.decoder.pad_id)
        return best


def _mean_kl(text: Text) -> Tensor:
    assert text.kl is not None  # `max_kl` implies re-decoding
    return text.kl.sum(dim=-1) / text.mask.sum(dim=-1).clamp(min=1)


def generate_sequences(
    model: ValuedPolicy,
    transport: TransportConfig,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    return_dict: bool,
    sequence_value: DifferentiableValue | ScoreFn | None = None,
    generation_config: GenerationConfig | None = None,
    answer_fn: AnswerFn | None = None,
    control: str | None = None,
    **kwargs: Any,
) -> Tensor | VGFGenerateOutput:
    """Samples, moves and selects whole responses; `generate` documents the arguments."""
    value: Any = sequence_value if sequence_value is not None else model.sequence_value
    gradients = transport.transport_steps > 0 and control != "swaps"
    value = check_sequence_value(
        value, vocab_size=output_vocab_size(model.policy), gradients=gradients, space=transport.space
    )
    for name in ("streamer", "output_scores", "output_logits"):
        if kwargs.get(name):
            raise ValueError(f"`{name}` is about one pass over a response; a sequence space writes it several times.")
    if control == "swaps" and transport.max_kl is not None:
        raise ValueError("`max_kl` is measured while re-decoding; `control='swaps'` has no distribution.")
    kwargs = for_particles(kwargs, input_ids.shape[0], transport.num_particles)
    n, prompt_length = transport.num_particles, input_ids.shape[1]
    processors = kwargs.pop("logits_processor", None)
    decoder = SequenceDecoder(model, transport, generation_config, processors, prompt_length=prompt_length, **kwargs)
    scorer = TextScorer(value, transport.lower_bound_coef)
    space = None
    if gradients:
        space = build_sequence_space(value, transport, temperature=decoder.temperature, control=control)
    mover = SequenceTransport(decoder, scorer, space, transport)
    prefix = decoder.prefix(input_ids, attention_mask, n)
    total = decoder.max_new_tokens
    changed = prefix.mask.new_zeros(len(prefix.ids))
    offset = 0
    while True:
        size = min(transport.block_size or total, total - offset)
        start = decoder.write(prefix, size, offset)
        last = offset + size >= total
        wanted = return_dict or (transport.selection != "none" and n > 1) or not last
        best = mover.run(prefix, start, size, offset, valued=wanted)
        changed = changed + _changed(start, best.text)
        offset += best.text.tokens.shape[1]
        whole = prefix.followed_by(best.text)
        if last or bool(whole.finished.all()):
            break
        assert best.values is not None
        rows = _resample(best.values.view(-1, n), transport.alpha).flatten()
        prefix, changed = decoder.extend(prefix, best.text, rows), changed[rows]
    return _finish(transport, whole, prompt_length, best, changed, mover, answer_fn, return_dict)


def _changed(start: Text, text: Text) -> Tensor:
    """How many tokens of a text differ from the sample, `[R]`."""
    length = max(start.tokens.shape[1], text.tokens.shape[1])
    old, new = start.padded(length, 0), text.padded(length, 0)
    return (((old.tokens != new.tokens) | ~old.mask) & new.mask).sum(dim=-1)


def _resample(values: Tensor, alpha: float | None) -> Tensor:
    """The rows `[B, N]` that go on after a block: the best, or draws by exp(value / alpha)."""
    base = torch.arange(values.shape[0], device=values.device).unsqueeze(-1) * values.shape[1]
    if alpha is None:
        return base + values.argmax(dim=-1, keepdim=True).expand_as(values)
    return base + (values / alpha).softmax(dim=-1).multinomial(values.shape[1], replacement=True)


def _finish(
    transport: TransportConfig,
    whole: Prefix,
    prompt_length: int,
    best: _Best,
    changed: Tensor,
    mover: SequenceTransport,
    answer_fn: AnswerFn | None,
    return_dict: bool,
) -> Tensor | VGFGenerateOutput:
    """Selects one response per prompt and packs the output."""
    n = transport.num_particles
    rows, response = whole.ids, whole.response[:, prompt_length:]
    values = None if best.values is None else best.values.view(-1, n)
    weights = None if values is None else values.softmax(dim=-1)
    sequences, chosen = chosen_sequences(transport, rows, response, values, weights, answer_fn)
    if not return_dict:
        return sequences
    lengths = response.sum(dim=-1)
    return VGFGenerateOutput(
        sequences=sequences,
        particle_sequences=rows.view(-1, n, rows.shape[1]),
        values=values,
        kl=None if whole.kl is None else whole.kl[:, prompt_length:].reshape(len(chosen), n, -1),
        lengths=lengths.view(-1, n),
        finished=whole.finished.view(-1, n),
        chosen=chosen,
        num_steps=mover.num_steps,
        stop_reason=mover.stop_reason,
        kept_steps=best.step.view(-1, n),
        tokens_changed=(changed / lengths.clamp(min=1)).view(-1, n),
        value_calls=mover.scorer.calls,
    )
