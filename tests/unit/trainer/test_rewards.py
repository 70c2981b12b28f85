# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""RewardRunner: TRL's call, names and weights, and errors that name the reward function and show a prompt."""

import asyncio
import copy
import functools
import logging
import math
from collections import deque
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from vgf_llm.trainer.score.rewards import RewardRunner, combine

NAN = math.nan
BATCH = {
    "inputs": [{"prompt": prompt, "answer": answer} for prompt, answer in [("p0", 0), ("p1", 1), ("p2", 2)]],
    "prompts": ["p0", "p1", "p2"],
    "completions": ["c0", "c1", "c2"],
    "completion_ids_list": [[1], [2, 3], [4]],
}
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


def returning(output):
    def reward(**kwargs):
        return output

    return reward


@pytest.fixture
def tokenizer():
    words = ["<pad>", "<eos>", "<unk>", "user", "assistant", "p0", "p1", "p2", "c0", "c1", "c2"]
    raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", chat_template=CHAT_TEMPLATE
    )


@pytest.fixture
def classifier():
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_labels=1,
        pad_token_id=0,
    )
    model = LlamaForSequenceClassification(config).eval()
    model.config._name_or_path = "somebody/judge"
    return model


def test_functions_receive_what_trl_hands_them():
    seen = {}

    def reward(**kwargs):
        seen.update(kwargs)
        kwargs["log_extra"]("column", [1, 2, 3])
        kwargs["log_metric"]("metric", 0.5)
        return [1, None, 0.25]

    logged = []
    rewards = RewardRunner(reward)(
        **BATCH,
        trainer_state="state",
        log_extra=lambda *args: logged.append(args),
        log_metric=lambda *args: logged.append(args),
    )
    assert logged == [("column", [1, 2, 3]), ("metric", 0.5)]
    assert set(seen) == {
        "prompts",
        "completions",
        "completion_ids",
        "answer",
        "trainer_state",
        "log_extra",
        "log_metric",
    }
    assert seen["answer"] == [0, 1, 2] and seen["completion_ids"] == [[1], [2, 3], [4]]
    assert seen["trainer_state"] == "state"
    assert rewards.dtype == torch.float32
    torch.testing.assert_close(rewards, torch.tensor([[1.0], [NAN], [0.25]]), equal_nan=True)


def test_the_users_list_is_left_alone():
    funcs = [returning([0, 0, 0])]
    RewardRunner(funcs).reward_funcs.append(None)
    assert len(funcs) == 1


def test_names_are_trls(classifier, tokenizer):
    class Scorer:
        def __call__(self, **kwargs):
            return [0, 0, 0]

    funcs = [Scorer(), functools.partial(returning([0, 0, 0])), classifier]
    runner = RewardRunner(funcs, reward_processing_classes=[None, None, tokenizer])
    assert runner.reward_func_names == ["Scorer", "reward", "judge"]


def test_every_function_has_a_name_of_its_own(caplog, classifier, tokenizer):
    def constant(level, completions, **kwargs):
        return [level] * len(completions)

    def constant_2(completions, **kwargs):
        return [9.0] * len(completions)

    other = copy.deepcopy(classifier)
    other.config._name_or_path = "elsewhere/judge/"
    funcs = [functools.partial(constant, 1.0), constant_2, functools.partial(constant, 3.0), classifier, other]
    runner = RewardRunner(funcs, reward_processing_classes=[None, None, None, tokenizer, tokenizer])
    assert runner.reward_func_names == ["constant", "constant_2", "constant_3", "judge", "judge_2"]
    assert "['constant', 'judge']" in caplog.text
    assert runner(**BATCH)[0, :3].tolist() == [1.0, 9.0, 3.0]
    lambdas = RewardRunner([lambda **kwargs: [0, 0, 0], lambda **kwargs: [1, 1, 1]])
    assert lambdas.reward_func_names == ["<lambda>", "<lambda>_2"]


