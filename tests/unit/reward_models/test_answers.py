# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The forms in which models write a final answer: a right one is paid in each, a wrong one and a hedge in none."""

import math
import time
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_models import math_worker
from reward_models.answers import extract_answer, extract_expression, last_boxed, normalize_number
from reward_models.verifiable import gsm8k_reward, math_reward

# completion, gold answer
RIGHT = [
    # GSM8K's own form
    ("6 * 7 = <<6*7=42>>42\n#### 42", "42"),
    ("#### $1,250", "1250"),
    ("#### 42 marbles.", "42"),
    ("#### -7", "-7"),
    ("#### \u22127", "-7"),
    ("#### \u20137", "-7"),
    ("#### (-7)", "-7"),
    ("#### 2 500", "2500"),
    ("#### 2\u202f500", "2500"),
    ("#### 2\\,500", "2500"),
    ("#### EUR 42", "42"),
    ("#### 6 x 7 = 42", "42"),
    ("#### 6 \\times 7 = 42", "42"),
    ("#### 40 + 2 = $42", "42"),
    ("#### total = 42", "42"),
    ("#### The answer is 42", "42"),
    ("#### \uff14\uff12", "42"),
    ("#### 4\u00bd", "4.5"),
    ("#### \u00bd", "0.5"),
    ("#### 42\u200b", "42"),
    ("####\n42", "42"),
    # boxes
    ("So we get \\boxed{42}.", "42"),
    ("First \\boxed{40}, then two more: \\boxed{42}", "42"),
    ("\\boxed{\\text{42 marbles}}", "42"),
    ("\\boxed{42\\text{ marbles}}", "42"),
    ("\\boxed{\\$1{,}250.00}", "1250"),
    ("\\boxed{\\frac{1}{4}}", "0.25"),
    ("\\boxed{\\frac14}", "1/4"),
    ("\\boxed{\\dfrac{-3}{6}}", "-0.5"),
    ("\\boxed{1\\frac{1}{2}}", "1.5"),
    ("\\boxed{\\boxed{42}}", "42"),
    ("\\boxed{x = 42}", "42"),
    ("\\fbox{42}", "42"),
    ("$\\boxed 42$", "42"),
    ("\\boxed{42^\\circ}", "42"),
    ("\\boxed{30\\%}", "30"),
    ("\\[ \\boxed{42} \\]\n\nLet me know if you have questions about 7 or 8!", "42"),
    ("\\boxed{\\text{The answer is } 42}", "42"),
    # phrases
    ("The answer is 42.", "42"),
    ("the final answer is: **42**", "42"),
    ("Therefore, the correct answer is $42$.", "42"),
    ("So the answer is\n\n42", "42"),
    ("The answer is:\n\\[ 42 \\]", "42"),
    ("The final answer is\n\n$$42$$", "42"),
    ("The answer to the question is 42 km/h.", "42"),
    ("The answer is approximately 3.14.", "3.14"),
    ("The answer is 5. Wait, no. The answer is 42.", "42"),
    ("The answer is 42. That answer is correct.", "42"),
    ("The answer is that Tom has $42 left.", "42"),
    ("The answer is 1.5e3.", "1500"),
    ("The answer is $3 \\times 10^{4}$.", "30000"),
    ("The answer is 2.5 million dollars.", "2500000"),
    ("The answer is 42. Then 3 people go home.", "42"),
    ("So 42 is the answer.", "42"),
    ("The answer is 1'200.", "1200"),
    ("The answer is negative 42.", "-42"),
    ("The answer is 42\u00b0C.", "42"),
    ("The answer is:\n- 42", "42"),
    ("The final result is 42.", "42"),
    ("\u7b54\u6848\u662f42\u3002", "42"),
    ("Final Answer: The final answer is $42$. I hope it is correct.", "42"),
    # labels
    ("Answer: 42", "42"),
    ("**Answer:** $42", "42"),
    ("Answer:\n42", "42"),
    ("### Final Answer\n\n**42** apples", "42"),
    ("**Final Answer**\n\n\\(42\\)", "42"),
    ("Answer: 42\n\nExplanation: 6 * 7 = 42, and not 43.", "42"),
    ("Answer: Tom pays **$42** for 6 books.", "42"),
    ("Answer: Tom pays $42.", "42"),
    ("6 * 7 is it.\nA: 42", "42"),
    ("A: 42\n\nQ: How many are 2 and 3?\nA: 5", "42"),
    ("Answer - 42", "42"),
    # reasoning models
    ("<think>6 * 7... the answer is 41? no</think>\n<answer>42</answer>", "42"),
    ("I add 40 and 2.</think>\n\nThe answer is 42.", "42"),
    ("<reasoning>6 * 7</reasoning>\n<answer>\n$42\n</answer>", "42"),
    ("<answer>42", "42"),
    ("<final_answer>42</final_answer>", "42"),
    ("<answer>The answer is \\boxed{42}</answer>", "42"),
    ("<answer>Tom has 42 marbles.</answer>", "42"),
    # nothing but the number, and a last line in bold
    ("42", "42"),
    (" $42.00 ", "42"),
    ("= 42", "42"),
    ("He has 6 boxes of 7.\n\nTom has **42** marbles.", "42"),
    ("He has 6 boxes of 7.\n\n**42**", "42"),
]
WRONG = [
    ("", "42"),
    ("I do not know.", "42"),
    ("First, 6 * 7 = 42", "42"),  # a step that a cut-off completion ends in
    ("Tom has 42 boxes, and", "42"),
    ("#### 6 x 7 = 42", "6"),
    ("#### 42\u00bd", "42"),
    ("#### 42 and a half", "42"),
    ("#### 42 to 45", "42"),
    ("#### 42-45", "42"),
    ("#### 42x + 1", "42"),
    ("#### 42, 43", "42"),
    ("#### 42 thousand", "42"),
    ("#### 42.5.1", "42.5"),
    ("#### 5\u00b2", "5"),
    ("#### 4 feet 2 inches", "4"),
    ("#### 4:20", "4"),
    ("#### 1. Find the price of 2 books", "1"),
    ("#### Step 2: 6 * 7 = 42\nThe answer is 43.", "42"),
    ("\\boxed{41} or \\boxed{42}", "42"),
    ("\\boxed{41}, \\boxed{42}", "41"),
    ("\\boxed{42", "42"),
    ("\\boxed{41 = 42}", "42"),
    ("\\boxed{x \\leq 42}", "42"),
    ("\\boxed{x \\neq 42}", "42"),
    ("\\boxed{\\pm 42}", "42"),
    ("\\boxed{42!} \\boxed{x}", "42"),
    ("\\boxed{42\\pi}", "42"),
    ("\\boxed{40 \\quad 42}", "42"),
    ("\\boxed{41 \\text{ or } 42}", "42"),
    ("The answer is 41 or 42.", "42"),
    ("The answer is between 41 and 42.", "42"),
    ("The answer is not 42.", "42"),
    ("The answer isn't 42.", "42"),
    ("The answer is minus 42.", "42"),
    ("The answer is twice 42.", "42"),
    ("The answer is over 42.", "42"),
    ("The answer is 42 less than 50.", "42"),
    ("The answer is at least 42.", "42"),
    ("The answer is less than 42.", "42"),
    ("The answer is x + 42.", "42"),
    ("The answer is x <= 42.", "42"),
    ("The answer is 42 more than 3, so the answer is 45.", "42"),
    ("The answer is 42. Wait, the answer is 43.", "42"),
    ("The answer is 42, no: the answer is 43 or 44.", "42"),
    ("42 is not the answer.", "42"),
    ("<think>The answer is 42.</think>\nThe answer is 43.", "42"),
    ("<think>The answer is 42.", "42"),
    ("<answer>42</answer> I mean <answer>43</answer>", "42"),
    ("A: 42\n\nQ: How many are 2 and 3?\nA: 5", "5"),
    ("#### 42\nQuestion: What is next?\n#### 43", "43"),
    ("**Step 1:** 40 + 2 = **42** and **43**.", "42"),
]


