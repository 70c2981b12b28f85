# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Finding the final answer in a text and writing equal numbers in one way. Text is matched and never evaluated."""

import re
import unicodedata
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import pairwise

# An answer is short. What is longer is cut here, so that no completion can make matching or arithmetic slow.
MAX_ANSWER_CHARS = 1000
# Of the places that may name an answer so many are looked at, the last ones where the last one counts.
_MAX_PLACES = 100
_TAIL_CHARS = 100 * MAX_ANSWER_CHARS
# A text of so few characters may be a number with its unit and nothing else.
_ALONE_CHARS = 40
_ONE_UNIT = re.compile(r"[\d)]\s*%?\s*[^\W\d]*[.!]?$")

# Where an answer is named: it follows, on the same line or on a later one.
_HASHES = re.compile(r"####[ \t]*\n?[ \t]*([^\n]*)")
_TAG = re.compile(r"<(?:final_)?answer>(.*?)(?=</?(?:final_)?answer>|\Z)", re.IGNORECASE | re.DOTALL)
_PHRASE = re.compile(
    r"\b(?:answer|final result)(?: (?:to|for) [^\n.:]{1,60}?)?[*_]*[ \t]+"
    r"(?:is|was|(?:would|will|should|must) be|equals|=)(?![a-z])|\u7b54\u6848(?:\u662f|\u4e3a|\uff1a|:)"
    r"|^[ \t#*_>-]*(?:the )?(?:final |correct )?ans(?:wer)?[ \t*_]*(?:[:=]|[-\u2013\u2014][ \t]|$)"
    r"|^[ \t#*_]*A[ \t*_]*:(?=[^\n]*\s*\Z)",
    re.IGNORECASE | re.MULTILINE,
)
_REVERSED = re.compile(
    r"(?<!or )(?<!and )(?<!not )(?<!\S)(\S{1,40}) is (?:the|our) (?:final |correct )?answer\b", re.IGNORECASE
)
_OPENING = re.compile(r"(?:\n[ \t]*[->*\u2022][ \t]+|[\s:_$]|\*\*|\\[\[(])*")
_BOX = re.compile(r"\\f?box(?:ed)?\s*(?=\{)|\\boxed\s+(?=[^\s{])")
_BRACE = re.compile("[{}]")
# A base model that runs on into another problem is judged on its first answer.
_NEXT_PROBLEM = re.compile(r"\n[ \t*#]*(?:Question|Problem|Q)[ \t]*\d*[*_]*:", re.IGNORECASE)
# "#### 1. Find the cost" and "#### Step 2: ..." are headings of an instruct model, not answers.
_HEADING = re.compile(r"[*_ ]*(?:\d+[.):]\s+[^\W\d]|(?:step|part|case|question|problem|solution)\b)", re.IGNORECASE)
_BOLD = re.compile(r"\*\*([^*\n]{1,100})\*\*")
# A statement with one of these says what the answer is not, or is not one number.
_HEDGE = re.compile(
    r"\b(?:not|no|nor|or|either|between|unless|cannot|could|maybe|perhaps|unknown|unclear|if|at (?:least|most)|twice|"
    r"double|half|third|quarter|times|plus|minus|(?:than|under|over|below|above) \S*\d)\b|n['\u2019]t\b"
    r"|[+*/^=<>\\{}|(\u2264\u2265\u2260\u00b1]|\s-\s|\bx\b",
    re.IGNORECASE,
)
_JOINED = re.compile(r"[\s$,/&;]*(?:or|and|[,/&;])[\s$,/&;]*", re.IGNORECASE)

