# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Completions that a dataset has logged, in the place of samples."""

from vgf_llm.trainer.sample.sampler import Request, Sampler, Samples


class LoggedSampler(Sampler):
    """Hands out the completions of groups, one for each row of a request.

    A group of fewer completions than `num_generations` fills its rows with its own once more. Those are not present:
    every process has as many rows as every other, and no completion counts twice.

    Example:
        >>> row = {"prompt_ids": [1], "completion_ids": [[2], [3]], "rewards": [1.0, 0.0]}
        >>> request = Request(["a"] * 3, [[1]] * 3, ["base"] * 3, 3, 0, "train", 0, 0, rows=[row] * 3)
        >>> samples = LoggedSampler()(request)
        >>> samples.completion_ids, samples.present
        ([[2], [3], [2]], [True, True, False])
    """

    def __call__(self, request: Request) -> Samples:
        """Returns the completions of a request, whose rows are groups that were tokenized before."""
        places = [(request.first_row + row) % request.num_generations for row in range(len(request.rows))]
        sizes = [len(row["rewards"]) for row in request.rows]
        chosen = list(zip(request.rows, [place % size for place, size in zip(places, sizes, strict=True)], strict=True))
        return Samples(
            [row["completion_ids"][place] for row, place in chosen],
            finished=[True] * len(chosen),
            present=[place < size for place, size in zip(places, sizes, strict=True)],
            extra={"logged_reward": [row["rewards"][place] for row, place in chosen]},
        )
