# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Training a reward model on preference pairs: TRL's `RewardTrainer` with a pooling and an ensemble of heads.

The model is an `AutoModelForSequenceClassification` with K labels, one per head, and is saved as such, with its pooling
in `config.json`. `load_reward_value` reads it back as the differentiable value that transport uses.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from trl import RewardTrainer

from vgf_llm.models.language_model import inner_model
from vgf_llm.models.sequence_value import POOLINGS, SequenceValue, pool_scores
from vgf_llm.trainer.score.checks import check_labels
from vgf_llm.trainer.score.rewards import load_reward_model

# Attribute of the model's config; a classifier without it reads the last token.
POOLING_KEY = "reward_pooling"


class PairCollator:
    """Pads pairs at the right, with a mask of the response tokens.

    A response that stands in several pairs of the batch is one row of it, so that all K (K - 1) / 2 pairs of K
    responses to a prompt cost K rows, as in Ouyang et al. 2022 (arXiv 2203.02155, section 3.4). `rows` says which row
    is the chosen response of each pair, then which is the rejected one.

    Args:
        pad_token_id: Id of the padding.

    Example:
        >>> pair = {"chosen_ids": [1, 5, 6], "rejected_ids": [1, 7], "prompt_length": 1}
        >>> batch = PairCollator(pad_token_id=0)([pair])
        >>> batch["input_ids"].tolist(), batch["response_mask"].tolist(), batch["rows"].tolist()
        ([[1, 5, 6], [1, 7, 0]], [[0, 1, 1], [0, 1, 0]], [0, 1])
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, pairs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Builds the batch `[R, S]` of the R different responses, and `rows` `[2B]`."""
        sides = [(pair["prompt_length"], *pair[s]) for s in ("chosen_ids", "rejected_ids") for pair in pairs]
        places = {key: row for row, key in enumerate(dict.fromkeys(sides))}
        batch = pad_responses([list(key[1:]) for key in places], [key[0] for key in places], self.pad_token_id)
        batch["rows"] = torch.tensor([places[key] for key in sides])
        if "head_weights" in pairs[0]:
            batch["head_weights"] = torch.tensor([pair["head_weights"] for pair in pairs])
        return batch


def pad_responses(rows: list[list[int]], starts: list[int], pad_token_id: int) -> dict[str, Tensor]:
    """Pads token ids at the right.

    Args:
        rows: Ids of prompt and response, R rows.
        starts: Where each response begins.
        pad_token_id: Id of the padding.

    Returns:
        `input_ids`, `attention_mask` and `response_mask`, `[R, S]` each.
    """
    longest = max(map(len, rows))
    positions = torch.arange(longest)
    attention = (positions < torch.tensor([[len(row)] for row in rows])).long()
    return {
        "input_ids": torch.tensor([row + [pad_token_id] * (longest - len(row)) for row in rows]),
        "attention_mask": attention,
        "response_mask": attention * (positions >= torch.tensor(starts)[:, None]),
    }


