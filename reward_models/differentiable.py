# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A reward with a gradient in the embeddings of a response, or in soft tokens; and decoded text for all other rewards.

The gradient path needs a reward model with the policy's tokenizer, since a particle is made of the policy's tokens. Any
other reward is a black box: decode what was transported and score the text (`score_decoded`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from reward_models.bradley_terry import load_reward_value, pad_responses, pooling_of
from reward_models.mixture import RewardFunction
from reward_models.pairs import encode_response
from reward_models.verifiable import Completion
from vgf_llm.models.sequence_value import DifferentiableValue, SequenceValue

_BLACK_BOX = (
    "Use it as a black box: reward_models.classifier.ClassifierReward scores texts, and "
    "reward_models.differentiable.score_decoded decodes token ids for it."
)


class DifferentiableReward(DifferentiableValue):
    """A differentiable value of whole responses that knows its tokenizer, as a transport value and a reward function.

    Args:
        value: The value; `load_reward_value` reads a trained reward model as one.
        tokenizer: The tokenizer of the value.
        policy_tokenizer: The policy's tokenizer; it must give every token the same id.
        lower_bound_coef: The reward is the ensemble's mean minus this many of its standard deviations.

    Raises:
        TypeError: `value` has no gradient path, as a plain reward function has none.
        ValueError: The tokenizers differ; the error names the black-box path.

    Example:
        >>> from recipes.embedded_preference.tokenizer import build_tokenizer
        >>> from transformers import LlamaConfig, LlamaModel
        >>> tokenizer = build_tokenizer()
        >>> config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> reward = DifferentiableReward(SequenceValue(LlamaModel(config)), tokenizer, tokenizer)
        >>> ids, mask = torch.tensor([[1, 20, 30]]), torch.ones(1, 3, dtype=torch.long)
        >>> _, gradient = reward.reward_and_grad(reward.embed(ids), mask, torch.tensor([[0, 1, 1]]))
        >>> gradient.shape
        torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        value: DifferentiableValue,
        tokenizer: PreTrainedTokenizerBase,
        policy_tokenizer: PreTrainedTokenizerBase,
        lower_bound_coef: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(value, DifferentiableValue):
            raise TypeError(
                f"`value` must be a DifferentiableValue, such as load_reward_value or SequenceValue.from_classifier "
                f"give; got {type(value).__name__}, which has no gradient in the tokens. {_BLACK_BOX}"
            )
        check_same_tokens(tokenizer, policy_tokenizer)
        if len(policy_tokenizer) > value.vocab_size:
            raise ValueError(
                f"The policy's tokenizer has {len(policy_tokenizer)} tokens and the reward model embeds "
                f"{value.vocab_size}. {_BLACK_BOX}"
            )
        self.value = value
        self.tokenizer = tokenizer
        self.lower_bound_coef = lower_bound_coef
        self.__name__ = "differentiable_reward"

    @classmethod
    def from_pretrained(
        cls,
        model: PreTrainedModel | str | Path,
        policy_tokenizer: PreTrainedTokenizerBase,
        tokenizer: PreTrainedTokenizerBase | None = None,
        lower_bound_coef: float = 0.0,
        **model_kwargs: Any,
    ) -> "DifferentiableReward":
        """Builds the reward from a sequence classifier.

        Args:
            model: A classifier, its folder or its hub id.
            policy_tokenizer: The policy's tokenizer.
            tokenizer: The classifier's; by default loaded from where it is.
            lower_bound_coef: See the class.
            **model_kwargs: Handed to `from_pretrained` of a model given by name.
        """
        if isinstance(model, PreTrainedModel):
            value = SequenceValue.from_classifier(model, pooling_of(model) or "last")
            source = model.config._name_or_path
        else:
            value, source = load_reward_value(model, **model_kwargs), model
        return cls(value, tokenizer or AutoTokenizer.from_pretrained(source), policy_tokenizer, lower_bound_coef)

    @property
    def embedding(self) -> Tensor:
        """The value's input embedding matrix `[V, D]`."""
        return self.value.embedding

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.value.vocab_size

    @property
    def max_length(self) -> int | None:
        """The value's context length."""
        return self.value.max_length

    def embed(self, input_ids: Tensor) -> Tensor:
        """Returns the embeddings `[..., D]` of tokens `[...]`."""
        return self.value.embed(input_ids)

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, response_mask: Tensor) -> Tensor:
        """Returns the members' values `[R, H]`; see `DifferentiableValue.forward`."""
        return self.value(inputs_embeds, attention_mask, response_mask)

    def reward(self, inputs_embeds: Tensor, attention_mask: Tensor, response_mask: Tensor) -> Tensor:
        """Returns the rewards `[R]` of embeddings `[R, S, D]`: the ensemble's lower bound.

        Raises:
            ValueError: A response is empty or longer than the context, or a reward is not finite.
        """
        rewards = self.lower_bound(self(inputs_embeds, attention_mask, response_mask), self.lower_bound_coef)
        bad = (~rewards.isfinite()).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"The reward of rows {bad[:8]} is not finite. Lower the step size, load the reward model in float32, "
                "and check that its head was trained."
            )
        return rewards

    def reward_and_grad(
        self, inputs_embeds: Tensor, attention_mask: Tensor, response_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns rewards and their gradient in the response's embeddings, also under `torch.no_grad`.

        Args:
            inputs_embeds: `[R, S, D]`, prompts and responses.
            attention_mask: `[R, S]`, 1 on real tokens.
            response_mask: `[R, S]`, 1 on response tokens.

        Returns:
            Rewards `[R]`, and gradients `[R, S, D]` that are zero off the response; no graph is kept.

        Raises:
            ValueError: See `reward`; or the value has no gradient in its inputs.
        """
        with torch.enable_grad():
            leaf = inputs_embeds.detach().requires_grad_()
            rewards = self.reward(leaf, attention_mask, response_mask)
            (gradient,) = _gradients(rewards, leaf)
        return rewards.detach(), gradient * response_mask.unsqueeze(-1).to(gradient.dtype)

    def soft_reward_and_grad(
        self, token_probs: Tensor, attention_mask: Tensor, response_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns rewards of soft tokens, and their gradient in the token probabilities.

        A soft token is the mean of the embeddings under a distribution over the vocabulary; a one-hot row is a token.

        Args:
            token_probs: `[R, S, V]`; rows of the prompt are one-hot.
            attention_mask: `[R, S]`, 1 on real tokens.
            response_mask: `[R, S]`, 1 on response tokens.

        Returns:
            Rewards `[R]`, and gradients `[R, S, V]` that are zero off the response; no graph is kept.

        Raises:
            ValueError: See `reward_and_grad`; or `token_probs` is not over the vocabulary.
        """
        if token_probs.shape[-1] != self.vocab_size:
            raise ValueError(
                f"`token_probs` is over {token_probs.shape[-1]} tokens and the reward model embeds {self.vocab_size}. "
                "Pad the last axis with zeros to that many."
            )
        with torch.enable_grad():
            leaf = token_probs.detach().requires_grad_()
            embedding = self.embedding.detach()
            rewards = self.reward(leaf.to(embedding.dtype) @ embedding, attention_mask, response_mask)
            (gradient,) = _gradients(rewards, leaf)
        return rewards.detach(), gradient * response_mask.unsqueeze(-1).to(gradient.dtype)

    @torch.no_grad()
    def score(self, prompts: Sequence[Any], completions: Sequence[Completion], **kwargs: Any) -> list[float]:
        """The same reward as a reward function of TRL's trainers: pass `reward.score` in `reward_funcs`.

        Args:
            prompts: [B] texts or lists of messages.
            completions: [B] texts or lists of messages.
            **kwargs: What else the trainer hands over; not used.

        Returns:
            [B] rewards.
        """
        encoded = [encode_response(self.tokenizer, p, c) for p, c in zip(prompts, completions, strict=True)]
        ids, starts = zip(*encoded, strict=True)
        batch = pad_responses(list(ids), list(starts), self.tokenizer.pad_token_id or 0)
        batch = {name: tensor.to(self.embedding.device) for name, tensor in batch.items()}
        embeds = self.embed(batch.pop("input_ids"))
        return self.reward(embeds, **batch).tolist()


def check_same_tokens(tokenizer: PreTrainedTokenizerBase, policy_tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a reward model whose tokens are not the policy's.

    Raises:
        ValueError: A token has another id, or one of the two lacks it.

    Example:
        >>> from recipes.embedded_preference.tokenizer import build_tokenizer
        >>> check_same_tokens(build_tokenizer(), build_tokenizer())
    """
    own, policy = tokenizer.get_vocab(), policy_tokenizer.get_vocab()
    if own != policy:
        different = sorted((policy.keys() ^ own.keys()) | {t for t in policy if own.get(t, policy[t]) != policy[t]})
        raise ValueError(
            f"The reward model's tokenizer ({len(own)} tokens) is not the policy's ({len(policy)} tokens); they differ "
            f"in {len(different)} tokens, such as {different[:5]}. A gradient in the policy's tokens needs the same "
            f"tokenizer. {_BLACK_BOX}"
        )


def score_decoded(
    reward_func: RewardFunction,
    policy_tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    **columns: Any,
) -> list[float | None]:
    """Scores token ids of the policy with any reward function, by their text.

    Args:
        reward_func: A reward function of TRL's trainers, such as a `ClassifierReward` with a tokenizer of its own.
        policy_tokenizer: The tokenizer of the ids.
        prompts: [B] texts or lists of messages.
        completion_ids: [B] lists of ids, without padding.
        **columns: Further dataset columns that the function asks for, [B] each.

    Returns:
        [B] rewards, None where the function skips.

    Raises:
        ValueError: The numbers of prompts, completions and rewards differ.

    Example:
        >>> from recipes.embedded_preference.tokenizer import build_tokenizer
        >>> tokenizer = build_tokenizer()
        >>> ids = tokenizer(" the soup .", add_special_tokens=False).input_ids
        >>> def words(completions, **kwargs):
        ...     return [float(len(text.split())) for text in completions]
        >>> score_decoded(words, tokenizer, ["ann"], [ids])
        [3.0]
    """
    texts: list[Any] = policy_tokenizer.batch_decode([list(ids) for ids in completion_ids], skip_special_tokens=True)
    if len(texts) != len(prompts):
        raise ValueError(f"There are {len(prompts)} prompts for {len(texts)} completions; give one each.")
    if prompts and not isinstance(prompts[0], str):
        texts = [[{"role": "assistant", "content": text}] for text in texts]
    ids_lists = [list(ids) for ids in completion_ids]
    rewards = list(reward_func(prompts=list(prompts), completions=texts, completion_ids=ids_lists, **columns))
    if len(rewards) != len(texts):
        raise ValueError(f"The reward function returned {len(rewards)} rewards for {len(texts)} completions.")
    return rewards


def _gradients(rewards: Tensor, leaf: Tensor) -> tuple[Tensor, ...]:
    if not rewards.requires_grad:
        raise ValueError(
            "The reward has no gradient in its inputs: the model runs under inference mode, detaches them, or is "
            f"quantized in a way without backward. Load it without quantization. {_BLACK_BOX}"
        )
    return torch.autograd.grad(rewards.sum(), (leaf,))
