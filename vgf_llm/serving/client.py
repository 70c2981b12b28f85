# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Best-of-N by value over an OpenAI-compatible endpoint that `vgf serve` started.

A value is asked for as a completion of one token: the prompt is the response without its last token, the request names
that token, and the two log-probabilities that come back differ by the value's raw score. The engine's prefix cache
holds the response already, so that a score costs about one token.
"""

from typing import Any

from vgf_llm.serving.transport import SCORE_TOKEN, score_partner


def score(client: Any, model: str, prompt_ids: list[int], response_ids: list[int]) -> float:
    """Asks a server, by an `openai.OpenAI`, for the raw score of a finished response: its value at its last token.

    That is the log-odds of success, or the expected reward, as the value was trained.
    """
    if not response_ids:
        raise ValueError("`response_ids` is empty; a response that says nothing has no value.")
    token = response_ids[-1]
    completion = client.completions.create(
        model=model,
        prompt=[*prompt_ids, *response_ids[:-1]],
        max_tokens=1,
        temperature=1.0,
        logprobs=2,
        extra_body={"vllm_xargs": {SCORE_TOKEN: token}, "return_tokens_as_token_ids": True},
    )
    found = completion.choices[0].logprobs.top_logprobs[0]
    return found[f"token_id:{token}"] - found[f"token_id:{score_partner(token)}"]


def best_of(client: Any, model: str, prompt: str, n: int, *, transport: dict[str, Any], **kwargs: Any) -> Any:
    """Samples N transported responses and returns the one of highest value.

    Args:
        client: An `openai.OpenAI`.
        model: The served model's name.
        prompt: The prompt.
        n: N.
        transport: The budget: `transport_steps`, `step_size`, `top_k_candidates`, ...
        **kwargs: Handed to `client.completions.create`, such as `max_tokens` and `temperature`.

    Returns:
        The chosen entry of `choices`, with its score as the attribute `value`.
    """
    body = {"vllm_xargs": transport, "return_token_ids": True}
    completion = client.completions.create(model=model, prompt=prompt, n=n, extra_body=body, **kwargs)
    for choice in completion.choices:
        choice.value = score(client, model, choice.prompt_token_ids, choice.token_ids)
    return max(completion.choices, key=lambda choice: choice.value)
