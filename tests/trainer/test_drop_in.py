# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What scripts for `GRPOTrainer` rely on beside training itself: datasets of every kind, attributes, refusals."""

import logging
import math

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDatasetDict
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from tests.trainer import tiny
from vgf_llm import VGFTrainer


def test_no_reward_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No reward source provided"):
        VGFTrainer(tiny.llama(), None, tiny.config(tmp_path), tiny.prompts(), processing_class=tiny.tokenizer())


# Datasets


def parts(streamed: bool) -> DatasetDict | IterableDatasetDict:
    """Two evaluation sets."""
    whole = {"one": tiny.prompts(3), "two": tiny.prompts(2)}
    if not streamed:
        return DatasetDict(whole)
    return IterableDatasetDict({name: dataset.to_iterable_dataset() for name, dataset in whole.items()})


@pytest.mark.parametrize("streamed", [False, True], ids=["dataset", "stream"])
@pytest.mark.parametrize("at", ["construction", "call"])
def test_evaluation_takes_datasets_and_dicts_of_them(tmp_path, streamed, at):
    for given in (parts(streamed)["one"], parts(streamed), dict(parts(streamed))):
        run = tiny.trainer(tmp_path, eval_dataset=given if at == "construction" else None)
        metrics = run.evaluate() if at == "construction" else run.evaluate(eval_dataset=given)
        names = ["eval_one_loss", "eval_two_loss"] if isinstance(given, dict) else ["eval_loss"]
        assert all(math.isfinite(metrics[name]) for name in names)
        rewards = [metrics[name.replace("loss", "reward")] for name in names]
        assert all(0 <= reward <= 1 for reward in rewards)


def test_a_call_evaluates_new_pairs_and_dicts_of_them(tmp_path):
    run = tiny.trainer(tmp_path, None, train_dataset=tiny.pairs(), num_generations=2)
    alone = run.evaluate(eval_dataset=tiny.pairs(6))
    both = run.evaluate(eval_dataset={"one": tiny.pairs(6), "two": tiny.pairs(4)})
    assert alone["eval_loss"] == both["eval_one_loss"]
    assert math.isfinite(both["eval_two_loss"])