class BradleyTerryTrainer(RewardTrainer):
    """Fits the K heads of a sequence classifier to preference pairs, each to its own bootstrap sample of them.

    The loss of head k is the mean over pairs of w_k * -log sigmoid(r_k(chosen) - r_k(rejected)) (Bradley and Terry
    1952), where w_k counts how often the pair is in the head's bootstrap sample. `margin` columns are not read.

    Args:
        model: A classifier with K labels and a linear `score` layer, as decoders have.
        pooling: `"mean"`: a response's score is the mean over its tokens of per-token scores; `"last"`: the score at
            its last token.
        bootstrap: Whether heads see different samples; with one head never.
        **kwargs: `RewardTrainer`'s, whose datasets have the columns of `tokenize_pairs`.

    Raises:
        ValueError: The pooling is unknown, the classifier's head is of another kind, or `max_length` is longer than the
            model's context.
    """

    _name = "Bradley-Terry"

    def __init__(self, model: PreTrainedModel, pooling: str = "mean", bootstrap: bool = True, **kwargs: Any) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"`pooling` must be one of {', '.join(POOLINGS)}; got {pooling!r}.")
        if not isinstance(getattr(inner_model(model), "score", None), torch.nn.Linear):
            raise ValueError(
                f"`model` must be a sequence classifier with a linear `score` layer, as decoders have; got "
                f"{type(inner_model(model)).__name__}. Train other classifiers with TRL's RewardTrainer itself."
            )
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        args = kwargs["args"]
        if limit is not None and (args.max_length is None or args.max_length > limit):
            raise ValueError(
                f"`max_length` is {args.max_length}, and the model's context is {limit} tokens. Set it to {limit} or "
                "less; longer pairs are left out."
            )
        self.pooling = pooling
        num_members = model.config.num_labels
        train = kwargs["train_dataset"]
        if bootstrap and num_members > 1:
            kwargs["train_dataset"] = add_bootstrap_weights(train, num_members, args.seed)
        kwargs.setdefault("data_collator", PairCollator(kwargs["processing_class"].pad_token_id))
        # TRL insists on one label. Its loss and metrics hold for a column of each head.
        model.config.num_labels = 1
        try:
            super().__init__(model=model, **kwargs)
        finally:
            model.config.num_labels = num_members
        setattr(model.config, POOLING_KEY, pooling)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["chosen_ids", "rejected_ids", "prompt_length", "head_weights"]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Pools the scores, lets TRL compute loss and metrics, and weighs the pairs of each head."""
        inputs = dict(inputs)
        mask, rows, weights = inputs.pop("response_mask"), inputs.pop("rows"), inputs.pop("head_weights", None)
        pooled = _Pooled(model, mask, rows, self.pooling)
        loss, outputs = super().compute_loss(pooled, inputs, True, num_items_in_batch)
        if weights is not None:
            chosen, rejected = outputs.logits.chunk(2)
            loss = loss + ((weights - 1) * F.softplus(rejected - chosen)).mean()
        self._log_ensemble(outputs.logits.detach())
        return (loss, outputs) if return_outputs else loss

    def _log_ensemble(self, logits: Tensor) -> None:
        """Logs the accuracy of the heads' mean beside TRL's `accuracy`, which is a mean over heads."""
        chosen, rejected = logits.mean(dim=-1).chunk(2)
        right = (chosen > rejected).float() + 0.5 * (chosen == rejected)
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["ensemble_accuracy"].append(self.accelerator.gather_for_metrics(right).mean().item())


class _Pooled:
    """A classifier whose logits are pooled over response tokens, and brought into the order of the pairs.

    The model's own forward runs, so that wrappers for several processes see it; the scores of every token are read from
    its head.
    """

    def __init__(self, model: Any, response_mask: Tensor, rows: Tensor, pooling: str) -> None:
        self.model, self.response_mask, self.rows, self.pooling = model, response_mask, rows, pooling

    def __call__(self, **inputs: Any) -> SequenceClassifierOutputWithPast:
        module = self.model
        while hasattr(module, "module"):  # DistributedDataParallel and DeepSpeed
            module = module.module
        seen: list[Tensor] = []
        handle = inner_model(module).score.register_forward_hook(lambda _, __, output: seen.append(output))
        try:
            self.model(**inputs)
        finally:
            handle.remove()
        pooled = pool_scores(seen[0].float(), self.response_mask, self.pooling)
        return SequenceClassifierOutputWithPast(logits=pooled[self.rows])


def add_bootstrap_weights(pairs: Dataset, num_members: int, seed: int) -> Dataset:
    """Adds the column `head_weights`: how often each of K bootstrap samples holds the pair.

    Args:
        pairs: The training pairs.
        num_members: K.
        seed: Seed of the draws.

    Example:
        >>> weights = add_bootstrap_weights(Dataset.from_dict({"prompt_length": [1, 2, 3]}), 2, seed=0)["head_weights"]
        >>> [sum(column) for column in zip(*weights)]
        [3.0, 3.0]
    """
    rng = np.random.default_rng(seed)
    size = len(pairs)
    counts = [np.bincount(rng.integers(size, size=size), minlength=size) for _ in range(num_members)]
    return pairs.add_column("head_weights", np.stack(counts, axis=1).astype(np.float32).tolist())


def load_reward_value(path: str | Path, **model_kwargs: Any) -> SequenceValue:
    """Loads a trained reward model as the differentiable value of whole responses.

    Args:
        path: A folder or hub id of a sequence classifier with a linear `score` layer.
        **model_kwargs: Handed to `from_pretrained`, such as `dtype`.

    Returns:
        The value, in evaluation mode, with the pooling it was trained with (`last` where its config names none).

    Raises:
        ValueError: Its head is not in the checkpoint, or it has several labels and is no ensemble of `train.py`.
    """
    model = load_reward_model(str(path), num_labels=None, **model_kwargs).eval()
    return SequenceValue.from_classifier(model, pooling=pooling_of(model) or "last")


def pooling_of(model: PreTrainedModel) -> Literal["last", "mean"] | None:
    """Returns the pooling that a reward model of `train.py` was trained with, None for a classifier of one label.

    Raises:
        ValueError: It is another classifier of several labels. Only the labels of `train.py` are an ensemble.
    """
    pooling = getattr(model.config, POOLING_KEY, None)
    if pooling is None:
        check_labels(model.config, f"The classifier {model.config._name_or_path or type(model).__name__!r}")
    return pooling
