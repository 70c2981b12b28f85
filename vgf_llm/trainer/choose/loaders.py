# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Data loaders that repeat every prompt `num_generations` times, as TRL's online trainers do."""

from typing import Any

from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader, Sampler

from vgf_llm._compat import RepeatSampler, _BaseTrainer, repeat_iterable_dataset


class EpochRepeatSampler(RepeatSampler):
    """TRL's `RepeatSampler` whose order depends on the epoch alone, so that a resumed run draws the same prompts."""

    def set_epoch(self, epoch: int) -> None:
        """Seeds the order of one epoch."""
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + epoch)


class DataLoaderMixin(_BaseTrainer):
    """Loading prompts, over `transformers.Trainer`."""

    num_generations: int
    num_generations_eval: int
    num_iterations: int
    shuffle_dataset: bool
    _signature_columns: list[str] | None

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = ["prompt"]

    def get_train_dataloader(self) -> DataLoader:
        """Loads a whole generation batch at a time, as `GRPOTrainer` does."""
        dataset = self.train_dataset
        if isinstance(dataset, IterableDataset):
            dataset = repeat_iterable_dataset(
                dataset.shuffle(seed=self.args.seed) if self.shuffle_dataset else dataset,
                mini_repeat_count=self.num_generations,
                batch_size=self.args.generation_batch_size // self.num_generations,
                repeat_count=self.num_iterations * self.args.steps_per_generation,
            )
        return self._get_dataloader(
            dataset=dataset,
            description="Training",
            batch_size=self._train_batch_size * self.args.steps_per_generation,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Loads evaluation prompts; a stream, which no sampler can repeat, is repeated itself."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]
        if isinstance(dataset, IterableDataset):
            eval_dataset = repeat_iterable_dataset(dataset, mini_repeat_count=self.num_generations_eval)
        return super().get_eval_dataloader(eval_dataset)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        return EpochRepeatSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler:
        return RepeatSampler(data_source=eval_dataset, mini_repeat_count=self.num_generations_eval, seed=self.args.seed)