def test_a_stream_is_read_by_one_worker(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run = tiny.trainer(tmp_path, train_dataset=tiny.prompts(8).to_iterable_dataset(), dataloader_num_workers=4)
    assert run.args.dataloader_num_workers == 0
    assert "Iterable datasets require `dataloader_num_workers=0`" in caplog.text and "given 4" in caplog.text


def test_a_streamed_evaluation_leaves_the_workers_of_training(tmp_path):
    stream = tiny.prompts(3).to_iterable_dataset()
    run = tiny.trainer(tmp_path, eval_dataset=stream, dataloader_num_workers=2)
    assert run.get_train_dataloader().num_workers == 2
    assert run.get_eval_dataloader().num_workers == 0
    assert run.args.dataloader_num_workers == 2


@pytest.mark.parametrize("role", ["train_dataset", "eval_dataset"])
def test_dispatched_batches_of_a_stream_are_refused(tmp_path, role):
    with pytest.raises(ValueError, match="Iterable datasets require `dispatch_batches=False`"):
        tiny.trainer(
            tmp_path,
            **{role: tiny.prompts(8).to_iterable_dataset()},
            accelerator_config={"dispatch_batches": True},
        )


@pytest.mark.parametrize(("count", "batch", "steps"), [(7, 7, 1), (7, 1, 7), (5, 2, 5), (3, 4, 3)])
def test_groups_of_odd_size_train_in_micro_batches_that_cut_them(tmp_path, count, batch, steps):
    run = tiny.trainer(
        tmp_path,
        num_generations=count,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=steps,
        max_steps=2,
    )
    before = tiny.value_state(run)
    run.train()
    assert any(not torch.equal(before[name], value) for name, value in tiny.value_state(run).items())


# Rewards


def test_a_run_without_any_reward_warns_and_changes_nothing(tmp_path, caplog):
    def never(completions: list[str], **kwargs: object) -> list[None]:
        return [None] * len(completions)

    run = tiny.trainer(tmp_path, never, max_steps=12, train_dataset=tiny.prompts(24))
    before = tiny.value_state(run)
    with caplog.at_level(logging.WARNING):
        run.train()
    assert caplog.text.count("All reward functions returned None for the following kwargs:") == 12
    assert all(torch.equal(before[name], value) for name, value in tiny.value_state(run).items())


def test_what_callbacks_and_reward_functions_read_has_its_name(tmp_path):
    def scored(completions: list[str], log_extra: object, **kwargs: object) -> list[float]:
        log_extra("length", [len(text) for text in completions])
        return [float(len(text) % 2) for text in completions]

    run = tiny.trainer(tmp_path, [scored, tiny.high_tokens], reward_weights=[1.0, 0.5])
    run.train()
    assert run.reward_funcs == [scored, tiny.high_tokens]
    assert run.reward_func_names == ["scored", "high_tokens"]
    assert run.reward_weights.tolist() == [1.0, 0.5]
    assert run.reward_processing_classes == [None, None]
    assert not run.aux_loss_enabled
    rows = len(run._logs["prompt"])
    assert rows == run.args.generation_batch_size
    columns = [run._logs["completion"], *run._logs["rewards"].values(), run._logs["extra"]["length"]]
    assert all(len(column) == rows for column in columns)
    assert list(run._logs["rewards"]) == ["scored", "high_tokens"]


# Vision-language models on text

TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
QWEN_TEXT = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
QWEN_VISION = {"hidden_size": 16, "intermediate_size": 24, "depth": 1, "num_heads": 2, "out_hidden_size": 16}
QWEN_TOKENS = {"image_token_id": 36, "video_token_id": 37, "vision_start_token_id": 38, "vision_end_token_id": 39}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def vision_language_model(name: str) -> PreTrainedModel:
    """A random model that reads images and texts."""
    torch.manual_seed(0)
    if name == "qwen2_5_vl":
        config = Qwen2_5_VLConfig(text_config=QWEN_TEXT, vision_config=QWEN_VISION, **QWEN_TOKENS)
        return Qwen2_5_VLForConditionalGeneration(config).eval()
    if name == "qwen3_vl":
        vision = {**QWEN_VISION, "deepstack_visual_indexes": [0]}
        config = Qwen3VLConfig(text_config={**QWEN_TEXT, "head_dim": 8}, vision_config=vision, **QWEN_TOKENS)
        return Qwen3VLForConditionalGeneration(config).eval()
    if name == "gemma3":
        tokens = {"image_token_index": 36, "boi_token_index": 37, "eoi_token_index": 38, "mm_tokens_per_image": 4}
        config = Gemma3Config(text_config={**TEXT, "head_dim": 8}, vision_config=VISION, **tokens)
        return Gemma3ForConditionalGeneration(config).eval()
    config = LlavaConfig(
        text_config=LlamaConfig(**TEXT), vision_config=CLIPVisionConfig(**VISION), image_token_index=36
    )
    return LlavaForConditionalGeneration(config).eval()


class Processor(ProcessorMixin):
    """A processor as far as text needs one."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "gemma3", "llava"])
def test_a_vision_language_model_trains_on_texts_and_generates(tmp_path, name):
    model = vision_language_model(name)
    prompt = tiny.tokenizer()(["w1 w2", "w3 w4 w5"], padding=True, padding_side="left", return_tensors="pt")
    greedy = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    run = tiny.trainer(tmp_path, model=model, processing_class=Processor(tiny.tokenizer()))
    before = tiny.value_state(run)
    run.train()
    assert any(not torch.equal(before[name], value) for name, value in tiny.value_state(run).items())
    vgf_model = run.vgf_model.eval()
    generate = {**prompt, "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(vgf_model.generate(**generate, transport_steps=0), greedy)
    particles: Tensor = vgf_model.generate(**{**generate, "do_sample": True}, transport_steps=8, num_particles=2)
    assert particles.shape[0] == 2


def test_images_are_refused(tmp_path):
    message = {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "w1"}]}
    with pytest.raises(TypeError, match=r"content of the type\(s\) \['image'\]"):
        tiny.trainer(tmp_path, train_dataset=Dataset.from_list([{"prompt": [message]}] * 8))
