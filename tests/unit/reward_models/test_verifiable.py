# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Verifiable rewards: where answers are found, which are equal, what cannot hang, and the labelled data of GSM8K."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from reward_models import extract_answer, format_reward, get_length_reward, gsm8k_reward, math_reward, math_worker
from reward_models.answers import extract_expression, last_boxed, normalize_number
from reward_models.verifiable import completion_text

SOLVERS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
# (row, solver) of the labelled solutions on which a reward and the label differ, with the reason. None is known.
KNOWN_DISAGREEMENTS: dict[tuple[int, str], str] = {}


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("72", "72"),
        ("1,234,567", "1234567"),
        ("$1,200.50", "1200.5"),
        ("-$12", "-12"),
        ("$-12", "-12"),
        ("\u22123", "-3"),
        ("+4", "4"),
        ("12.00", "12"),
        ("0.50", "0.5"),
        (".5", "0.5"),
        ("007", "7"),
        ("-0", "0"),
        ("1200", "1200"),
        ("25%", "25"),
        ("25\\%", "25"),
        ("18.", "18"),
        ("18 clips, in May.", "18"),
        ("72 a day", "72"),
        ("5m", "5"),
        ("**72**", "72"),
        ("1/2", "0.5"),
        ("2/6", "1/3"),
        ("-\\frac{1}{3}", "-1/3"),
        ("\\dfrac{10}{4}", "2.5"),
        ("1\\frac{1}{2}", "1.5"),
        ("-1 1/2", "-1.5"),
        ("\\$1{,}000", "1000"),
        ("12\\text{ dollars}", "12"),
        ("60^\\circ", "60"),
        ("3 + 4 = 7", "7"),
        ("x = -7", "-7"),
        ("12, because 3 + 4 = 7", "12"),
        ("2x + 1", None),
        ("2x", None),
        ("2\\pi", None),
        ("10+John's age", None),
        ("5 - 3", None),
        ("1, 2", None),
        ("12:30", None),
        ("5/0", None),
        ("1e5", "100000"),
        ("1e5000", None),
        ("1000,00", None),
        ("three", None),
        ("", None),
    ],
)
def test_normalize_number(text: str, number: str | None) -> None:
    assert normalize_number(text) == number


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("48 + 24 = <<48+24=72>>72\n#### 72", "72"),
        ("#### 72\n\nQuestion: another\n#### 5", "72"),
        ("#### 1. Find the price\nIt is 3.\nThe answer is 7", "7"),
        ("#### Result\nIt is \\boxed{8}.", "8"),
        ("\\boxed{1} or \\boxed{2}", "1, 2"),
        ("\\boxed{3} #### 4", "4"),
        ("\\boxed{\\frac{x}{2}}", "\\frac{x}{2}"),
        ("\\boxed{2", None),
        ("\\boxed{} so the answer is 3", "3"),
        ("The answer is 5. Wait, the answer is **6**.", "6"),
        ("The answer is 7. That answer is correct.", "7"),
        ("THE FINAL ANSWER IS: $18.", "18"),
        ("the answer is 7\nA: 8", "8"),
        ("Thus\nA: 1,000", "1000"),
        ("Thus\n**Answer:** 8 apples", "8"),
        ("A: 5 is wrong\nI stop", None),
        ("First, 48 / 2 = 24", None),
        ("", None),
    ],
)
def test_extract_answer(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("#### 4 but \\boxed{x^{2}}", "x^{2}"),
        ("So\n#### 1,000", "1000"),
        ("So\n#### x + 1", "x + 1"),
        ("#### Step one\nand more", None),
        ("The answer is $2x + 1$.", "2x + 1"),
        ("nothing", None),
    ],
)
def test_extract_expression(text: str, expression: str | None) -> None:
    assert extract_expression(text) == expression


def test_last_boxed_matches_braces() -> None:
    assert last_boxed("\\boxed{\\text{a}_{1}} and {}") == "\\text{a}_{1}"
    assert last_boxed("none") is None


@pytest.mark.parametrize(
    "text",
    [
        "#### " * 20_000,
        "####\n" * 20_000,
        "\\boxed{" * 14_000,
        "\\boxed{" + "{" * 100_000,
        "answer is " * 10_000,
        "answer" + " " * 100_000,
        "#### " + "\\frac{1" * 15_000,
        "#### " + "1 " * 50_000,
        " " * 100_000 + "x",
        "answer: " + "*" * 100_000,
    ],
)
def test_extraction_is_linear_in_hostile_text(text: str) -> None:
    start = time.perf_counter()
    extract_expression(text)
    assert time.perf_counter() - start < 2.0


