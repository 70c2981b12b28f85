# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Tests of the embedded task: the generator, the tokenizer, the shipped base, and the script that trains it."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.embedded_math import BASE_DIR, make_corpus, make_problems
from recipes.embedded_math.problems import MAX_NUMBER, NUM_STEPS, PHRASES, SPLITS
from recipes.embedded_math.tokenizer import build_tokenizer
from recipes.embedded_math.train_base import IGNORE_INDEX, TrainBaseArguments, main, make_batches

ANNOTATION = re.compile(r"<<(\d+)([-+*/])(\d+)=(\d+)>>(\d+)")
OPERATIONS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


def _pattern(template: str) -> re.Pattern[str]:
    with_number = re.escape(template).replace(r"\{n\}", r"(?P<n>\d+)")
    return re.compile(re.sub(r"\\\{\w+\\\}", r"\\w+", with_number))


PATTERNS = {name: _pattern(phrase.text) for name, phrase in PHRASES.items()}


def final_number(text: str) -> str:
    return re.findall(r"#### (\d+)", text)[-1]


def read_steps(question: str) -> tuple[int, list[tuple[str, int]]]:
    """Reads the start count and the phrases with their numbers back from the text of a question."""
    first, *steps, _ = re.findall(r"[^.?]+[.?]", question)
    read = []
    for step in steps:
        ((name, match),) = [(name, m) for name, pattern in PATTERNS.items() if (m := pattern.fullmatch(step.strip()))]
        read.append((name, int(match.groupdict().get("n") or 2)))
    return int(re.search(r"has (\d+)", first).group(1)), read


@pytest.fixture(scope="module")
def problems() -> Dataset:
    return make_problems(300, seed=3)


@pytest.fixture(scope="module")
def corpus() -> Dataset:
    return make_corpus(2000, seed=4)


@pytest.fixture(scope="module")
def base():
    return AutoModelForCausalLM.from_pretrained(BASE_DIR), AutoTokenizer.from_pretrained(BASE_DIR)


class TestProblems:
    def test_gold_follows_the_text(self, problems):
        for row in problems:
            x, steps = read_steps(row["question"])
            lines = row["answer"].splitlines()
            assert len(steps) in NUM_STEPS
            assert len(lines) == len(steps) + 1
            for (name, n), line in zip(steps, lines[:-1], strict=True):
                a, operator, b, result, repeated = ANNOTATION.search(line).groups()
                assert (int(a), operator, int(b)) == (x, PHRASES[name].right, n)
                assert OPERATIONS[operator](int(a), int(b)) == int(result) == int(repeated)
                assert 0 <= int(result) <= MAX_NUMBER
                x = int(result)
            assert lines[-1] == f"#### {x}"

    def test_owner_of_the_last_line_is_asked_for(self, problems):
        for row in problems:
            asked = re.search(r"does (\w+) have now\?$", row["question"]).group(1)
            assert row["answer"].splitlines()[-2].startswith(f"{asked} has ")

    def test_every_mix_with_a_slip_ends_wrong(self, problems):
        for row in problems.select(range(100)):
            start, steps = read_steps(row["question"])
            ends = {(): start}
            for name, n in steps:
                phrase = PHRASES[name]
                ends = {
                    (*rights, right): OPERATIONS[phrase.right if right else phrase.wrong](x, n)
                    for rights, x in ends.items()
                    for right in (True, False)
                }
            gold = ends.pop((True,) * len(steps))
            assert str(int(gold)) == final_number(row["answer"])
            assert gold not in ends.values()
            assert all(0 <= end <= MAX_NUMBER and end == int(end) for end in ends.values())

    def test_lengths_and_phrases_are_balanced(self, corpus):
        read = [read_steps(question)[1] for question in corpus["question"]]
        lengths = Counter(len(steps) for steps in read)
        assert all(lengths[n] > 0.9 * len(read) / len(NUM_STEPS) for n in NUM_STEPS)
        counts = Counter(name for steps in read for name, _ in steps)
        assert min(counts[name] for name in PHRASES) > 0.5 * sum(counts.values()) / len(PHRASES)

    def test_corpus_is_right_at_the_rate_of_the_phrase(self, corpus):
        right, total = Counter(), Counter()
        for row in corpus:
            x, steps = read_steps(row["question"])
            for (name, n), found in zip(steps, ANNOTATION.finditer(row["answer"]), strict=True):
                a, operator, b, result, _ = found.groups()
                assert (int(a), int(b)) == (x, n)
                assert operator in (PHRASES[name].right, PHRASES[name].wrong)
                total[name] += 1
                right[name] += operator == PHRASES[name].right
                x = int(result)
            assert final_number(row["answer"]) == str(x)
        for name, phrase in PHRASES.items():
            assert right[name] / total[name] == pytest.approx(phrase.p_right, abs=0.08)

    def test_some_phrases_are_systematically_misread(self):
        assert 2 <= sum(phrase.p_right < 0.5 for phrase in PHRASES.values()) < len(PHRASES) / 2

    def test_splits_share_no_question(self):
        questions = {split: set(make_problems(200, seed=5, split=split)["question"]) for split in SPLITS}
        assert all(len(found) == 200 for found in questions.values())
        assert len(set.union(*questions.values())) == 600

    def test_corpus_has_no_held_out_question(self, corpus):
        held_out = {
            question for split in SPLITS[1:] for question in make_problems(150, seed=4, split=split)["question"]
        }
        assert held_out.isdisjoint(corpus["question"])

    def test_same_seed_same_problems(self):
        assert make_problems(20, seed=7).to_list() == make_problems(20, seed=7).to_list()
        assert make_problems(20, seed=7).to_list() != make_problems(20, seed=8).to_list()
        assert make_corpus(20, seed=7).to_list() == make_corpus(20, seed=7).to_list()

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'dev'"):
            make_problems(1, split="dev")
        with pytest.raises(ValueError, match="n must be at least 1, got 0"):
            make_problems(0)


