# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Rounds sampled ahead: their prompts are looked up before they are due, and one thread keeps the engine busy."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch.profiler import record_function

from vgf_llm.trainer.sample.sampler import Request, Sampler, Samples


class Lookahead(Iterator[Any]):
    """Batches of an epoch, numbered by micro-step from `step`, of which later ones can be seen before they are taken.

    Example:
        >>> ahead = Lookahead(iter("abc"), step=4)
        >>> ahead.at(5), next(ahead), next(ahead), ahead.at(7)
        ('b', 'a', 'b', None)
    """

    def __init__(self, iterator: Iterator[Any], step: int) -> None:
        self._iterator = iterator
        self._kept: deque[Any] = deque()
        self.first = step  # the micro-step of the first that is kept
        self._next = step

    def __next__(self) -> Any:
        batch = self.at(self._next)
        if batch is None:
            raise StopIteration
        self._next += 1
        return batch

    def at(self, step: int) -> Any:
        """Returns the batch of a micro-step that was not forgotten, or `None` past the end of the epoch."""
        while len(self._kept) <= step - self.first:
            try:
                self._kept.append(next(self._iterator))
            except StopIteration:
                return None
        return self._kept[step - self.first]

    def follows(self, iterator: Iterator[Any]) -> bool:
        """Tells whether these are the batches of `iterator`."""
        return self._iterator is iterator

    def forget(self, step: int) -> None:
        """Drops the batches of micro-steps before `step`."""
        while self._kept and self.first < step:
            self._kept.popleft()
            self.first += 1


class PrefetchingSampler(Sampler):
    """A sampler whose rounds may be sampled ahead of time.

    An engine takes one call at a time. Once rounds are sampled ahead, every call goes through one thread; until then it
    is made by the caller. `description` says in errors what the engine is.
    """

    def __init__(self, sampler: Sampler, description: str) -> None:
        self.sampler = sampler
        self.description = description
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[tuple[str, int], tuple[Request, Future[Samples]]] = {}

    def __call__(self, request: Request) -> Samples:
        """Returns the completions of a request: those sampled ahead, or new ones."""
        asked, future = self._ahead.pop((request.mode, request.step), (None, None))
        if future is None or asked != request:
            if self._pool is None:
                return self.sampler(request)
            future = self._pool.submit(self.sampler.prepare(request))
        with record_function("vgf/wait"):
            return future.result()

    def submit(self, round_index: int, make: Callable[[], Request]) -> None:
        """Starts sampling a training round ahead of time, unless that was done before."""
        if ("train", round_index) in self._ahead:
            return
        request = make()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vgf-rollouts")
        future = self._pool.submit(self._sample_ahead, request, self.sampler.prepare(request))
        self._ahead["train", round_index] = request, future

    def close(self) -> None:
        """Waits for the call in progress, which cannot be stopped, and drops the rounds after it."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None
        self._ahead.clear()

    def _sample_ahead(self, request: Request, sample: Callable[[], Samples]) -> Samples:
        try:
            return sample()
        except Exception as error:
            error.add_note(
                f"This happened in the thread that samples ahead (`rollout_prefetch`), in round {request.step}, with "
                f"{self.description} and {len(request.prompt_ids)} prompts, the first with the tokens "
                f"{request.prompt_ids[0][:20]}. `rollout_prefetch=0` samples each round when it is due."
            )
            raise