def test_gsm8k_reward_takes_both_completion_forms() -> None:
    texts = ["half is 24\n#### 24", "#### 24.0", "#### 25", "no idea"]
    for answer in ("... = 24\n#### 24", "24", "$24"):
        assert gsm8k_reward(texts, answer=[answer] * 4) == [1.0, 1.0, 0.0, 0.0]
    trainer_arguments: dict[str, Any] = {"trainer_state": None, "log_metric": None, "question": ["?"] * 4}
    logged: dict[str, list[str]] = {}
    rewards = gsm8k_reward(
        prompts=["?"] * 4,
        completions=[chat(text) for text in texts],
        completion_ids=[[0]] * 4,
        answer=["#### 24", "#### 24", None, "#### 24"],
        log_extra=logged.__setitem__,
        **trainer_arguments,
    )
    assert rewards == [1.0, 1.0, None, 0.0]
    assert logged == {"extracted_answer": ["24", "24", "25", "[none]"]}


def test_gsm8k_reward_works_without_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_worker, "find_spec", lambda name: None)
    math_worker.compare.cache_clear()
    assert gsm8k_reward(["#### 1/2"], answer=["0.5"]) == [1.0]
    with pytest.raises(ImportError, match=r'pip install "vgf-llm\[math\]"'):
        math_reward(["\\boxed{1}"], answer=["1"])


@pytest.mark.parametrize("reward", [gsm8k_reward, math_reward])
def test_bad_columns(reward: Any) -> None:
    with pytest.raises(ValueError, match=r"column 'answer'.*\['gold', 'prompts'\]"):
        reward(completions=["#### 1"], prompts=["?"], gold=["1"])
    with pytest.raises(ValueError, match="'answer' has 2 rows for 1 completions"):
        reward(completions=["#### 1"], answer=["1", "1"])
    with pytest.raises(TypeError, match=r"strings or lists of messages.*int"):
        reward(completions=[3], answer=["1"])


def test_gold_that_cannot_be_read_is_shown() -> None:
    with pytest.raises(ValueError, match=r"'x \+ 1' holds no number.*math_reward"):
        gsm8k_reward(["#### 1"], answer=["x + 1"])
    with pytest.raises(ValueError, match=r"'so \\\\boxed\{x\}' holds no number"):
        gsm8k_reward(["#### 1"], answer=["so \\boxed{x}"])
    with pytest.raises(ValueError, match=r"'@@@' is no expression that math-verify can parse"):
        math_reward(["no answer"], answer=["@@@"])


@pytest.mark.parametrize(
    ("completion", "gold", "reward"),
    [
        ("so \\boxed{\\frac{2}{4}}", "\\frac{1}{2}", 1.0),
        ("so \\boxed{0.5}", "\\frac{1}{2}", 1.0),
        ("so \\boxed{1+x}", "x+1", 1.0),
        ("so \\boxed{x-1}", "x+1", 0.0),
        ("the answer is $\\sqrt{8}$.", "2\\sqrt{2}", 1.0),
        ("#### 1,000", "Then it is\n#### 1000", 1.0),
        ("so \\boxed{4}", "Then it is \\boxed{4}.", 1.0),
        ("so \\boxed{\\frac{1}{}", "1", 0.0),
        ("so \\boxed{@@@}", "1", 0.0),
        ("so 4", "4", 0.0),
        ("so \\boxed{" + "1" * 1001 + "}", "1", 0.0),
        ("", "4", 0.0),
    ],
)
def test_math_reward(completion: str, gold: str, reward: float) -> None:
    assert math_reward([completion], answer=[gold]) == [reward]
    assert math_reward([chat(completion)], solution=[gold]) == [reward]


def test_math_reward_prefers_answer_and_skips_rows() -> None:
    assert math_reward(["\\boxed{1}"] * 2, answer=["1", None], solution=["2", "2"]) == [1.0, None]
    with pytest.raises(ValueError, match="timeout_seconds must be positive"):
        math_reward(["\\boxed{1}"], answer=["1"], timeout_seconds=0)


def test_slow_expressions_are_given_up_and_the_next_one_is_judged() -> None:
    tower = "\\boxed{9^{9^{9^{9}}}}"
    start = time.perf_counter()
    assert math_reward([tower, "\\boxed{4}"], answer=["4", "4"], timeout_seconds=0.5) == [0.0, 1.0]
    assert time.perf_counter() - start < 15.0
    with pytest.raises(ValueError, match="took too long to parse"):
        math_reward(["\\boxed{4}"], answer=["(" * 450 + "4" + ")" * 450], timeout_seconds=0.02)


@pytest.mark.parametrize("text", ["(" * 50_000 + "1" + ")" * 50_000, "\\boxed{" + "9^" * 50_000 + "9}", "9" * 100_000])
def test_very_long_answers_count_zero_at_once(text: str) -> None:
    start = time.perf_counter()
    assert math_reward([text, "The answer is " + text], answer=["4", "4"]) == [0.0, 0.0]
    assert time.perf_counter() - start < 5.0


