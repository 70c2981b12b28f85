# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Data loaders that repeat every prompt `num_generations` times, as TRL's online trainers do."""

from vgf_llm._compat import RepeatSampler


class EpochRepeatSampler(RepeatSampler):
    """TRL's `RepeatSampler` whose order depends on the epoch alone, so that a resumed run draws the same prompts."""

    def set_epoch(self, epoch: int) -> None:
        """Seeds the order of one epoch."""
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + epoch)