_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]+)\}\s*\{([^{}]+)\}|(\d)\s*(\d)|(\d)\s*\{([^{}]+)\})")
_TEXT_MACRO = re.compile(r"\\(?:text(?:bf|rm|it)?|mathrm|mathbf|mbox|underline|boxed)\s*\{([^{}]*)\}")
_SEPARATOR = re.compile(r"(?<=\d)(?:\{,\}|['\u2019_])(?=\d{3}(?!\d))")
_MINUS = re.compile(r"\b(?:minus|negative)\s+(?=[$\d])", re.IGNORECASE)
_SPACE_MACRO = re.compile(r"\\[,;: ]|~|\\q?quad\b|[\u00a0\u2007\u2009\u202f]")
_MARKUP = re.compile(
    r"\\[!()\[\]]|\\(?:left|right|displaystyle)(?![a-z])|\\?\$|[\u20ac\u00a3\u00a5\u20b9]|\\pounds\b|\*\*|__|`"
    r"|(?:\^\{?\\circ\}?|\u00b0|\\degree\b)\s*(?:[CF](?![a-zA-Z]))?"
)
_EMPHASIS = re.compile(r"(?<![\w*])\*([^*\s][^*\n]*)\*(?![\w*])")
_TIMES = re.compile(r"\\(?:times|cdot)(?![a-z])\s*|[\u00d7\u00b7]")
_SYMBOLS = str.maketrans(
    {minus: "-" for minus in "\u2212\u2013\u2014\ufe63\uff0d"}
    | {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if code != 0xFF0D}
    | {mark: f"^{power}" for power, mark in enumerate("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")}
    | {"\u2044": "/"}
)
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
# What may stand between "the answer is" and the number.
_LEAD = re.compile(
    r"(?:(?:approximately|about|around|roughly|nearly|exactly|only|just|simply|thus|therefore|then|indeed|equal to|"
    r"equals|a total of|an?|the number)[\s,:]+|\\approx\s*|[\u2248~=:]\s*|(?:USD|US|EUR|GBP|INR|AUD|CAD|Rs\.?)(?![a-z])\s*)+",
    re.IGNORECASE,
)

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d|,\d)|\d{1,3}(?: \d{3})+(?![\d/]| \d)|\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:(?P<whole>\d+)\s+(?P<part>\d+/\d+)"
    rf"|(?P<top>{_DIGITS}(?:\.\d+)?|\.\d+)(?:\s*/\s*(?P<bottom>{_DIGITS}(?:\.\d+)?))?"
    r"(?:e(?P<exponent>[-+]?\d{1,3})(?!\d|\.\d)|\s*[*x]\s*10\s*\^\s*\{?(?P<power>[-+]?\d{1,3})\}?)?)"
    r"(?:\s*(?:%|(?P<scale>hundred|thousand|million|billion|dozen)\b))?",
    re.IGNORECASE,
)
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "dozen": 12}
# What follows the digits when they are the start of an expression, a list, a range or a time and not a number with its
# unit. A letter that touches the digits is a variable (`2x`) unless it can be a unit (`5m`).
_CONTINUES = re.compile(
    r"\s*(?:[+*^\u00f7<>=\u2264\u2265\u2260\u00b1\u2248&|_{]|\.\d|[-/]\s*(?:[\d(\\]|[a-zA-Z](?![a-zA-Z]))|:\d|[,;]\s*-?\d"
    r"|\d|['\u2019\u2032]\s*\d|\\[a-zA-Z\\]|[xyzn](?![a-zA-Z])|remainder|squared|cubed|(?:less|more|fewer) than \S*\d"
    r"|(?:or|and|to|plus|minus|times)\s+(?:\w+\s+)?(?:-?\d|half|third|quarter)|[a-zA-Z]+,?\s+(?:(?:and|or)\s+)?\d)"
    r"|(?![ghlmsL])[a-zA-Z](?![a-zA-Z])"
)
# The sides of an equation: a name, or arithmetic that ends in a number.
_NAME_SIDE = re.compile(r"[^\d=,;<>!]*")
_SUM_SIDE = re.compile(
    r"(?:[\d.,\s+\-*/\u00f7()%^]|(?<![a-z])(?:x|(?!or\b|and\b)[a-z]{2,})(?![a-z]))*", re.IGNORECASE
)


def normalize_number(text: str) -> str | None:
    r"""Writes the number that a text begins with in the one form that all equal numbers share.

    Thousands separators, currency signs, a percent sign, units, markup and a trailing period are dropped. Integers
    and finite decimals come back as decimals without trailing zeros, other fractions in lowest terms. Of `3 + 4 = 7`
    the side after the last equals sign counts. Several numbers are none: `5 or 7`, `18 to 20`, `5 feet 6 inches`.

    Args:
        text: the answer alone, such as `$1,200.50`, `\frac{3}{4}` or `12 apples`.

    Returns:
        The number, or None where the text does not begin with one or goes on as an expression.

    Example:
        >>> [normalize_number(text) for text in ("$1,200.50", "12.00 apples.", "-50%", "2/6", "2x + 1")]
        ['1200.5', '12', '-50', '1/3', None]
    """
    text = _plain(text)
    first = _number(text)
    if first is not None or "=" not in text:
        return first
    *sides, last = (side.strip(" \t\n*_:") for side in text.split("="))
    number = _number(last)
    if number is None or not (_NAME_SIDE.fullmatch(sides[0]) or _is_sum(sides[0])):
        return None
    if not all(_is_sum(side) for side in sides[1:]):
        return None
    return number if all(_number(side) in (None, number) for side in sides) else None