def test_a_model_without_an_origin_has_its_class_for_a_name(classifier, tokenizer):
    classifier.config._name_or_path = ""
    runner = RewardRunner(classifier, reward_processing_classes=tokenizer)
    assert runner.reward_func_names == ["LlamaForSequenceClassification"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_a_function_does_to_its_arguments_stays_there(asynchronous):
    def spoil(prompts, completions, completion_ids, answer, answers, **kwargs):
        prompts[0][0]["content"] = "spoilt"
        completions.clear()
        for ids in completion_ids:
            ids.append(99)
        answer.reverse()
        answers[0].append(1)
        answers[1][:] = 7
        return [0, 0, 0]

    async def spoil_later(**kwargs):
        return spoil(**kwargs)

    seen = {}

    def look(**kwargs):
        seen.update(kwargs)
        return [1, 1, 1]

    prompts = [[{"role": "user", "content": text}] for text in BATCH["prompts"]]
    rows = [{"answer": row, "answers": [[0], np.zeros(2), None][row]} for row in range(3)]
    batch = {**BATCH, "inputs": rows, "prompts": prompts}
    before = copy.deepcopy(batch)
    runner = RewardRunner([spoil_later if asynchronous else spoil, look])
    runner(**batch)
    runner.close()
    np.testing.assert_equal(batch, before)
    assert seen["completions"] == ["c0", "c1", "c2"] and seen["answer"] == [0, 1, 2]
    assert seen["prompts"] == before["prompts"] and seen["completion_ids"] == [[1], [2, 3], [4]]


def test_arrays_tensors_and_generators_are_sequences():
    def yielding(**kwargs):
        yield from [1.0, 2.0, None]

    funcs = [returning(np.array([1, 2, 3])), returning(torch.tensor([0.5, 1, 2])), returning((1, 2, 3)), yielding]
    expected = [[1, 0.5, 1, 1], [2, 1, 2, 2], [3, 2, 3, NAN]]
    torch.testing.assert_close(RewardRunner(funcs)(**BATCH), torch.tensor(expected), equal_nan=True)


def test_asynchronous_functions_run_together():
    barrier = []

    async def first(completions, **kwargs):
        barrier.append("first")
        while len(barrier) < 2:
            await asyncio.sleep(0.001)
        return [1.0] * len(completions)

    async def second(completions, **kwargs):
        barrier.append("second")
        return [None, 2.0, 3.0]

    runner = RewardRunner([first, returning([5, 6, 7]), second])
    expected = torch.tensor([[1, 5, NAN], [1, 6, 2], [1, 7, 3]])
    torch.testing.assert_close(runner(**BATCH), expected, equal_nan=True)
    runner.close()
    with pytest.raises(RuntimeError, match="closed"):
        runner(**BATCH)


def test_profile_wraps_each_function():
    names = []

    @contextmanager
    def profile(name):
        names.append(name)
        yield

    async def later(**kwargs):
        return [0, 0, 0]

    runner = RewardRunner([returning([0, 0, 0]), later], profile=profile)
    runner(**BATCH)
    runner.close()
    assert names == ["reward", "later"]


def test_models_score_prompt_and_completion(classifier, tokenizer):
    runner = RewardRunner([classifier], reward_processing_classes=[tokenizer])
    batch = {**BATCH, "completions": [" c0", " c1 c0", " c2"]}
    expected = []
    for text in ("p0 c0", "p1 c1 c0", "p2 c2"):
        with torch.no_grad():
            expected.append(classifier(**tokenizer(text, return_tensors="pt")).logits[0, 0])
    torch.testing.assert_close(runner(**batch)[:, 0], torch.stack(expected))


def test_models_read_messages_through_the_chat_template(classifier, tokenizer):
    runner = RewardRunner(classifier, reward_processing_classes=tokenizer)
    prompts = [[{"role": "user", "content": text}] for text in BATCH["prompts"]]
    completions = [[{"role": "assistant", "content": text}] for text in BATCH["completions"]]
    rewards = runner(**{**BATCH, "prompts": prompts, "completions": completions})
    with torch.no_grad():
        expected = classifier(**tokenizer("user p1 assistant c1", return_tensors="pt")).logits[0, 0]
    torch.testing.assert_close(rewards[1, 0], expected)


def test_models_are_loaded_from_a_path(tmp_path, classifier, tokenizer):
    path = tmp_path / "judge"
    classifier.save_pretrained(path)
    tokenizer.save_pretrained(path)
    loaded = RewardRunner(str(path))
    assert loaded.reward_func_names == ["judge"]
    given = RewardRunner(classifier, reward_processing_classes=tokenizer)
    torch.testing.assert_close(loaded(**BATCH), given(**BATCH))


def test_a_prompt_that_ends_with_the_assistant_is_continued(classifier, tokenizer):
    runner = RewardRunner(classifier, reward_processing_classes=tokenizer)
    prompt = [{"role": "user", "content": "p0"}, {"role": "assistant", "content": [{"type": "text", "text": "c0 "}]}]
    rewards = runner([{}], [prompt], [[{"role": "assistant", "content": "c1"}]], [[1]])
    with torch.no_grad():
        expected = classifier(**tokenizer("user p0 assistant c0 c1", return_tensors="pt")).logits[0, 0]
    torch.testing.assert_close(rewards[0, 0], expected)


def test_classifiers_of_several_labels_are_refused(tmp_path, classifier, tokenizer):
    config = LlamaConfig(**{**classifier.config.to_diff_dict(), "id2label": {0: "NEGATIVE", 1: "POSITIVE"}})
    model = LlamaForSequenceClassification(config)
    with pytest.raises(ValueError, match=r"2 labels \(\['NEGATIVE', 'POSITIVE'\]\), and a reward model has one"):
        RewardRunner(model, reward_processing_classes=tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"The reward model .* has 2 labels"):
        RewardRunner(str(tmp_path))


def test_a_checkpoint_without_a_reward_head_is_refused(tmp_path, classifier, tokenizer):
    LlamaForCausalLM(LlamaConfig(**classifier.config.to_diff_dict())).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks the weights \['score.weight'\].* no reward head"):
        RewardRunner(str(tmp_path))


def test_models_score_without_dropout(classifier, tokenizer):
    assert not RewardRunner(classifier.train(), reward_processing_classes=tokenizer).reward_funcs[0].training


class Plain(nn.Module):
    pass


class WithConfig(nn.Module):
    config = LlamaConfig(num_labels=1)


def without_kwargs(prompts, completions):
    return [0.0] * len(prompts)


BAD_RUNNERS = [
    # reward_funcs, further arguments, error, what the message says
    (None, {}, ValueError, "No reward source provided: `reward_funcs` is None"),
    ([], {}, ValueError, r"No reward source provided: `reward_funcs` is \[\]"),
    ([3], {}, TypeError, r"`reward_funcs\[0\]` must be a callable, a model or a model id, got 3 .int."),
    ([returning([]), None], {}, TypeError, r"`reward_funcs\[1\]` must be a callable"),
    (Plain(), {}, TypeError, r"`reward_funcs\[0\]` is a Plain without a `config`"),
    (WithConfig(), {}, ValueError, "Pass it in `reward_processing_classes`"),
    (returning([]), {"reward_weights": [1.0, 2.0]}, ValueError, r"weights \(2\) must match .* functions \(1\)"),
    (returning([]), {"reward_weights": [NAN]}, ValueError, "`reward_weights` must be finite"),
    (returning([]), {"reward_processing_classes": [None, None]}, ValueError, "has 2 entries, but there are 1"),
]


@pytest.mark.parametrize(("funcs", "arguments", "error", "message"), BAD_RUNNERS)
def test_bad_runners(funcs, arguments, error, message):
    with pytest.raises(error, match=message):
        RewardRunner(funcs, **arguments)


BAD_OUTPUTS = [
    # output, error, what the message says
    ([1, 2], ValueError, r"'reward' returned 2 rewards, but 3 were expected"),
    ([1, 2, 3, 4], ValueError, r"'reward' returned 4 rewards, but 3 were expected"),
    ([0, NAN, 0], ValueError, "'reward' returned nan for prompt 'p1' and completion 'c1'.* return None"),
    ([0, 0, math.inf], ValueError, "'reward' returned inf for prompt 'p2' and completion 'c2'"),
    (torch.tensor([-math.inf, 0, 0]), ValueError, "'reward' returned -inf for prompt 'p0'"),
    ([1e300, 0, 0], ValueError, "'reward' returned 1e\\+300 for prompt 'p0'"),
    ([0, "1.0", 0], TypeError, "'reward' returned '1.0' .str. for prompt 'p1'"),
    ([0, [1.0], 0], TypeError, r"'reward' returned \[1.0\] .list. for prompt 'p1'"),
    (None, TypeError, "'reward' returned None .NoneType.; a list of 3 numbers"),
    (1.0, TypeError, "'reward' returned 1.0 .float.; a list of 3 numbers"),
    (torch.tensor(1.0), TypeError, "a list of 3 numbers"),
    ("abc", TypeError, "'reward' returned 'abc' .str."),
    ({0: 1, 1: 1, 2: 1}, TypeError, "dict"),
]


class Number:
    def __init__(self, value):
        self.value = value

    def __float__(self):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Unprintable:
    def __repr__(self):
        raise ValueError("no text")


class Unreadable:
    def tolist(self):
        raise ValueError("no list")


class Three(list):
    """Says that it has three entries."""

    def __len__(self):
        return 3


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ([True, False, True], [1, 0, 1]),
        ([Decimal("0.5"), Fraction(1, 4), -0.0], [0.5, 0.25, 0]),
        ([np.float32(0.5), np.array([1.0]), np.array(2)], [0.5, 1, 2]),
        ([torch.tensor(0.5), torch.ones(1, dtype=torch.bfloat16), None], [0.5, 1, NAN]),
        (torch.ones(3, requires_grad=True), [1, 1, 1]),
        (np.array([1, None, 2], dtype=object), [1, NAN, 2]),
        (np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0]), [1, NAN, 3]),
        (np.array([True, False, True]), [1, 0, 1]),
        (range(3), [0, 1, 2]),
        (deque([1, 2, 3]), [1, 2, 3]),
        ([Number(0.5), 5e-324, 1], [0.5, 0, 1]),
    ],
    ids=str,
)
def test_numbers_of_every_kind(output, expected, asynchronous):
    async def later(**kwargs):
        return output

    runner = RewardRunner(later if asynchronous else returning(output))
    rewards = runner(**BATCH)[:, 0]
    runner.close()
    torch.testing.assert_close(rewards, torch.tensor(expected, dtype=torch.float32), equal_nan=True)


