# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""VGF models in EleutherAI's lm-evaluation-harness, under the name `vgf`.

    python -m eval.lm_eval_adapter run --model vgf \
        --model_args pretrained=PATH,transport_steps=8,num_particles=4 --tasks gsm8k

The harness finds models in a registry of its own process and has no plugin mechanism, so that the bare command
`lm_eval` cannot know this one. This module registers it with `lm_eval.api.registry.register_model` and hands the
command line to the harness's own main function, unchanged; in Python, importing it before
`lm_eval.simple_evaluate(model="vgf", ...)` is enough. Tasks, filters, few-shot prompts, chat templates and result files
are all the harness's.

Generation is transported. Log-likelihoods (multiple choice, perplexity) are the policy's own: transport gives no
probability at all to tokens that are no candidates, and most answers of a multiple choice hold one.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise ImportError('This adapter needs lm-evaluation-harness: pip install "vgf-llm[lm-eval]".') from error

from eval.loading import load_model
from eval.sampling import PLAIN_GREEDY, PLAIN_SAMPLING
from eval.tasks import template_switches
from vgf_llm.models.language_model import inner_model
from vgf_llm.models.options import TRANSPORT_OPTIONS


class StopsAt(StoppingCriteria):
    """Ends each response at the first of the task's stop strings.

    The harness's own criteria end a batch when all of its rows have met one. Values and votes have to know where each
    response ends.

    Args:
        stop: The strings.
        tokenizer: The tokenizer.
        prompt_length: Tokens of the prompts, padding included.
    """

    def __init__(self, stop: list[str], tokenizer: PreTrainedTokenizerBase, prompt_length: int) -> None:
        self._stop, self._tokenizer, self._prompt_length = stop, tokenizer, prompt_length
        self._tail = max(map(len, stop), default=0) + 2  # tokens that hold the end of a string, with room

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Returns which rows `[R]` have met one."""
        texts = self._tokenizer.batch_decode(input_ids[:, self._prompt_length :][:, -self._tail :])
        return torch.tensor([any(text in row for text in self._stop) for row in texts], device=input_ids.device)


@register_model("vgf")
class VGFLM(HFLM):
    """A saved VGF model for the harness.

    Args:
        pretrained: Folder or hub id.
        base_model: The policy, for a folder without its weights.
        tokenizer: Folder or hub id of the tokenizer, for a folder without one.
        device: Where it runs; CUDA where there is one, by default.
        dtype: Of the weights; as saved by default.
        seed: Seed of the sampling.
        chat_template_kwargs: Switches of the chat template, as in training; a dict or its JSON text.
        **kwargs: Every transport setting of `VGFModel.generate` (`transport_steps`, `num_particles`, `selection`, ...)
            and `temperature`; all others go to the harness's own `HFLM`, such as `batch_size`.

    Raises:
        ValueError: For a transport setting that is out of range.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        base_model: str | None = None,
        tokenizer: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        seed: int = 0,
        chat_template_kwargs: dict[str, Any] | str | None = None,
        **kwargs: Any,
    ) -> None:
        transport = {name: kwargs.pop(name) for name in [*TRANSPORT_OPTIONS, "temperature"] if name in kwargs}
        loaded = load_model(pretrained, base_model=base_model, tokenizer=tokenizer, device=device, dtype=dtype)
        if transport and not loaded.has_value:
            raise ValueError(
                f"{pretrained!r} has no learned value, so {sorted(transport)} cannot apply; use --model hf."
            )
        self.vgf_model = loaded.model
        self._temperature = transport.pop("temperature", None)
        # The harness reads numbers from its command line as they look: `step_size=1` is an integer there.
        kinds = {name: option.kind for name, option in TRANSPORT_OPTIONS.items()}
        self._transport = {name: kinds[name](value) for name, value in transport.items()}
        self._generator_seed = seed
        if chat_template_kwargs is not None:
            kwargs["chat_template_args"] = template_switches(chat_template_kwargs)
        super().__init__(
            pretrained=inner_model(loaded.model.policy), tokenizer=loaded.tokenizer, backend="causal", **kwargs
        )

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Samples (or decodes, with one particle and no temperature) one answer per context under transport."""
        num_particles = self._transport.get("num_particles", self.vgf_model.transport.num_particles)
        temperature = self._temperature if self._temperature is not None else kwargs.pop("temperature", None)
        kwargs.pop("temperature", None)
        # Tasks ask for greedy decoding; several particles differ only if they are sampled.
        wanted = kwargs.pop("do_sample", None)
        sampled = num_particles > 1 or self._temperature is not None or bool(wanted and temperature)
        # What the task does not ask for is plain, whatever the checkpoint's own generation config says.
        plain = {**PLAIN_SAMPLING, "temperature": temperature or 1.0} if sampled else PLAIN_GREEDY
        # A fixed seed per batch content: the harness orders requests itself, and may leave cached ones out.
        torch.manual_seed(self._generator_seed + int(context.sum()))
        return self.vgf_model.generate(
            context,
            attention_mask,
            max_length=max_length,
            stopping_criteria=StoppingCriteriaList([StopsAt(stop, self.tokenizer, context.shape[1])]),
            pad_token_id=self.tokenizer.pad_token_id,
            use_cache=True,
            **self._transport,
            **{**plain, **kwargs},
        )


def main() -> None:
    """Runs the harness's own command line, with `vgf` among its models."""
    cli_evaluate()


if __name__ == "__main__":
    main()
