# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Row blocks with different LoRA adapters equal PEFT's own results, one adapter at a time."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from tests.layouts import LAYOUTS, VOCAB, broad_model, prompts, shake, tiny_model, vgf_model
from vgf_llm.models.adapter_rows import (
    adapter_parameters,
    adapter_rows,
    check_plain_lora,
    lora_layers,
    prepare_rows,
    recompute_context,
)
from vgf_llm.models.backbones import enable_checkpointing, linear_targets
from vgf_llm.models.language_model import position_ids_from_mask
from vgf_llm.models.value import build_value
from vgf_llm.vgf_model import VGFModel


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
        kwargs = {"use_reentrant": False, "context_fn": recompute_context}
        enable_checkpointing(model.get_base_model(), kwargs, {})
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
        ({"target_modules": ["q_proj"], "init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"target_modules": ["q_proj"], "init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"}, "init_lora_weights='orthogonal'"),
        ({"target_modules": ["q_proj"], "layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
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


def test_an_adapter_that_starts_anywhere_is_refused_for_the_value_alone() -> None:
    config = LoraConfig(target_modules="all-linear", init_lora_weights=False)
    with pytest.raises(ValueError, match=r"'value' must be plain LoRA.*init_lora_weights=False"):
        VGFModel(
            tiny_model("llama"),
            build_value("log_ratio", width=16, vocab_size=VOCAB),
            backbone="lora",
            lora_config=config,
        )


@pytest.mark.parametrize("config", [IA3Config, AdaLoraConfig, PromptTuningConfig])
def test_other_adapters_are_refused(config: Any) -> None:
    settings = {"AdaLoraConfig": {"total_step": 10}, "PromptTuningConfig": {"num_virtual_tokens": 2}}
    value = build_value("log_ratio", width=16, vocab_size=VOCAB)
    given = config(task_type="CAUSAL_LM", **settings.get(config.__name__, {}))
    with pytest.raises(ValueError, match=f"'value' must be plain LoRA.*{config.__name__}"):
        VGFModel(tiny_model("llama"), value, backbone="lora", lora_config=given)


def test_empty_settings_are_nothing_and_a_configuration_stays_as_it_was() -> None:
    config = LoraConfig(target_modules=["q_proj"], target_parameters=set(), modules_to_save=[], rank_pattern={})
    all_linear = LoraConfig(target_modules="all-linear")
    for given in (config, all_linear):
        vgf_model(tiny_model("llama"), "log_ratio", "lora", lora_config=given)
    assert all_linear.target_modules == "all-linear"


def test_a_users_adapter_called_value_and_several_active_ones_are_refused() -> None:
    policy = with_two_adapters(tiny_model("llama"))
    with pytest.raises(ValueError, match="has an adapter called 'value', the name of the value's own"):
        VGFModel(policy)
    policy = get_peft_model(tiny_model("llama"), LoraConfig(target_modules="all-linear"))
    policy.add_adapter("second", LoraConfig(target_modules="all-linear"))
    policy.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match=r"several active adapters, \['default', 'second'\]"):
        VGFModel(policy)


@pytest.mark.parametrize(
    "layout", ["qwen3_moe", "mixtral", "deepseek_v3", "jamba", "phimoe", "mamba", "falcon_h1", "gpt2"]
)
def test_the_default_adapter_goes_on_linear_layers_that_take_it(layout: str) -> None:
    base = broad_model(layout)
    names = linear_targets(base, LoraConfig(task_type="CAUSAL_LM"))
    assert names
    policy = vgf_model(base, "log_ratio", "lora").policy
    found = [name for name, layer in policy.named_modules() if isinstance(layer, LoraLayer)]
    assert found and not any(word in name.split(".") for name in found for word in ("experts", "lm_head"))
    assert not policy.peft_config["value"].target_parameters


def test_explicit_targets_on_a_mixture_of_experts_are_taken_or_refused() -> None:
    value = build_value("log_ratio", width=64, vocab_size=320)
    VGFModel(broad_model("qwen3_moe"), value, backbone="lora", lora_config=LoraConfig(target_modules=["q_proj"]))
    experts = LoraConfig(target_modules=["gate_proj", "up_proj", "down_proj"])
    with pytest.raises(ValueError, match=r"'value' must be plain LoRA.*target_parameters"):
        VGFModel(broad_model("qwen3_moe"), value, backbone="lora", lora_config=experts)


def test_parameters_of_an_adapter_are_found_by_what_they_are() -> None:
    policy = with_two_adapters(tiny_model("llama"))
    found = {name: adapter_parameters(policy, name) for name in ("value", "default", "none")}
    assert not found["none"] and not set(found["value"]) & set(found["default"])
    assert len(found["value"]) == len(found["default"]) == 2 * len(lora_layers(policy))
    assert all("lora_" in name and ".value." in name for name in found["value"])
    named = dict(policy.named_parameters())
    assert all(named[name] is parameter for name, parameter in found["value"].items())


@torch.no_grad()
def test_threads_have_blocks_of_their_own() -> None:
    model, (ids, mask) = with_two_adapters(tiny_model("llama")), prompts()
    prepare_rows(model)
    layers = [dict(layer.__dict__) for layer in lora_layers(model)]
    choices: list[tuple[str | None, ...]] = [(None,), ("value",), ("default",), ("value", None)]
    expected = [block_logits(model, blocks, ids, mask) for blocks in choices]
    together = Barrier(len(choices))

    @torch.no_grad()
    def run(blocks: tuple[str | None, ...]) -> list[tuple[Tensor, ...]]:
        found = []
        for _ in range(20):
            together.wait()
            found.append(block_logits(model, blocks, ids, mask))
        return found

    with ThreadPoolExecutor(len(choices)) as pool:
        for wanted, found in zip(expected, pool.map(run, choices), strict=True):
            for logits in found:
                for one, other in zip(logits, wanted, strict=True):
                    assert torch.equal(one, other)
    assert [dict(layer.__dict__) for layer in lora_layers(model)] == layers


@torch.no_grad()
def test_copies_and_pickles_have_blocks_of_their_own(tmp_path: Any) -> None:
    model, (ids, mask) = with_two_adapters(tiny_model("llama")), prompts()
    expected = block_logits(model, ("value",), ids, mask)[0]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for parameter in adapter_parameters(other, "value").values():
            parameter.mul_(2)
        with adapter_rows(other, None):
            assert torch.equal(block_logits(model, ("value",), ids, mask)[0], expected)
        found = block_logits(other, ("value", "default"), ids, mask)
        assert not torch.allclose(found[0], expected, atol=1e-2)
        merged = copy.deepcopy(other).merge_and_unload(adapter_names=["value"])
        assert not lora_layers(merged)
        positions = position_ids_from_mask(mask)
        logits = merged(ids, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(logits[mask.bool()], found[0][mask.bool()], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_an_adapter_in_float32_does_not_widen_activations_where_nothing_trains() -> None:
    model, (ids, mask) = vgf_model(tiny_model("llama").to(torch.bfloat16), "log_ratio", "lora"), prompts()
    widest = []
    for layer in lora_layers(model.policy):
        layer.lora_A["value"].register_forward_hook(lambda module, args, out: widest.append((args[0].dtype, out.dtype)))
    model.ref_logps(ids, mask, 2)
    scores = model.score(ids, mask, mask[:, -2:]).token_scores
    assert set(widest) == {(torch.bfloat16, torch.bfloat16)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model.score(ids, mask, mask[:, -2:]).token_scores, scores, atol=2e-2, rtol=2e-2)