def last_boxed(text: str) -> str | None:
    r"""Returns what the last `\boxed{...}` of a text holds, or None without one or when its brace never closes.

    Boxes that are joined by `or`, `and` or a comma are one answer of several parts.

    Args:
        text: any text.

    Example:
        >>> last_boxed(r"\boxed{1}, no: \boxed{\frac{1}{2}}."), last_boxed(r"\boxed{1} or \boxed{2}")
        ('\\frac{1}{2}', '1, 2')
    """
    held: str | None = None
    for box, after in pairwise([*_BOX.finditer(text)][::-1][:_MAX_PLACES] + [None]):
        part = _held(text, box)
        if part is None:
            return held
        held = part if held is None else f"{part}, {held}"
        between = "" if after is None else text[after.end() : box.start()].rpartition("}")[2]
        if not _JOINED.fullmatch(between):
            break
    return held


def extract_answer(text: str) -> str | None:
    r"""Finds the final answer of a worked solution, normalised so that equal numbers are equal strings.

    What stands before the last `</think>` is no answer. Of the rest the places are tried in this order: the last
    `<answer>`, the first `#### n` with a number (as GSM8K's own checker does: a base model that runs on into another
    problem is judged on its first answer), the last `\boxed{}`, the last `answer is n` or `Answer: n` with a number, a
    number in bold that ends the text, a text that is a number and nothing else. The last number of a text is not taken
    for its answer: a completion that is cut off should not be paid for a number that it passes by, and of GSM8K's
    labelled model solutions those that name no answer are all labelled wrong.

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
    text = _spoken(text)
    *_, tag = (None, *_TAG.finditer(text))
    if tag is not None:
        inside = tag.group(1).strip()
        return normalize_number(inside) or _named(inside) or _stated(inside.rpartition("\n")[2])
    return _named(text) or _at_the_end(text)


def extract_expression(text: str) -> str | None:
    r"""Finds the final answer of a worked solution where it may be any mathematical expression.

    Args:
        text: a completion or a gold solution.

    Returns:
        What the last `<answer>` or `\boxed{}` holds, else the number that `extract_answer` finds, else the expression
        that ends the text after `####`, `answer is` or `Answer:`, as it was written; None when no answer is named.

    Example:
        >>> extract_expression(r"so \boxed{x + \frac{1}{2}}."), extract_expression("The answer is $2x + 1$.")
        ('x + \\frac{1}{2}', '2x + 1')
    """
    text = _spoken(text)
    *_, tag = (None, *_TAG.finditer(text))
    if tag is not None:
        inside = tag.group(1).strip()
        return last_boxed(inside) or _named(inside) or _bare(inside) or None
    answer = last_boxed(text) or _named(text) or _at_the_end(text)
    if answer is not None:
        return answer
    last_line = text.rstrip().rpartition("\n")[2]
    lines = [match.group(1) for match in _HASHES.finditer(last_line)] + _named_answers(text)
    return next((found for line in lines if (found := _bare(line))), None)


def _spoken(text: str) -> str:
    """The part of a completion that its reader sees: after the reasoning, and before a problem that it runs on into."""
    text = re.split(r"</(?:think|thinking|reasoning)>", text)[-1]
    text = re.split(r"<think(?:ing)?>", text)[0]
    run_on = _NEXT_PROBLEM.search(text, 1)
    first = text[: run_on.start()] if run_on else text
    return first if run_on and (_TAG.search(first) or _named(first)) else text


def _named(text: str) -> str | None:
    """The answer that `####`, a box or a phrase names."""
    for _, match in zip(range(_MAX_PLACES), _HASHES.finditer(text), strict=False):
        line = match.group(1)[:MAX_ANSWER_CHARS]
        number = None if _HEADING.match(line) else normalize_number(line) or _named_number(line)
        if number is not None:
            return number
    boxed = last_boxed(text)
    return (normalize_number(boxed) or _named_number(_plain(boxed)) or boxed) if boxed else _named_number(text)


def _named_number(text: str) -> str | None:
    for line in _named_answers(text):
        number = normalize_number(line)
        if number is not None:
            return number
        if re.match(r"[-+$\\(]*\d", _plain(line)):  # an expression, a list or a range: this is the answer, and no number
            return None
        number = _stated(line)
        if number is not None:
            return number
    return None


def _named_answers(text: str) -> list[str]:
    """What stands behind `answer is` and `Answer:`, the last first; `A:` counts in the last line alone."""
    start = max(0, len(text) - _TAIL_CHARS)
    ends = [(match.end(), None) for match in _PHRASE.finditer(text, start)]
    ends += [(match.end(), match.group(1)) for match in _REVERSED.finditer(text, start)]
    found = []
    for end, answer in sorted(ends, reverse=True)[:_MAX_PLACES]:
        line = text[end : end + 2 * MAX_ANSWER_CHARS]
        found.append(answer or line[_OPENING.match(line).end() :].partition("\n")[0])  # type: ignore[union-attr]
    return found


def _stated(line: str) -> str | None:
    """The number of a sentence such as `Janet makes $18 a day.`: the one in bold, else the only one."""
    sentence = re.split(r"(?<=[^\d\W])[.!?](?:\s|$)|\n", line[:MAX_ANSWER_CHARS], maxsplit=1)[0]
    bold = [number for part in _BOLD.findall(sentence) if (number := normalize_number(part))]
    sentence = _plain(sentence)
    numbers = re.findall(r"-?\d[\d,. ]*", sentence)
    if len(bold) > 1 or _HEDGE.search(sentence) or not (bold or len(numbers) == 1):
        return None
    return bold[0] if bold else _number(sentence[sentence.index(numbers[0]) :])


def _at_the_end(text: str) -> str | None:
    """A number in bold in the last line, or a text that is a number alone."""
    text = text.strip(" \t\n`")
    line = text.rpartition("\n")[2]
    if re.search(r"\*\*[^*]*[.!]?$", line) and _BOLD.search(line):
        return _stated(line)
    alone = _plain(text)
    return _number(alone) if len(text) <= _ALONE_CHARS and line == text and _ONE_UNIT.search(alone) else None


def _bare(text: str) -> str:
    """An expression without what surrounds it: display mathematics, dollar signs, emphasis and the final period."""
    text = text[: MAX_ANSWER_CHARS + 1].strip(" \t\n.*$:")
    return re.sub(r"^\\[\[(]\s*|\s*\\[\])]$", "", text).strip(" \t\n.*$")


def _held(text: str, box: re.Match[str]) -> str | None:
    start = box.end()
    if text[start : start + 1] != "{":  # TeX boxes a single token; models mean all up to the end of the formula
        token = re.compile(r"[^\s$\\,]+").match(text, start)
        return token[0].rstrip(".") if token else None
    depth = 0
    for brace in _BRACE.finditer(text, start, start + 10 * MAX_ANSWER_CHARS):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start + 1 : brace.start()].strip()
    return None


def _plain(text: str) -> str:
    """A short text without markup, its symbols in ASCII."""
    text = text[:MAX_ANSWER_CHARS]
    if not text.isascii():
        text = text.translate(_SYMBOLS)
        text = "".join(character for character in text if unicodedata.category(character) != "Cf")
        text = _VULGAR.sub(lambda match: " " + unicodedata.normalize("NFKC", match[0]).replace("\u2044", "/"), text)
    text = _SPACE_MACRO.sub(" ", _MINUS.sub("-", _SEPARATOR.sub(",", text)).replace("\\%", "%"))
    if "\\" in text:
        text = _FRACTION.sub(lambda match: " {}/{}".format(*(group for group in match.groups() if group)), text)
        text = _TEXT_MACRO.sub(r" \1 ", _TEXT_MACRO.sub(r" \1 ", text))
    text = _EMPHASIS.sub(r"\1", _TIMES.sub(" x ", _MARKUP.sub("", text)))
    return text.strip(" \t\n*_:\"'")


def _number(text: str) -> str | None:
    text = _LEAD.sub("", text, count=1) if _LEAD.match(text) else text
    inner = re.fullmatch(r"\(([^()]*)\)\.?", text)
    text = inner[1] if inner else text
    match = _NUMBER.match(text)
    if match is None or _CONTINUES.match(text, match.end()):
        return None
    try:
        return _canonical(_value(match))
    except ZeroDivisionError:
        return None


def _is_sum(side: str) -> bool:
    return re.search(r"[\d)]\W*$|[a-z]{2,}$", side) is not None and _SUM_SIDE.fullmatch(side) is not None


def _value(match: re.Match[str]) -> Fraction:
    """The value of a match of `_NUMBER`."""
    sign = -1 if match["sign"] == "-" else 1
    if match["part"]:
        value = int(match["whole"]) + Fraction(match["part"])
    else:
        bottom = match["bottom"] or "1"
        value = Fraction(re.sub("[, ]", "", match["top"])) / Fraction(re.sub("[, ]", "", bottom))
        value *= Fraction(10) ** int(match["exponent"] or match["power"] or 0)
    return sign * value * _SCALES.get((match["scale"] or "").lower(), 1)


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
