# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Finding the final answer in a text and writing equal numbers in one way. Text is matched and never evaluated."""

import re
from decimal import Decimal, localcontext
from fractions import Fraction

# An answer is short. What is longer is cut here, so that no completion can make matching or arithmetic slow.
MAX_ANSWER_CHARS = 1000

_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_PHRASE = re.compile(r"\banswer[ \t]+is[ \t]*:?[ \t]*", re.IGNORECASE)
_LAST_LINE = re.compile(r"(?:A|(?i:(?:final )?answer))[ \t]*:[ \t]*(.*)")
# "#### 1. Find the cost" is a heading of an instruct model, not an answer.
_HEADING = re.compile(r"\d+[.):]\s+[^\W\d]")

_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")
_TEXT_MACRO = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_MARKUP = re.compile(r"\\[!,;()\[\] ]|\\?\$|[€£¥]|\*\*|`|\^\{?\\circ\}?")

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:(?P<whole>\d+)\s+(?P<part>\d+/\d+)"
    rf"|(?P<top>{_DIGITS}(?:\.\d+)?|\.\d+)(?:\s*/\s*(?P<bottom>{_DIGITS}(?:\.\d+)?))?)"
)
# What follows the digits when they are the start of an expression, a list or a time and not a number with its unit.
# A letter that touches the digits is a variable (`2x`) unless it can be a unit (`5m`).
_CONTINUES = re.compile(
    r"\s*(?:[+*^\u00d7\u00f7<>=\u2264\u2265]|[-/]\s*[\d(]|:\d|,\s*-?\d|\d|\\[a-zA-Z])|(?![ghlmsL])[a-zA-Z](?![a-zA-Z])"
)


def normalize_number(text: str) -> str | None:
    r"""Writes the number that a text begins with in the one form that all equal numbers share.

    Thousands separators, currency signs, a percent sign, units, markup and a trailing period are dropped. Integers
    and finite decimals come back as decimals without trailing zeros, other fractions in lowest terms. Of `3 + 4 = 7`
    the side after the last equals sign counts.

    Args:
        text: the answer alone, such as `$1,200.50`, `\frac{3}{4}` or `12 apples`.

    Returns:
        The number, or None where the text does not begin with one or goes on as an expression.

    Example:
        >>> [normalize_number(text) for text in ("$1,200.50", "12.00 apples.", "-50%", "2/6", "2x + 1")]
        ['1200.5', '12', '-50', '1/3', None]
    """
    text = text[:MAX_ANSWER_CHARS].replace("\u2212", "-").replace("{,}", ",").replace("\\%", "%")
    text = _TEXT_MACRO.sub(r" \1 ", _FRACTION.sub(r" \1/\2", text))
    text = _MARKUP.sub("", text).strip(" \t\n*_:\"'")
    for part in dict.fromkeys((text, text.rpartition("=")[2].strip())):
        match = _NUMBER.match(part)
        if match is None or _CONTINUES.match(part, match.end()):
            continue
        try:
            return _canonical(_value(match))
        except ZeroDivisionError:
            continue
    return None


def last_boxed(text: str) -> str | None:
    r"""Returns what the last `\boxed{...}` of a text holds, or None without one or when its brace never closes.

    Args:
        text: any text.

    Example:
        >>> last_boxed(r"\boxed{1}, no: \boxed{\frac{1}{2}}.")
        '\\frac{1}{2}'
    """
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start : start + brace.start()].strip()
    return None


def extract_answer(text: str) -> str | None:
    r"""Finds the final answer of a worked solution, normalised so that equal numbers are equal strings.

    The places are tried in this order: the first `#### n` with a number (as GSM8K's own checker does: a base model
    that runs on into another problem is judged on its first answer), the last `\boxed{}`, the last `answer is n` with a
    number, a last line `A: n` or `Answer: n`. The last number of a text is not taken for its answer: a completion that
    is cut off should not be paid for a number that it passes by, and of GSM8K's labelled model solutions those that
    name no answer are all labelled wrong.

    Args:
        text: a completion or a gold solution.

    Returns:
        A number in the form of `normalize_number`; the LaTeX inside `\boxed{}` where that is no number; None when
        no answer is named.

    Example:
        >>> extract_answer("48 + 24 = <<48+24=72>>72 clips.\n#### 72")
        '72'
        >>> extract_answer(r"So it costs \boxed{\$1{,}200.00}.")
        '1200'
        >>> extract_answer("Therefore the answer is -1/3.")
        '-1/3'
        >>> extract_answer("First, 48 / 2 = 24") is None
        True
    """
    for match in _HASHES.finditer(text):
        line = match.group(1)[:MAX_ANSWER_CHARS]
        number = None if _HEADING.match(line) else normalize_number(line)
        if number is not None:
            return number
    boxed = last_boxed(text)
    if boxed:
        return normalize_number(boxed) or boxed
    return next((number for line in _named_answers(text) if (number := normalize_number(line))), None)


def extract_expression(text: str) -> str | None:
    r"""Finds the final answer of a worked solution where it may be any mathematical expression.

    Args:
        text: a completion or a gold solution.

    Returns:
        What the last `\boxed{}` holds, else the number that `extract_answer` finds, else the expression that ends
        the text after `####`, `answer is` or `Answer:`, as it was written; None when no answer is named.

    Example:
        >>> extract_expression(r"so \boxed{x + \frac{1}{2}}."), extract_expression("The answer is $2x + 1$.")
        ('x + \\frac{1}{2}', '2x + 1')
    """
    answer = last_boxed(text) or extract_answer(text)
    if answer is not None:
        return answer
    last_line = text.rstrip().rpartition("\n")[2]
    lines = [match.group(1) for match in _HASHES.finditer(last_line)] + _named_answers(text)
    return next((found for line in lines if (found := line[: MAX_ANSWER_CHARS + 1].strip(" \t.*$:"))), None)


def _named_answers(text: str) -> list[str]:
    """What stands behind `answer is`, the last first, and behind `A:` or `Answer:` at the start of the last line."""
    ends = [match.end() for match in _PHRASE.finditer(text)]
    phrases = [text[end : end + MAX_ANSWER_CHARS + 1].partition("\n")[0] for end in reversed(ends)]
    last_line = _LAST_LINE.match(text.rstrip().rpartition("\n")[2].lstrip(" \t*#"))
    return phrases + ([last_line.group(1)] if last_line else [])


def _value(match: re.Match[str]) -> Fraction:
    """The value of a match of `_NUMBER`."""
    sign = -1 if match["sign"] == "-" else 1
    if match["part"]:
        return sign * (int(match["whole"]) + Fraction(match["part"]))
    bottom = match["bottom"] or "1"
    return sign * Fraction(match["top"].replace(",", "")) / Fraction(bottom.replace(",", ""))


def _canonical(value: Fraction) -> str:
    """Writes a fraction as an integer, as a finite decimal where there is one, or in lowest terms."""
    numerator, denominator = value.as_integer_ratio()
    rest = denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest != 1:
        return f"{numerator}/{denominator}"
    with localcontext() as context:
        # A denominator of b bits gives fewer than b decimal places.
        context.prec = len(str(numerator)) + denominator.bit_length()
        quotient = Decimal(numerator) / Decimal(denominator)
    return f"{quotient:f}"
