# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Completions of the user's own function, by TRL's contract."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.profiler import record_function

from vgf_llm.trainer.sample.sampler import Prompt, Request, Sampler, Samples


@dataclass
class FunctionSampler(Sampler):
    """Samples with `f(prompts) -> {"prompt_ids", "completion_ids", ...}`; who samples is the function's own affair."""

    function: Callable[[list[Prompt]], dict[str, Any]]  # the function; prompts come repeated, as TRL gives them
    eos_token_id: int  # stands for a completion without tokens, which ended at once
    end_token_ids: list[int]  # tokens by which a completion has ended by itself, where the function does not say
    engine: Any = None  # A `VLLMSampler` whose engine the function may ask, kept up to date

    def __call__(self, request: Request) -> Samples:
        """Asks the function for the rows of a request; refuses too few, too many, and lengths that do not agree."""
        if self.engine is not None:
            self.engine.sync()
        # A copy, because conversations are lists that the function may extend.
        with record_function("vgf/sample"):
            output = dict(self.function(copy.deepcopy(request.prompts)))
        missing = {"prompt_ids", "completion_ids"} - set(output)
        if missing:
            raise ValueError(
                f"`rollout_func` must return 'prompt_ids' and 'completion_ids'; {sorted(missing)} are missing from "
                f"{sorted(output)}."
            )
        output.pop("logprobs", None)  # of whatever policy sampled
        count = len(request.prompts)
        for name, column in output.items():
            if column is not None and len(column) != count:
                raise ValueError(
                    f"`rollout_func` returned {len(column)} {name} for {count} prompts; return one per prompt "
                    "(prompts come repeated `num_generations` times)."
                )
        prompt_ids, ref_logps = output.pop("prompt_ids"), output.pop("ref_logprobs", None)
        # A completion without tokens ended at once, which is a choice the value can learn from.
        completion_ids = [list(ids) or [self.eos_token_id] for ids in output.pop("completion_ids")]
        finished = output.pop("finished", None)
        if finished is None:
            finished = [ids[-1] in self.end_token_ids for ids in completion_ids]
        for prompt, ids, row in zip(request.prompts, completion_ids, ref_logps or (), strict=False):
            if len(row) != len(ids):
                raise ValueError(
                    f"`rollout_func` returned {len(row)} ref_logprobs for a completion of {len(ids)} tokens, of the "
                    f"prompt {prompt!r}. Return one per token, or leave them out to have them computed."
                )
        extra = {name: column for name, column in output.items() if column is not None}
        return Samples(completion_ids, [bool(x) for x in finished], None, prompt_ids, ref_logps, extra)
