# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Row blocks with different LoRA adapters equal PEFT's own results, one adapter at a time."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from tests.layouts import LAYOUTS, VOCAB, prompts, shake, tiny_model
from vgf_llm.models import VGFModel, build_value
from vgf_llm.models.adapter_rows import adapter_rows, check_plain_lora
from vgf_llm.models.language_model import position_ids_from_mask


def with_two_adapters(base: PreTrainedModel) -> PeftModel:
    """A PEFT model with random adapters "default" and "value"."""
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    model.add_adapter("value", LoraConfig(r=3, lora_alpha=5, target_modules="all-linear"))
    for seed, name in enumerate(("default", "value")):
        model.set_adapter(name)
        shake(model, seed=seed, std=0.2)
    return model.eval()


def peft_logits(model: PeftModel, adapter: str | None, ids: Tensor, mask: Tensor) -> Tensor:
    """What PEFT computes with one adapter for the whole batch; `None` is with the adapters off."""
    kwargs = {"attention_mask": mask, "position_ids": position_ids_from_mask(mask)}
    if adapter is None:
        with model.disable_adapter():
            return model(ids, **kwargs).logits
    model.set_adapter(adapter)
    return model(ids, **kwargs).logits


def block_logits(model: PeftModel, blocks: tuple[str | None, ...], ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    n = len(blocks)
    mask = mask.repeat(n, 1)
    with adapter_rows(model, *blocks):
        logits = model.get_base_model()(
            ids.repeat(n, 1), attention_mask=mask, position_ids=position_ids_from_mask(mask)
        ).logits
    return logits.chunk(n)


@pytest.fixture(scope="module", params=LAYOUTS)
def model(request: pytest.FixtureRequest) -> PeftModel:
    return with_two_adapters(tiny_model(request.param))


@torch.no_grad()
@pytest.mark.parametrize(
    "blocks", [(None, "value"), ("default", "value", None), ("value",), (None,)], ids=lambda blocks: str(blocks)
)
def test_each_block_is_pefts_own_result(model: PeftModel, blocks: tuple[str | None, ...]) -> None:
    ids, mask = prompts()
    real = mask.bool()
    expected = {name: peft_logits(model, name, ids, mask) for name in (None, "default", "value")}
    assert not torch.allclose(expected["value"][real], expected[None][real], atol=1e-2)
    for name, found in zip(blocks, block_logits(model, blocks, ids, mask), strict=True):
        torch.testing.assert_close(found[real], expected[name][real], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_the_context_leaves_no_hook_behind(model: PeftModel) -> None:
    ids, mask = prompts()
    before = peft_logits(model, "default", ids, mask)
    with pytest.raises(RuntimeError, match="inside"), adapter_rows(model, None, "value"):
        raise RuntimeError("inside")
    assert torch.equal(peft_logits(model, "default", ids, mask), before)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_gradients_are_those_of_peft(layout: str, checkpointing: bool) -> None:
    ids, mask = prompts()
    real = mask.bool().unsqueeze(-1)
    weights = torch.randn(*ids.shape, VOCAB)
    model = with_two_adapters(tiny_model(layout)).train()
    lora = {name: p for name, p in model.named_parameters() if "lora_" in name}

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in lora.items() if p.grad is not None and p.grad.any()}

    expected: dict[str, Tensor] = {}
    for name in ("value", "default"):
        model.set_adapter(name)  # freezes the other adapter
        expected |= gradients((peft_logits(model, name, ids, mask) * weights * real).sum())
    for parameter in lora.values():
        parameter.requires_grad_(True)
    if checkpointing:
        vgf = VGFModel(model, build_value("log_ratio", width=16, vocab_size=VOCAB), backbone="lora").train()
        vgf.set_trainable(value=True, policy=True)
        vgf.gradient_checkpointing_enable()
        with vgf._blocks(None, "value", "default"):
            rows = mask.repeat(3, 1)
            positions = position_ids_from_mask(rows)
            logits = model.get_base_model()(ids.repeat(3, 1), attention_mask=rows, position_ids=positions).logits
        blocks = logits.chunk(3)
    else:
        blocks = block_logits(model, (None, "value", "default"), ids, mask)
    found = gradients(((blocks[1] + blocks[2]) * weights * real).sum())
    assert found.keys() == expected.keys()
    assert len(expected) == len(lora)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-3, msg=name)


def test_a_model_without_lora_passes_through() -> None:
    base, (ids, mask) = tiny_model("llama"), prompts()
    with adapter_rows(base, None, "value"):
        assert torch.equal(base(ids, attention_mask=mask).logits, base(ids, attention_mask=mask).logits)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"target_modules": ["q_proj"], "use_dora": True}, "a variant"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "an embedding"),
        ({"target_modules": ["q_proj", "lm_head"]}, "the output embedding"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["q_proj"], "bias": "lora_only"}, "bias"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [3]}, "trainable_token_indices"),
    ],
)
def test_more_than_plain_lora_is_refused(config: dict, found: str) -> None:
    base = tiny_model("llama")
    value = build_value("log_ratio", width=16, vocab_size=VOCAB)
    with pytest.raises(ValueError, match=f"'value' must be plain LoRA.*{found}"):
        VGFModel(base, value, backbone="lora", lora_config=LoraConfig(**config))
    policy = get_peft_model(tiny_model("llama"), LoraConfig(**config))
    with pytest.raises(ValueError, match=f"'default' must be plain LoRA.*{found}.*merge_and_unload"):
        VGFModel(policy)


def test_a_missing_adapter_is_named() -> None:
    model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules="all-linear"))
    with pytest.raises(ValueError, match=r"'value' is not in the model; it has \['default'\]"):
        check_plain_lora(model, "value")


def test_merged_adapters_are_refused() -> None:
    model = with_two_adapters(tiny_model("llama"))
    model.merge_adapter()
    with pytest.raises(ValueError, match="`model` has merged adapters"), adapter_rows(model, None):
        pass
