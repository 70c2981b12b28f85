# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A call leaves no trace on the model: threads that share one get what each would get alone."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn

from tests.layouts import prompts, tiny_model, vgf_model
from vgf_llm.generation import sample
from vgf_llm.generation.shallow import shallow_copy
from vgf_llm.models import VGFModel
from vgf_llm.models.language_model import backbone_name, inner_model

KINDS = [("bilinear", "policy"), ("vocab", "lora"), ("log_ratio", "lora"), ("log_ratio", "copy")]


def calls_of(model: VGFModel) -> list[Callable[[], Tensor]]:
    greedy: dict[str, Any] = {"do_sample": False, "max_new_tokens": 16}
    found: list[Callable[[], Tensor]] = [
        lambda: model.generate(*prompts(), transport_steps=4, step_size=0.5, **greedy),
        lambda: model.generate(*prompts(), transport_steps=0, **greedy),
        lambda: inner_model(model.policy).generate(prompts()[0], attention_mask=prompts()[1], **greedy),
        lambda: sample(model, *prompts(), who="base", num_particles=2, top_k=1, do_sample=True, max_new_tokens=9).tokens,
    ]
    if model.value.needs_logits:
        found.append(lambda: sample(model, *prompts(), who="value", num_particles=1, **greedy).tokens)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_threads_get_what_each_gets_alone(kind: tuple[str, str]) -> None:
    model = vgf_model(tiny_model("llama"), *kind, std=0.4)
    calls = calls_of(model)
    alone = [call() for call in calls]
    assert not torch.equal(alone[0], alone[1])
    wrong: list[Any] = []

    def work(index: int) -> None:
        try:
            for _ in range(6):
                if not torch.equal(calls[index](), alone[index]):
                    wrong.append(index)
        except Exception as error:
            wrong.append((index, error))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def hooks_and_attributes(model: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[name] = (set(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_stays_on_the_model(kind: tuple[str, str]) -> None:
    model = vgf_model(tiny_model("llama"), *kind)
    model.generate(*prompts(), transport_steps=1, max_new_tokens=2)  # what is set once, such as a layer's class
    before = hooks_and_attributes(model)
    for call in calls_of(model):
        call()
    assert hooks_and_attributes(model) == before


def test_a_failed_call_leaves_nothing_either() -> None:
    model = vgf_model(tiny_model("llama"), "log_ratio", "lora")
    expected = model.generate(*prompts(), transport_steps=2, max_new_tokens=4)

    def fail(row: int, input_ids: Tensor) -> list[int]:
        raise KeyError("a caller's mistake")

    with pytest.raises(KeyError):
        model.generate(*prompts(), transport_steps=2, max_new_tokens=4, prefix_allowed_tokens_fn=fail)
    assert torch.equal(model.generate(*prompts(), transport_steps=2, max_new_tokens=4), expected)


def test_the_copy_shares_all_but_the_objects_on_its_way() -> None:
    model = tiny_model("gpt2")
    copied = shallow_copy(model, backbone_name(model))
    assert type(copied) is type(model) and copied is not model and copied.transformer is not model.transformer
    assert copied.transformer.h is model.transformer.h and copied.lm_head is model.lm_head
    assert {id(p) for p in copied.parameters()} == {id(p) for p in model.parameters()}
    copied.register_forward_hook(lambda *call: None)
    copied.transformer.register_forward_pre_hook(lambda *call: None)
    assert not model._forward_hooks and not model.transformer._forward_pre_hooks


def test_forwards_of_a_device_map_and_of_a_compiler_are_the_copys_own() -> None:
    plain = tiny_model("llama")
    ids, mask = prompts()
    model = vgf_model(plain)
    expected = model.generate(ids, mask, transport_steps=2, max_new_tokens=4)
    add_hook_to_module(model.policy, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    assert torch.equal(model.generate(ids, mask, transport_steps=2, max_new_tokens=4), expected)
    other = vgf_model(plain)
    bound = other.policy.forward
    other.policy.forward = lambda *args, **kwargs: bound(*args, **kwargs)
    assert torch.equal(other.generate(ids, mask, transport_steps=2, max_new_tokens=4), expected)