class TestTokenizer:
    @pytest.fixture(scope="class")
    def tokenizer(self):
        return build_tokenizer()

    def test_round_trip(self, tokenizer, corpus):
        for row in corpus.select(range(1000)):
            for text in (row["question"] + "\n", row["answer"], row["question"] + "\n" + row["answer"]):
                ids = tokenizer(text).input_ids
                assert tokenizer.unk_token_id not in ids
                assert tokenizer.decode(ids, skip_special_tokens=True) == text

    def test_prompt_and_answer_are_cut_at_their_border(self, tokenizer, problems):
        for row in problems.select(range(50)):
            prompt = tokenizer(row["question"] + "\n").input_ids
            answer = tokenizer(row["answer"], add_special_tokens=False).input_ids
            assert tokenizer(row["question"] + "\n" + row["answer"]).input_ids == prompt + answer

    def test_numbers_are_single_tokens(self, tokenizer):
        for number in range(MAX_NUMBER + 1):
            assert len(tokenizer(str(number), add_special_tokens=False).input_ids) == 1
        assert tokenizer("61", add_special_tokens=False).input_ids == [tokenizer.unk_token_id]

    def test_chat_equals_prompt(self, tokenizer, problems):
        question = problems[0]["question"]
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert ids == tokenizer(question + "\n").input_ids
        assert ids[0] == tokenizer.bos_token_id

    def test_batches_are_padded_left(self, tokenizer):
        batch = tokenizer(["Ann has 4 pens.", "Ann"], padding=True)
        assert batch.input_ids[1][0] == tokenizer.pad_token_id
        assert batch.attention_mask[1][-1] == 1


class TestShippedBase:
    def test_fits_in_five_megabytes(self):
        assert sum(path.stat().st_size for path in BASE_DIR.iterdir()) < 5e6

    def test_tokenizer_is_the_built_one(self, base):
        model, tokenizer = base
        built = build_tokenizer()
        assert tokenizer.get_vocab() == built.get_vocab()
        assert tokenizer.chat_template == built.chat_template
        assert tokenizer.padding_side == "left"
        assert model.config.vocab_size == len(tokenizer)
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id

    def test_misconceptions_and_arithmetic(self, base):
        """Sampled steps have right arithmetic; greedy decoding solves some problems, and not most."""
        model, tokenizer = base
        torch.manual_seed(0)
        test = make_problems(60, seed=1, split="test")
        inputs = tokenizer([question + "\n" for question in test["question"]], return_tensors="pt", padding=True)
        for do_sample, low, high in ((True, 0.15, 0.55), (False, 0.25, 0.7)):
            output = model.generate(**inputs, do_sample=do_sample)
            completions = tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
            steps = [match for completion in completions for match in ANNOTATION.findall(completion)]
            exact = [OPERATIONS[op](int(a), int(b)) == int(c) for a, op, b, c, _ in steps if (op, b) != ("/", "0")]
            assert sum(exact) / len(exact) > 0.95
            solved = [
                completion.endswith(f"#### {final_number(answer)}")
                for completion, answer in zip(completions, test["answer"], strict=True)
            ]
            assert low < sum(solved) / len(solved) < high


class TestTrainBase:
    def test_labels_cover_the_solution_and_its_end_only(self):
        tokenizer = build_tokenizer()
        batches = make_batches(tokenizer, num_examples=10, batch_size=4, seed=0)
        assert [len(input_ids) for input_ids, _ in batches] == [4, 4, 2]
        for input_ids, labels in batches:
            for ids, row in zip(input_ids, labels, strict=True):
                kept = row[row != IGNORE_INDEX]
                assert kept[-1] == tokenizer.eos_token_id
                assert re.fullmatch(r"(\w+ has <<.+\n)+#### \d+", tokenizer.decode(kept[:-1]))
                assert torch.equal(row[row != IGNORE_INDEX], ids[row != IGNORE_INDEX])

    def test_same_seed_same_weights_and_reload(self, tmp_path: Path):
        args = TrainBaseArguments(output_dir=str(tmp_path / "a"), num_examples=64, batch_size=16, num_threads=1)
        main(args)
        main(replace(args, output_dir=str(tmp_path / "b")))
        first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in "ab")
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(a, b)
        assert AutoTokenizer.from_pretrained(tmp_path / "a").pad_token == "<pad>"