REFUSED = [
    [0, b"1", 0],
    [0, bytearray(b"1"), 0],
    [0, 1j, 0],
    [0, ..., 0],
    [10**400, 0, 0],
    [Fraction(10**400), 0, 0],
    [Decimal("NaN"), 0, 0],
    [Decimal("sNaN"), 0, 0],
    [Number(RuntimeError("x")), 0, 0],
    [Number(OverflowError("big")), 0, 0],
    [Number(NAN), 0, 0],
    [np.datetime64(1, "ns"), 0, 0],
    [torch.ones(2), 0, 0],
    [np.ones(0), 0, 0],
    [torch.ones((), device="meta"), 0, 0],
    np.array([1, 2, 3], dtype="datetime64[ns]"),
    np.array([1, 2, 3], dtype="timedelta64[s]"),
    np.array([b"1", b"2", b"3"]),
    np.zeros(3, dtype=[("a", "f4")]),
    np.ones((3, 1)),
    torch.ones(3, 1),
    torch.ones(3, dtype=torch.complex64),
    torch.ones(3, device="meta"),
    torch.ones(3).to_sparse(),
    memoryview(b"abc"),
    bytearray(b"abc"),
    {1, 2, 3},
    iter([1, 2, 3]),
    map(float, [1, 2, 3]),
    NotImplemented,
    ValueError("returned, not raised"),
    Unreadable(),
    Three([1]),
    10**5000,
    [10**5000, 0, 0],
    [Unprintable(), 0, 0],
    ["x" * 10**6, 0, 0],
]