@pytest.mark.parametrize(("completion", "gold"), RIGHT)
def test_right_answers_are_paid(completion: str, gold: str) -> None:
    assert gsm8k_reward([completion], answer=[gold]) == [1.0]
    assert gsm8k_reward([completion], answer=["31337"]) == [0.0]


@pytest.mark.parametrize(("completion", "gold"), WRONG)
def test_wrong_answers_and_hedges_are_not_paid(completion: str, gold: str) -> None:
    assert gsm8k_reward([completion], answer=[gold]) == [0.0]


@pytest.mark.parametrize(
    "gold",
    [
        42,
        42.0,
        np.int64(42),
        np.float32(42),
        Decimal("42.00"),
        Fraction(84, 2),
        "42",
        "42.0",
        "$42.",
        "#### 42",
        "12 #### 42",
        "6 * 7 = <<6*7=42>>42\n#### 42",
        "so \\boxed{42}",
        "The answer is 42.",
        "<answer>42</answer>",
    ],
    ids=repr,
)
def test_golds_come_in_the_same_forms(gold: Any) -> None:
    assert gsm8k_reward(["#### 42", "12 #### 43", "#### 12"], answer=[gold] * 3) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("reward", [gsm8k_reward, math_reward])
@pytest.mark.parametrize(
    ("gold", "error"),
    [(True, TypeError), (["42"], TypeError), ({"a": 1}, TypeError), (b"42", TypeError), (math.nan, ValueError), ("", ValueError)],
    ids=repr,
)
def test_golds_that_are_none_are_named(reward: Any, gold: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="gold answer"):
        reward(["#### 42"], answer=[gold])


