"""The scanner: the longest match of all rules, the first of equal ones, and what must follow."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbert.metrics.scanner import Rule, Scanner

RULES = (
    Rule("word", "if|ab{WIDE}"),
    Rule("name", "[a-c]+"),
    Rule("before", "a(ba)*", "b?!"),
    Rule("number", "[[:digit:]]{2,3}|x+y?"),
    Rule("other", r"[^a-cx!\n]|\!"),
)


@given(st.text("aAbBcxy!0123 -\n", max_size=12))
def test_matches_are_the_longest_of_plain_expressions(text: str) -> None:
    expressions = (
        ("word", "(?:[iI][fF]|[aA][bB][-_]{0,2})()"),
        ("name", "[a-c]+()"),
        ("before", "([aA](?:[bB][aA])*)[bB]?!"),
        ("number", "(?:[0-9]{2,3}|[xX]+[yY]?)()"),
        ("other", r"(?:[^a-cx!\n]|!)()"),
    )
    scanner = Scanner(RULES, {"WIDE": r"[-_]{0,2}"}, {"[:digit:]": ((48, 57),)})
    for at in range(len(text)):
        best = None
        for name, expression in expressions:
            found = [
                m for end in range(at + 1, len(text) + 1) if (m := re.compile(expression).fullmatch(text, at, end))
            ]
            if found and (best is None or found[-1].end() > best[0]):
                last = found[-1]
                best = last.end(), name, last.end(1) if last[1] else last.end()
        assert scanner.match(text, at) == (best and (best[1], best[2]))


def test_the_longest_part_that_what_must_follow_leaves_is_the_match() -> None:
    scanner = Scanner((Rule("a", "[ab]+", "b+"),), {}, {})
    assert scanner.match("aabbb", 0) == ("a", 4)
    assert scanner.match("aaa", 0) is None


def test_a_letter_outside_a_class_stands_for_all_its_cases() -> None:
    scanner = Scanner((Rule("k", "kis"),), {}, {})
    assert all(scanner.match(text, 0) for text in ("kis", "KIS", "\u212aıſ", "Kİs"))
    assert Scanner((Rule("k", "[k]"),), {}, {}).match("K", 0) is None


def test_a_pattern_that_ends_too_early_is_refused() -> None:
    with pytest.raises(ValueError, match="ends before"):
        Scanner((Rule("a", "a)b"),), {}, {})