@pytest.mark.parametrize("output", REFUSED, ids=lambda output: type(output).__name__)
def test_everything_else_is_refused_by_name(output):
    with pytest.raises((TypeError, ValueError), match="The reward function 'reward' returned") as caught:
        RewardRunner(returning(output))(**BATCH)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(("output", "error", "message"), BAD_OUTPUTS)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_bad_outputs(output, error, message, asynchronous):
    async def reward(**kwargs):
        return output

    runner = RewardRunner(reward if asynchronous else returning(output))
    with pytest.raises(error, match=message):
        runner(**BATCH)
    runner.close()


def test_a_coroutine_from_a_plain_function_is_explained():
    async def later():
        return [0, 0, 0]

    with pytest.raises(TypeError, match=r"returned an awaitable. Define it with `async def`"):
        RewardRunner(lambda **kwargs: later())(**BATCH)


def raising(error):
    def reward(**kwargs):
        raise error

    return reward


ERRORS = [ZeroDivisionError("no"), StopIteration(), KeyError("k"), asyncio.CancelledError(), SystemExit(3), Exception()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_exception_names_the_function_and_a_prompt(error):
    async def later(**kwargs):
        raise error

    for func, name in ((raising(error), "reward"), (later, "later")):
        runner = RewardRunner(func)
        with pytest.raises(RuntimeError, match=f"'{name}' raised .*First prompt of the batch of 3: 'p0'") as caught:
            runner(**BATCH)
        runner.close()
        assert type(error).__name__ in str(caught.value) or isinstance(error, StopIteration)
        assert caught.value.__cause__ is not None


def test_an_exception_of_a_generator_is_named_too():
    def reward(answer, **kwargs):
        for value in answer:
            yield 1 / (value - 2)

    with pytest.raises(RuntimeError, match="'reward' raised ZeroDivisionError"):
        RewardRunner(reward)(**BATCH)


def test_an_interruption_passes_through():
    with pytest.raises(KeyboardInterrupt):
        RewardRunner(raising(KeyboardInterrupt()))(**BATCH)


def test_a_generator_without_an_end_ends():
    def forever(**kwargs):
        while True:
            yield 1.0

    with pytest.raises(ValueError, match="'forever' returned 4 rewards, but 3 were expected"):
        RewardRunner(forever)(**BATCH)


def test_an_exception_of_an_asynchronous_function_is_not_retried():
    calls = []

    async def judge(**kwargs):
        calls.append(1)
        raise TimeoutError("no answer")

    runner = RewardRunner(judge)
    with pytest.raises(RuntimeError, match=r"'judge' raised TimeoutError: no answer. First prompt .* 'p0'") as caught:
        runner(**BATCH)
    runner.close()
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert calls == [1]


def test_long_prompts_are_shortened_in_errors():
    def reward(**kwargs):
        raise ValueError("no")

    with pytest.raises(RuntimeError) as caught:
        RewardRunner(reward)(**{**BATCH, "prompts": ["x" * 100_000] * 3})
    assert len(str(caught.value)) < 1000 and "'xxx" in str(caught.value)


def test_rows_without_any_reward_are_warned_about(caplog):
    runner = RewardRunner([returning([1, None, None]), returning([None, None, 2])])
    with caplog.at_level(logging.WARNING):
        runner(**BATCH)
    assert "All reward functions returned None for the following kwargs:" in caplog.text
    assert "(1 of 3 completions.)" in caplog.text
    assert "'prompts': 'p1'" in caplog.text and "'answer': 1" in caplog.text


def test_combine_weighs_and_leaves_none_out():
    rewards = torch.tensor([[1.0, 2.0], [NAN, 3.0], [NAN, NAN]])
    torch.testing.assert_close(
        combine(rewards, torch.tensor([2.0, -1.0])), torch.tensor([0.0, -3.0, NAN]), equal_nan=True
    )
    torch.testing.assert_close(combine(rewards, torch.ones(2)), torch.tensor([3.0, 3.0, NAN]), equal_nan=True)


def test_a_batch_without_any_reward_is_nan():
    assert combine(torch.full((4, 2), NAN), torch.ones(2)).isnan().all()


def test_columns_are_checked_before_the_first_call():
    def reward(completions, answer, level=0, **kwargs):
        return [0.0] * len(completions)

    def strict(prompts, completions, completion_ids, trainer_state, log_extra, log_metric):
        return [0.0] * len(completions)

    RewardRunner(reward).check_columns(["prompt", "answer"])
    with pytest.raises(
        ValueError, match=r"'reward' needs the column\(s\) \['answer'\], but the dataset has \['prompt'"
    ):
        RewardRunner(reward).check_columns(["prompt", "solution"])
    RewardRunner(strict).check_columns(["prompt"])
    with pytest.raises(TypeError, match=r"'strict' does not accept \['answer'\]"):
        RewardRunner(strict).check_columns(["prompt", "answer"])
    with pytest.raises(TypeError, match=r"'without_kwargs' does not accept .*'completion_ids'.* Add `\*\*kwargs`"):
        RewardRunner(without_kwargs).check_columns(["prompt"])
    with pytest.raises(RuntimeError, match=r"'without_kwargs' raised TypeError: .*unexpected keyword"):
        RewardRunner(without_kwargs)(**BATCH)
