# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Tests of the harder embedded task: the generator, the slips of its corpus, the tokenizer and the shipped base."""

import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes import embedded_math
from recipes.embedded_chains import BASE_DIR, make_corpus, make_problems
from recipes.embedded_chains.problems import (
    MAX_NUMBER,
    NUM_STEPS,
    P_RIGHT,
    P_RIGHT_MISTAKEN,
    SHARE_MISTAKEN,
    _draw_chain,
    p_right,
)
from recipes.embedded_chains.train_base import MAX_NEW_TOKENS, TrainBaseArguments, load_start, main
from recipes.embedded_math.problems import OBJECTS, PHRASES, SPLITS
from recipes.embedded_math.tokenizer import build_tokenizer
from tests.unit.recipes.test_embedded_math import ANNOTATION, OPERATIONS, final_number, read_steps


@pytest.fixture(scope="module")
def corpus() -> Dataset:
    return make_corpus(1500, seed=4)


def thing_of(question: str) -> str:
    return re.search(r"How many (\w+) does", question).group(1)


def test_gold_follows_the_text() -> None:
    for row in make_problems(200, seed=3):
        x, steps = read_steps(row["question"])
        lines = row["answer"].splitlines()
        assert len(lines) - 1 == len(steps) and len(steps) in NUM_STEPS
        for (name, n), line in zip(steps, lines[:-1], strict=True):
            a, operator, b, result, repeated = ANNOTATION.search(line).groups()
            assert (int(a), operator, int(b)) == (x, PHRASES[name].right, n)
            assert OPERATIONS[operator](x, n) == int(result) == int(repeated)
            assert 0 <= int(result) <= MAX_NUMBER
            wrong = OPERATIONS[PHRASES[name].wrong](x, n)
            assert wrong == int(wrong) and 0 <= wrong <= MAX_NUMBER and wrong != int(result)
            x = int(result)
        assert lines[-1] == f"#### {x}"


def test_a_quarter_of_the_pairs_of_phrase_and_thing_is_mistaken() -> None:
    found = Counter(p_right(phrase, thing) for phrase in PHRASES.values() for thing in OBJECTS)
    assert set(found) == {P_RIGHT, P_RIGHT_MISTAKEN}
    assert abs(found[P_RIGHT_MISTAKEN] / found.total() - SHARE_MISTAKEN) < 0.05


def test_steps_of_the_corpus_slip_in_two_ways_at_their_rates(corpus: Dataset) -> None:
    """Every step goes on from the count before it; its operation and its result are wrong as often as stated."""
    operations, tens, solved = {P_RIGHT: [], P_RIGHT_MISTAKEN: []}, {"+-": [], "*/": []}, []
    golds = {row["question"]: row["answer"] for row in make_problems(1500, seed=4)}
    for row in corpus:
        x, steps = read_steps(row["question"])
        right_so_far = True
        for (name, n), line in zip(steps, row["answer"].splitlines(), strict=False):
            a, operator, b, result, _ = ANNOTATION.search(line).groups()
            assert int(a) == x and int(b) in (n, 0)
            phrase = PHRASES[name]
            exact = OPERATIONS[operator](x, int(b))
            assert int(result) - exact in (-10, 0, 10)
            if right_so_far:  # later both operations may be out of range
                assert operator in (phrase.right, phrase.wrong)
                operations[p_right(phrase, thing_of(row["question"]))].append(operator == phrase.right)
                tens["+-" if operator in "+-" else "*/"].append(int(result) != exact)
            right_so_far &= operator == phrase.right and int(result) == exact
            x = int(result)
        assert final_number(row["answer"]) == str(x)
        solved.append(final_number(row["answer"]) == final_number(golds[row["question"]]))
    for rate, rights in operations.items():
        assert abs(sum(rights) / len(rights) - rate) < 0.04
    assert 0.004 < sum(tens["+-"]) / len(tens["+-"]) < 0.02
    assert 0.02 < sum(tens["*/"]) / len(tens["*/"]) < 0.08
    assert 0.15 < sum(solved) / len(solved) < 0.27


def test_a_step_with_no_result_leaves_the_count() -> None:
    rng = random.Random(0)
    text = "\n".join(_draw_chain(rng).solution(rng) for _ in range(400))
    left = re.findall(r"<<(\d+)\+0=(\d+)>>", text)
    assert left and all(int(result) - int(before) in (-10, 0, 10) for before, result in left)
    assert sum(result == before for before, result in left) > 0.9 * len(left)


def test_splits_share_no_question_and_seeds_are_reproducible() -> None:
    asked = [set(make_problems(150, seed=1, split=split)["question"]) for split in SPLITS]
    assert all(len(questions) == 150 for questions in asked)
    assert not asked[0] & asked[1] and not asked[0] & asked[2] and not asked[1] & asked[2]
    assert make_problems(5, seed=2)[:] == make_problems(5, seed=2)[:]
    with pytest.raises(ValueError, match="split must be one of"):
        make_problems(1, split="dev")


def test_every_text_is_known_to_the_tokenizer_and_fits(corpus: Dataset) -> None:
    tokenizer = build_tokenizer()
    for row in corpus.select(range(300)):
        prompt = tokenizer(row["question"] + "\n").input_ids
        answer = tokenizer(row["answer"], add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in prompt + answer
        assert len(answer) < 116 and len(prompt) + MAX_NEW_TOKENS <= tokenizer.model_max_length
        assert tokenizer.decode(answer) == row["answer"]


def test_the_base_ships_small_and_loads() -> None:
    assert sum(path.stat().st_size for path in BASE_DIR.iterdir()) < 5e6
    model, tokenizer = AutoModelForCausalLM.from_pretrained(BASE_DIR), AutoTokenizer.from_pretrained(BASE_DIR)
    assert model.config.vocab_size == len(tokenizer) == len(build_tokenizer())
    assert model.generation_config.max_new_tokens == MAX_NEW_TOKENS
    prompt = make_problems(1, seed=0, split="test")["question"][0] + "\n"
    ids = tokenizer(prompt, return_tensors="pt")
    text = tokenizer.decode(model.generate(**ids, do_sample=False)[0, ids["input_ids"].shape[1] :], True)
    assert len(ANNOTATION.findall(text)) == len(read_steps(prompt)[1])
    assert re.search(r"#### \d+$", text)


def test_the_script_trains_and_saves(tmp_path: Path) -> None:
    main(TrainBaseArguments(output_dir=str(tmp_path), num_examples=8, batch_size=4, warmup_steps=1))
    trained = AutoModelForCausalLM.from_pretrained(tmp_path)
    start = load_start(str(embedded_math.BASE_DIR))
    assert trained.num_parameters() == start.num_parameters() < 1_000_000
    assert not torch.equal(trained.lm_head.weight, start.lm_head.weight)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == build_tokenizer().get_vocab()
