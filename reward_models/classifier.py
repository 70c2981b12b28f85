# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Any sequence classifier as a reward function of texts, with its own tokenizer and chat template."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from reward_models.bradley_terry import pad_responses, pooling_of
from reward_models.pairs import encode_response
from reward_models.verifiable import Completion, completion_text
from vgf_llm.models.sequence_value import SequenceValue
from vgf_llm.trainer.score.rewards import load_reward_model

# Tokenizers without a limit of their own report a huge number.
_NO_LIMIT = 10**9


class ClassifierReward:
    """Scores completions with an `AutoModelForSequenceClassification`, as a reward function of TRL's trainers.

    It reads decoded text, so the policy may have another tokenizer: this is the black-box path. A classifier that
    `reward_models/train.py` wrote is read with the pooling it was trained with; others by their own `forward`.

    Args:
        model: A classifier, its folder, or its hub id.
        tokenizer: Its tokenizer; by default loaded from where the model is.
        batch_size: Texts a forward pass.
        label: Of a classifier with several labels, the one that pays, by name or number: the reward is its log-odds.
        lower_bound_coef: With several labels of `reward_models/train.py` (an ensemble), the reward is their mean minus this many standard
            deviations; 0 is the mean.
        append_eos: Whether a text that is not a conversation is closed by the end-of-sequence token before a
            classifier's own `forward` reads it, as TRL's RewardTrainer does in training.
        name: Name in the trainer's metrics; the last part of the model's id by default.
        chat_template_kwargs: Handed to `apply_chat_template` for conversations.
        model_init_kwargs: Handed to `from_pretrained` of a model given by name.

    Raises:
        ValueError: The tokenizer has no padding token, or knows more tokens than the model embeds; the model has
            several labels and `label` names none of them; or its head is not in the checkpoint.

    Example:
        >>> from recipes.embedded_preference.tokenizer import build_tokenizer
        >>> from transformers import LlamaConfig, LlamaForSequenceClassification
        >>> tokenizer = build_tokenizer()
        >>> config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2, num_labels=1, max_position_embeddings=64)
        >>> reward = ClassifierReward(LlamaForSequenceClassification(config), tokenizer, name="tiny")
        >>> len(reward(prompts=["ann reviews"] * 2, completions=[" the soup", ""]))
        2
    """

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        batch_size: int = 16,
        label: str | int | None = None,
        lower_bound_coef: float = 0.0,
        append_eos: bool = False,
        name: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        model_init_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
        if isinstance(model, str | Path):
            model = load_reward_model(str(model), num_labels=None, **(model_init_kwargs or {}))
        self.tokenizer = tokenizer or AutoTokenizer.from_pretrained(model.config._name_or_path)
        _check_tokenizer(self.tokenizer, model)
        # A decoder finds the last token by what is no padding, so both have to agree on what padding is.
        model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        self.model = model.eval()
        self.label = None if label is None else _label_index(model.config, label)
        pooling = pooling_of(model) if label is None else None
        self.value = None if pooling is None else SequenceValue.from_classifier(model, pooling)
        self.batch_size = batch_size
        self.lower_bound_coef = lower_bound_coef
        self.append_eos = append_eos
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.__name__ = name or Path(model.config._name_or_path).name or type(model).__name__

    @property
    def max_length(self) -> int | None:
        """The longest text in tokens that the classifier reads; None without a limit."""
        limits = (
            getattr(self.model.config.get_text_config(), "max_position_embeddings", None),
            self.tokenizer.model_max_length,
        )
        return min((limit for limit in limits if limit is not None and limit < _NO_LIMIT), default=None)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Completion], **kwargs: Any) -> list[float | None]:
        """Scores completions.

        Args:
            prompts: [B] texts or lists of messages.
            completions: [B] texts or lists of messages.
            **kwargs: What else the trainer hands over; not used.

        Returns:
            [B] rewards. A completion without text gets the reward of its end-of-sequence token where scores are pooled
            over responses, else None: the classifier would judge the prompt.

        Raises:
            ValueError: A text is longer than the classifier's context, or a score is not finite; the rows are named.
        """
        if len(prompts) != len(completions):
            raise ValueError(f"There are {len(prompts)} prompts for {len(completions)} completions; give one each.")
        rewards: list[float | None] = [None] * len(completions)
        judged = self.value is not None
        rows = [row for row, text in enumerate(map(completion_text, completions)) if judged or text.strip()]
        encoded = [self._encode(prompts[row], completions[row]) for row in rows]
        self._check_lengths(rows, [len(ids) for ids, _ in encoded])
        # Texts of similar length share a batch.
        order = sorted(range(len(rows)), key=lambda index: len(encoded[index][0]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            scores = self._score([encoded[index] for index in batch])
            for index, score in zip(batch, scores.tolist(), strict=True):
                rewards[rows[index]] = score
        _check_finite(rewards, self.__name__)
        return rewards

    def _encode(self, prompt: Any, completion: Completion) -> tuple[list[int], int]:
        """The ids of a text and where its response begins; the latter counts only where scores are pooled."""
        if self.value is not None or not isinstance(prompt, str):
            return encode_response(self.tokenizer, prompt, completion, **self.chat_template_kwargs)
        text = prompt + completion_text(completion)
        end = self.tokenizer.eos_token
        if self.append_eos and end is not None and not text.endswith(end):
            text += end
        return self.tokenizer(text).input_ids, 0

    def _check_lengths(self, rows: list[int], lengths: list[int]) -> None:
        limit = self.max_length
        too_long = [(row, length) for row, length in zip(rows, lengths, strict=True) if limit and length > limit]
        if too_long:
            shown = ", ".join(f"row {row}: {length}" for row, length in too_long[:8])
            raise ValueError(
                f"{len(too_long)} texts are longer than the {limit} tokens that the reward model {self.__name__!r} "
                f"reads ({shown}). It would judge them by a part; lower `max_completion_length`, shorten the prompts, "
                "or take a reward model with a longer context."
            )

    @torch.inference_mode()
    def _score(self, encoded: list[tuple[list[int], int]]) -> Tensor:
        ids, starts = zip(*encoded, strict=True)
        batch = pad_responses(list(ids), list(starts), self.tokenizer.pad_token_id)
        batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        if self.value is not None:
            scores = self.value.from_ids(**batch)
        else:
            scores = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
        if self.label is not None:
            others = scores.clone()
            others[:, self.label] = -torch.inf
            return scores[:, self.label] - others.logsumexp(-1)
        return SequenceValue.lower_bound(scores, self.lower_bound_coef)


def _label_index(config: Any, label: str | int) -> int:
    labels = [config.id2label[index] for index in range(config.num_labels)]
    index = labels.index(label) if label in labels else label
    if not isinstance(index, int) or not 0 <= index < len(labels) or len(labels) < 2:
        raise ValueError(f"`label` must be one of {labels} or its number, got {label!r}; a single label needs none.")
    return index


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "The reward model's tokenizer has neither a padding nor an end-of-sequence token. Set "
                "`tokenizer.pad_token`."
            )
        tokenizer.pad_token = tokenizer.eos_token
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(
            f"`tokenizer` has {len(tokenizer)} tokens and the reward model embeds {rows}, so it belongs to another "
            "model. Pass the reward model's own tokenizer, not the policy's."
        )


def _check_finite(rewards: list[float | None], name: str) -> None:
    bad = [row for row, reward in enumerate(rewards) if reward is not None and not abs(reward) < float("inf")]
    if bad:
        raise ValueError(
            f"The reward model {name!r} scored rows {bad[:8]} with {rewards[bad[0]]}. Its weights or its arithmetic "
            "overflowed: load it in float32, and check that its head was trained."
        )