def test_math_reward_in_a_thread_leaves_the_alarm_alone() -> None:
    handler = signal.getsignal(signal.SIGALRM)
    rewards: list[Any] = []
    thread = threading.Thread(
        target=lambda: rewards.append(math_reward(["\\boxed{10^{10^{10}}}"], answer=["5"], timeout_seconds=0.3))
    )
    thread.start()
    thread.join(timeout=30)
    assert rewards == [[0.0]]
    assert signal.getsignal(signal.SIGALRM) is handler


def test_model_output_is_not_evaluated(tmp_path: Path) -> None:
    target = tmp_path / "made"
    code = f"__import__('os').mkdir('{target}')"
    for text in (f"\\boxed{{{code}}}", f"The answer is {code}", f"#### {code}"):
        assert math_reward([text], answer=["1"]) == gsm8k_reward([text], answer=["1"]) == [0.0]
    assert not target.exists()


def test_a_worker_that_died_is_replaced() -> None:
    assert math_worker.compare("1", "1.0", 5.0) == "correct"
    process = math_worker._WORKER._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert math_worker.compare("1", "1.00", 5.0) == "correct"


def test_a_worker_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text("print('cannot import math_verify (broken)')", encoding="utf-8")
    monkeypatch.setattr(math_worker, "__file__", str(script))
    with pytest.raises(RuntimeError, match=r"did not start: cannot import math_verify \(broken\)"):
        math_worker._Worker().ask("1", "1", 5.0)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("3 + 4 = <<3+4=7>>7\n#### 7", 1.0),
        ("#### $-1,200.50\n", 1.0),
        ("7", 0.0),
        ("so #### 7", 0.0),
        ("#### 7 apples", 0.0),
        ("#### 7\nDone.", 0.0),
        ("#### 6\n#### 7", 0.0),
        ("", 0.0),
    ],
)
def test_format_reward(text: str, reward: float) -> None:
    assert format_reward([text, chat(text)], prompts=["?", "?"]) == [reward, reward]


def test_length_reward() -> None:
    reward = get_length_reward(10, soft_length=4)
    ids = [[0] * length for length in (6, 8, 10, 11)]
    assert reward(prompts=["?"] * 4, completions=[""] * 4, completion_ids=ids) == [0.0, -0.5, -1.0, -1.0]
    for soft_length in (0, 11):
        with pytest.raises(ValueError, match="soft_length must be between 1 and max_completion_length = 10"):
            get_length_reward(10, soft_length)


def test_completion_text() -> None:
    assert completion_text([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]) == "b"
    assert (
        completion_text([{"role": "assistant", "content": [{"type": "text", "text": "c"}, {"type": "image"}]}]) == "c"
    )
    assert completion_text([{"role": "assistant", "content": None, "tool_calls": []}]) == completion_text([]) == ""


def test_importing_the_rewards_imports_neither_sympy_nor_math_verify() -> None:
    import subprocess

    code = "import sys, reward_models; print([m for m in ('sympy', 'math_verify', 'torch') if m in sys.modules])"
    root = Path(math_worker.__file__).parents[1]
    output = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.data
@pytest.mark.parametrize("split", ["train", "test"])
def test_all_gold_solutions_of_gsm8k_are_right(data_dir: Path, split: str) -> None:
    golds = [row["answer"] for row in read_jsonl(data_dir / "gsm8k" / f"{split}.jsonl")]
    start = time.process_time()
    assert gsm8k_reward(golds, answer=golds) == [1.0] * len(golds)
    assert time.process_time() - start < 2.0
    bare = [gold.split("#### ")[1] for gold in golds]
    assert gsm8k_reward(golds, answer=bare) == [1.0] * len(golds)
    assert format_reward(golds) == [1.0] * len(golds)
    assert math_reward(golds, answer=bare) == [1.0] * len(golds)


@pytest.mark.data
@pytest.mark.parametrize("reward", [gsm8k_reward, math_reward])
@pytest.mark.parametrize("marker", ["A: ", "#### "])
def test_agreement_with_the_labelled_solutions_of_gsm8k(data_dir: Path, reward: Any, marker: str) -> None:
    rows = read_jsonl(data_dir / "gsm8k_solutions" / "example_model_solutions.jsonl")
    golds = [row["ground_truth"].rpartition("\nA: ")[2] for row in rows]
    judged, disagreements = 0, {}
    for solver in SOLVERS:
        solutions = [f"\n{marker}".join(row[solver]["solution"].rsplit("\nA: ", 1)) for row in rows]
        for index, verdict in enumerate(reward(solutions, answer=golds)):
            judged += 1
            if bool(verdict) != rows[index][solver]["is_correct"]:
                disagreements[index, solver] = solutions[index][-80:]
    assert judged == 5276
    assert disagreements.keys() == KNOWN_DISAGREEMENTS.keys(), disagreements


@pytest.mark.data
def test_all_gold_solutions_of_math500_are_right(data_dir: Path) -> None:
    rows = read_jsonl(data_dir / "math500" / "test.jsonl")
    golds = [row["answer"] for row in rows]
    assert math_reward([row["solution"] for row in rows], answer=golds) == [1.0] * 500