@pytest.mark.parametrize(
    ("completion", "gold", "reward"),
    [
        ("<answer>$x + 1$</answer>", "1 + x", 1.0),
        ("The answer is:\n\\[ 2\\sqrt{2} \\]", "\\sqrt{8}", 1.0),
        ("Answer:\n$\\frac{x}{2}$", "x/2", 1.0),
        ("\\boxed{\\frac13 \\approx 0.333}", "\\frac{1}{3}", 1.0),
        ("\\boxed{7 \\text{ apples}}", "7", 1.0),
        ("\\boxed{7,000}", "7000", 1.0),
        ("\\boxed{700\\%}", "7", 1.0),
        ("\\boxed{5 = 7}", "7", 0.0),
        ("\\boxed{1=2=3=4=5=6=7}", "7", 0.0),
        ("\\boxed{7 \\approx 5}", "7", 0.0),
        ("\\boxed{7\\%}", "7", 0.0),
        ("\\boxed{7!}", "7", 0.0),
        ("\\boxed{7i}", "7", 0.0),
        ("\\boxed{5} or \\boxed{7}", "7", 0.0),
        ("\\boxed{\\int_0^7 1 dx}", "7", 0.0),
        ("\\boxed{\\lim_{x \\to 7} x}", "7", 0.0),
        ("\\boxed{\\sum_{i=1}^{7} 1}", "7", 0.0),
    ],
)
def test_expressions(completion: str, gold: str, reward: float) -> None:
    assert math_reward([completion], answer=[gold]) == [reward]


def test_a_percent_sign_is_a_unit_where_the_prompt_asks_for_a_percentage() -> None:
    prompts = ["By what percent does it grow?", [{"role": "user", "content": "By how many % does it grow?"}], "What is x?"]
    assert math_reward(["\\boxed{7\\%}"] * 3, answer=[7] * 3, prompts=prompts) == [1.0, 1.0, 0.0]


def test_a_batch_has_a_time_limit_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    assert math_worker.compare("1", "1.0", 5.0) == "correct"  # the worker has started
    towers = [f"\\boxed{{9^{{9^{{9^{{{top}}}}}}}}}" for top in range(20, 29)]
    start = time.perf_counter()
    rewards = math_reward([*towers, "\\boxed{4}"], answer=["4"] * 10, timeout_seconds=0.3, batch_timeout_seconds=0.9)
    assert time.perf_counter() - start < 5.0
    assert rewards[:2] == [0.0, 0.0] and rewards[-2:] == [None, 1.0], "what equals the gold text needs no comparison"
    assert "gives no reward to" in caplog.text and "`batch_timeout_seconds` (0.9)" in caplog.text
    with pytest.raises(ValueError, match="batch_timeout_seconds must be positive"):
        math_reward(["\\boxed{1}"], answer=["1"], batch_timeout_seconds=0)


def test_comparisons_that_do_not_end_cost_their_time_limit_and_no_start() -> None:
    assert math_worker.compare("1", "1.0", 5.0) == "correct"
    worker = math_worker._WORKER._process
    start = time.perf_counter()
    for top in range(30, 34):
        assert math_worker.compare("4", f"9^{{9^{{9^{{{top}}}}}}}", 0.2) == "timeout"
    assert time.perf_counter() - start < 3.0
    assert math_worker.compare("1", "1.000", 5.0) == "correct" and math_worker._WORKER._process is worker


PIECES = [*"0123456789{}()[]^_=<>,./*+-%!$#&|xyzi \n", "\\frac", "\\boxed{", "\\text{", "\\sqrt", "####", "answer is ",
          "Answer:", "<answer>", "</answer>", "<think>", "</think>", "**", "\\begin{cases}", "\\\\", "\\le", "\u0663",
          "\u00bd", "\u00b2", "\u2212", "\x00", "\ud800", "\u202e", "e9", "or", "10^{9}"]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
@settings(max_examples=500, deadline=1000, derandomize=True)
def test_any_text_is_read(text: str) -> None:
    for found in (extract_answer(text), extract_expression(text), last_boxed(text), normalize_number(text)):
        assert found is None or isinstance(found, str)
    assert gsm8k_reward([text], answer=["31337"]) == [0.0]


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
@settings(max_examples=200, deadline=1000, derandomize=True)
def test_equal_numbers_are_equal_in_every_form(number: Decimal) -> None:
    gold = str(number)
    top, bottom = Fraction(number).as_integer_ratio()
    forms = [f"{number:,}", f"{number:,}".replace(",", " "), f"{number:e}", f"\\frac{{{top}}}{{{bottom}}}", f"${number}"]
    for form in forms:
        assert gsm8k_reward([f"#### {form}", f"\\boxed{{{form}}}", f"Answer: {form}."], answer=[gold] * 3) == [1.0] * 3
    assert gsm8k_reward([f"#### {number + 1}"], answer=[gold]) == [0.0]
