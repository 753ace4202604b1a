"""A scanner of regular rules: of all rules the longest match counts, of equal ones the first (as lex and JFlex).

A pattern may hold groups, `|`, `*`, `+`, `?`, `{m,n}`, classes `[a-z]` and `[^a-z]`, `{NAME}` for another pattern, `\\`
before a sign, and `\\uXXXX`. A letter outside a class stands for both of its cases. Rules become an automaton whose
states are made when a text first reaches them, so that a text costs one step a character, whatever it holds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Ranges = tuple[tuple[int, int], ...]  # first and last character of each, in order, apart from each other

LAST = 0xFFFF
CASES = {"i": "İı", "k": "\u212a", "s": "ſ"}  # of letters that have more than two


class Rule(NamedTuple):
    """`ahead`: what must follow a match, and counts in its length, but is no part of it."""

    name: str
    pattern: str
    ahead: str = ""


class Scanner:
    """`names`: patterns by name, each of those before it. `sets`: classes by name, as `[:letter:]`."""

    def __init__(self, rules: Sequence[Rule], names: Mapping[str, str], sets: Mapping[str, Ranges]) -> None:
        self._rules = rules
        net = _Net()
        parser = _Parser(net, names, sets)
        for at, rule in enumerate(rules):
            begin, end = parser.pattern(f"({rule.pattern})({rule.ahead})" if rule.ahead else rule.pattern)
            net.empty[net.start].append(begin)
            net.accepts[end] = at
        self._all = _Automaton(net)
        self._apart = {
            at: (_single(rule.pattern, names, sets), _single(rule.ahead, names, sets))
            for at, rule in enumerate(rules)
            if rule.ahead
        }

    def match(self, text: str, at: int) -> tuple[str, int] | None:
        """(the rule's name, where the match ends) of the match at `at`; None where no rule matches a character."""
        found, end = self._all.longest(text, at)
        if end <= at:
            return None
        if found in self._apart:
            before, ahead = self._apart[found]
            end = next(e for e in reversed(before.ends(text, at, end)) if ahead.whole(text, e, end))
        return self._rules[found].name, end


@dataclass
class _Net:
    """A nondeterministic automaton: of each state its steps by character, and those by none."""

    steps: list[list[tuple[Ranges, int]]] = field(default_factory=lambda: [[]])
    empty: list[list[int]] = field(default_factory=lambda: [[]])
    accepts: dict[int, int] = field(default_factory=dict)
    start: int = 0

    def state(self) -> int:
        self.steps.append([])
        self.empty.append([])
        return len(self.steps) - 1


def _single(pattern: str, names: Mapping[str, str], sets: Mapping[str, Ranges]) -> _Automaton:
    net = _Net()
    begin, end = _Parser(net, names, sets).pattern(pattern)
    net.empty[net.start].append(begin)
    net.accepts[end] = 0
    return _Automaton(net)


class _Automaton:
    """The deterministic automaton of a net, made as it is used."""

    def __init__(self, net: _Net) -> None:
        self._net = net
        edges = {edge for steps in net.steps for ranges, _ in steps for low, high in ranges for edge in (low, high + 1)}
        self._edges = sorted(edges)
        self._kinds: dict[str, int] = {}  # character → kind, of characters that no rule tells apart
        self._numbers: dict[frozenset[int], int] = {}
        self._sets: list[frozenset[int]] = []
        self._found: list[int] = []
        self._next: list[dict[int, int]] = []
        self._number(self._closed([net.start]))

    def longest(self, text: str, at: int) -> tuple[int, int]:
        """(number of the rule, end) of the longest match; (-1, at) where there is none."""
        state, best = 0, (-1, at)
        while at < len(text) and (state := self._step(state, text[at])) >= 0:
            at += 1
            if self._found[state] >= 0:
                best = self._found[state], at
        return best

    def ends(self, text: str, at: int, end: int) -> list[int]:
        """All ends of matches from `at`, up to `end`."""
        state, found = 0, [at] if self._found[0] >= 0 else []
        while at < end and (state := self._step(state, text[at])) >= 0:
            at += 1
            if self._found[state] >= 0:
                found.append(at)
        return found

    def whole(self, text: str, at: int, end: int) -> bool:
        """Whether all from `at` to `end` is a match."""
        return end in self.ends(text, at, end)

    def _step(self, state: int, character: str) -> int:
        if (kind := self._kinds.get(character)) is None:
            kind = self._kinds[character] = bisect_right(self._edges, ord(character))
        if (then := self._next[state].get(kind)) is None:
            place, net = ord(character), self._net
            reached = [
                target
                for one in self._sets[state]
                for ranges, target in net.steps[one]
                if any(low <= place <= high for low, high in ranges)
            ]
            then = self._next[state][kind] = self._number(self._closed(reached)) if reached else -1
        return then

    def _closed(self, states: Iterable[int]) -> frozenset[int]:
        reached, waiting = set[int](), list(states)
        while waiting:
            if (one := waiting.pop()) not in reached:
                reached.add(one)
                waiting += self._net.empty[one]
        return frozenset(one for one in reached if self._net.steps[one] or one in self._net.accepts)

    def _number(self, states: frozenset[int]) -> int:
        if states not in self._numbers:
            self._numbers[states] = len(self._sets)
            self._sets.append(states)
            self._found.append(min((self._net.accepts[one] for one in states if one in self._net.accepts), default=-1))
            self._next.append({})
        return self._numbers[states]


class _Parser:
    """Patterns as parts of a net, each from a state to another."""

    def __init__(self, net: _Net, names: Mapping[str, str], sets: Mapping[str, Ranges]) -> None:
        self._net, self._names, self._sets = net, names, sets
        self._text, self._at = "", 0

    def pattern(self, text: str) -> tuple[int, int]:
        outer = self._text, self._at
        self._text, self._at = text, 0
        part = self._choice()
        if self._at < len(text):
            raise ValueError(f"a pattern ends before its end: {text[self._at :]!r}")
        self._text, self._at = outer
        return part

    def _ahead(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        self._at += 1
        return self._text[self._at - 1]

    def _choice(self) -> tuple[int, int]:
        begin, end = self._net.state(), self._net.state()
        while True:
            first, last = self._sequence()
            self._net.empty[begin].append(first)
            self._net.empty[last].append(end)
            if self._ahead() != "|":
                return begin, end
            self._take()

    def _sequence(self) -> tuple[int, int]:
        begin = end = self._net.state()
        while self._ahead() not in ("", "|", ")"):
            start = self._at
            first, last = self._atom()
            least, most = self._repeats()
            if (least, most) == (1, 1):
                self._net.empty[end].append(first)
                end = last
                continue
            after = self._at
            for k in range(least if most is None else most):
                if k:
                    self._at = start
                    first, last = self._atom()
                if k >= least:
                    self._net.empty[first].append(last)
                self._net.empty[end].append(first)
                end = last
            if most is None:
                self._at = start
                first, last = self._atom()
                self._net.empty[last].append(first)
                self._net.empty[first].append(last)
                self._net.empty[end].append(first)
                end = last
            self._at = after
        return begin, end

    def _repeats(self) -> tuple[int, int | None]:
        signs: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if (sign := self._ahead()) in signs and sign:
            self._take()
            return signs[sign]
        if sign == "{" and self._text[self._at + 1].isdigit():
            close = self._text.index("}", self._at)
            least, _, most = self._text[self._at + 1 : close].partition(",")
            self._at = close + 1
            return int(least), int(most or least)
        return 1, 1

    def _atom(self) -> tuple[int, int]:
        sign = self._take()
        if sign == "(":
            part = self._choice()
            self._take()
            return part
        if sign == "{":
            close = self._text.index("}", self._at)
            name, self._at = self._text[self._at : close], close + 1
            return self.pattern(self._names[name])
        if sign == "[":
            return self._edge(self._class())
        if sign == "\\":
            return self._edge(ranges([(code := self._escaped(), code)]))
        cases = CASES.get(sign.lower(), "") + sign.lower() + sign.upper()
        return self._edge(ranges((ord(case), ord(case)) for case in cases))

    def _edge(self, ranges: Ranges) -> tuple[int, int]:
        begin, end = self._net.state(), self._net.state()
        self._net.steps[begin].append((ranges, end))
        return begin, end

    def _escaped(self) -> int:
        sign = self._take()
        if sign == "u":
            self._at += 4
            return int(self._text[self._at - 4 : self._at], 16)
        return ord({"t": "\t", "n": "\n", "r": "\r", "f": "\f"}.get(sign, sign))

    def _class(self) -> Ranges:
        inverted = self._ahead() == "^"
        self._at += inverted
        parts: list[tuple[int, int]] = []
        while self._ahead() != "]":
            if self._text.startswith("[:", self._at):
                close = self._text.index(":]", self._at) + 2
                parts += self._sets[self._text[self._at : close]]
                self._at = close
                continue
            low = high = self._one()
            if self._ahead() == "-" and self._text[self._at + 1] != "]":
                self._take()
                high = self._one()
            parts.append((low, high))
        self._take()
        return _without(ranges(parts)) if inverted else ranges(parts)

    def _one(self) -> int:
        return self._escaped() if (sign := self._take()) == "\\" else ord(sign)


def ranges(parts: Iterable[tuple[int, int]]) -> Ranges:
    """Parts in any order, joined where they touch."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(parts):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(high, joined[-1][1])
        else:
            joined.append((low, high))
    return tuple(joined)


def _without(ranges: Ranges) -> Ranges:
    """All other characters."""
    edges = [-1, *(edge for low, high in ranges for edge in (low, high)), LAST + 1]
    return tuple((a + 1, b - 1) for a, b in zip(edges[::2], edges[1::2], strict=True) if a + 1 <= b - 1)
