# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
r"""math-verify in a process of its own, which the operating system ends when a comparison takes too long.

math-verify limits its time by a handler of SIGALRM. That works in the main thread alone, takes the alarm away from
whoever else uses it, and cannot interrupt a single call into compiled code such as GMP's, so that a tower of powers in
one completion can stop a training run. Here the alarm keeps its default action: it ends the process that compares,
whatever that is doing. The worker, which has imported the libraries and compares nothing itself, forks another one in
milliseconds. This file is both sides: imported, the client; run, the worker.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal, TextIO, get_args

Verdict = Literal["correct", "wrong", "bad_gold", "timeout"]

# Enough for sympy many times over; an expression that asks for more fails there and not in the training process.
WORKER_MEMORY_BYTES = 4 * 2**30


@lru_cache(maxsize=16384)
def compare(gold: str, answer: str | None, timeout_seconds: float) -> Verdict:
    r"""Asks math-verify whether an answer equals the gold one, within a time limit that always holds.

    Verdicts are remembered: completions of one prompt share most of their answers.

    Args:
        gold: the correct expression, LaTeX or plain.
        answer: the expression to judge; None only checks that the gold one parses.
        timeout_seconds: seconds until the comparison is given up.

    Returns:
        `correct`, `wrong` (also for an answer that does not parse, or on which math-verify fails), `bad_gold` when the
        gold expression does not parse, or `timeout`.

    Raises:
        ImportError: math-verify is not installed.
        RuntimeError: the worker process cannot start.

    Example:
        >>> compare(r"\frac{1}{2}", "0.5", 5.0), compare("4", "9^{9^{9^{9}}}", 0.5)
        ('correct', 'timeout')
    """
    if find_spec("math_verify") is None:
        raise ImportError(
            'math_reward compares expressions with math-verify, which is not installed: pip install "vgf-llm[math]". '
            "gsm8k_reward, for answers that are numbers, works without it."
        )
    return _WORKER.ask(gold, answer, timeout_seconds)


class _Worker:
    """The client side: starts the process when it is needed and replaces it when it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, gold: str, answer: str | None, timeout_seconds: float) -> Verdict:
        request = json.dumps({"gold": gold, "answer": answer, "timeout_seconds": timeout_seconds})
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
            reply = _exchange(self._process, request)
            if reply in get_args(Verdict):
                return reply  # type: ignore[return-value]
            self._process.kill()  # it ended in the middle
            self._process.wait()
            return "wrong"

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _start(self) -> "subprocess.Popen[str]":
        # Not multiprocessing: forking a process with threads is unsafe, and spawning imports the user's script again.
        # A session of its own keeps Ctrl-C from reaching the worker.
        process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        greeting = process.stdout.readline().strip() if process.stdout else ""
        if greeting != "ready":
            process.kill()
            raise RuntimeError(f"The math-verify worker did not start: {greeting or 'it ended without a word'}.")
        return process


def _exchange(process: "subprocess.Popen[str]", request: str) -> str:
    """One line to the worker and one back; empty when the worker has ended."""
    assert process.stdin is not None and process.stdout is not None  # both are pipes
    try:
        process.stdin.write(request + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return ""
    return process.stdout.readline().strip()


_WORKER = _Worker()
atexit.register(_WORKER.close)


def _judge(gold: str, answer: str | None, extraction: list[Any]) -> Verdict:
    """The worker side of `compare`."""
    from math_verify import parse, verify

    def parsed(expression: str) -> list[Any]:
        return parse(f"\\boxed{{{expression}}}", extraction, parsing_timeout=None)

    gold_parsed = parsed(gold)
    if all(isinstance(item, str) for item in gold_parsed):  # only the text itself: no expression was understood
        return "bad_gold"
    correct = answer is not None and verify(gold_parsed, parsed(answer), timeout_seconds=None)
    return "correct" if correct else "wrong"


def _serve() -> None:
    """Reads requests from standard input and answers on standard output until the input ends."""
    import logging
    import resource

    replies, sys.stdout = sys.stdout, sys.stderr  # what the libraries print is no reply
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (WORKER_MEMORY_BYTES, WORKER_MEMORY_BYTES))
    try:
        from math_verify import LatexExtractionConfig
    except ImportError as error:
        print(f"cannot import math_verify ({error})", file=replies, flush=True)
        return
    # LaTeX alone: the extraction of plain expressions goes through sympy's parse_expr, which evaluates text.
    extraction = [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)]
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _judge("\\frac{1}{2}", "0.5", extraction)  # the libraries build their tables once, and no later process has to
    print("ready", file=replies, flush=True)
    while True:
        child = os.fork()
        if child == 0:
            _compare_until_the_end(replies, extraction)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:  # the input has ended
            return
        # The alarm, or an error of Python or below it, such as GMP's overflow.
        print("timeout" if status == -signal.SIGALRM else "wrong", file=replies, flush=True)


def _compare_until_the_end(replies: TextIO, extraction: list[Any]) -> None:
    while line := sys.stdin.readline():
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["timeout_seconds"])
        verdict = _judge(request["gold"], request["answer"], extraction)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(verdict, file=replies, flush=True)


if __name__ == "__main__":
    _serve()
