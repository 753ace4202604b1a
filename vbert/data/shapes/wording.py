"""Meanings in words: several wordings each, the words of easy-VQA's questions among them."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from vbert.data.shapes.language import ExactCount, Exists, HasAttribute, Meaning, MoreOf, Noun, Relation, WholeScene

# One more than objects_max can be: wrong counts need it.
# fmt: off
NUMERALS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight",
    "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen",
)
# fmt: on

SOME = (
    "there is {}",
    "there is {} in the image",
    "{} is present",
    "the image contains {}",
    "{} is in the image",
    "the image shows {}",
)
NONE = (  # {} is the noun, without an article
    "there is no {}",
    "there is not a {}",
    "there is not a {} in the image",
    "no {} is present",
    "the image does not contain a {}",
    "the image contains no {}",
)
NUMBER = ("there {is} {}", "the image contains {}", "{} {is} present", "there {is} exactly {} in the image")
MORE = ("there are more {} than {}", "the image contains more {} than {}")
RELATION = ("{} is {} {}", "there is {} {} {}")
ONLY = ("the image shows only {}", "only {} can be seen", "{} and nothing else")


class TextSpan(NamedTuple):
    """A noun phrase of a text: characters [start, end), with or without its article or numeral."""

    start: int
    end: int
    noun: Noun
    number: int


def noun_phrase(noun: Noun) -> str:
    """'small red circle', 'shape'; no article, no place."""
    return " ".join(word for word in (noun.size, noun.colour, noun.shape or "shape") if word)


def some(noun: Noun) -> str:
    return f"a {noun_phrase(noun)}{place(noun)}"


def place(noun: Noun) -> str:
    """' in the top left part', ' at 41 27', ' …'; empty where the noun names none."""
    words = ""
    if noun.row or noun.column:
        words += f" in the {' '.join(w for w in (noun.row, noun.column) if w)} part"
    if noun.at:
        words += f" at {noun.at[0]} {noun.at[1]}"
    if noun.extent:
        words += f" sized {noun.extent[0]} {noun.extent[1]}"
    return words


def plural(noun: Noun) -> str:
    word = noun_phrase(noun)
    return f"{word}es" if word.endswith("s") else f"{word}s"


def several(noun: Noun, number: int) -> str:
    """'one red circle', 'two red circles'."""
    return f"{NUMERALS[number]} {noun_phrase(noun) if number == 1 else plural(noun)}{place(noun)}"


def wordings(meaning: Meaning) -> int:
    """The number of wordings of the meaning."""
    match meaning:
        case Exists(_, negated):
            return len(NONE if negated else SOME)
        case ExactCount():
            return len(NUMBER)
        case MoreOf():
            return len(MORE)
        case HasAttribute(_, what, _):
            return 2 if what.shape is None else 1
        case Relation():
            return len(RELATION)
        case WholeScene():
            return len(ONLY)


def words(meaning: Meaning, wording: int) -> str:
    """The meaning in its wording number `wording`, taken modulo their number."""
    wording %= wordings(meaning)
    match meaning:
        case Exists(noun, False):
            pattern = ("there is {}", "the image shows {}")[wording % 2] if place(noun) else SOME[wording]
            return pattern.format(some(noun))
        case Exists(noun, _):
            return NONE[wording].format(noun_phrase(noun) + place(noun))
        case ExactCount(noun, number):
            return NUMBER[wording].format(several(noun, number), **{"is": "is" if number == 1 else "are"})
        case MoreOf(more, fewer):
            return MORE[wording].format(plural(more), plural(fewer))
        case HasAttribute(noun, what, negated):
            no = " not" if negated else ""
            if what.shape is not None:
                return f"the {noun_phrase(noun)} is{no} a {what.shape}"
            return (f"the {noun_phrase(noun)} is{no} {{}}", f"the color of the {noun_phrase(noun)} is{no} {{}}")[
                wording
            ].format(what.colour)
        case Relation(first, how, second):
            return RELATION[wording].format(some(first), how, some(second))
        case WholeScene():
            before, after = ONLY[wording].split("{}")
            return f"{before}{listed(meaning)[0]}{after}"


def listed(meaning: WholeScene) -> tuple[str, list[TextSpan]]:
    """'a black circle, two blue rectangles and a red triangle', with its phrases."""
    text, spans = "", []
    groups = [(noun, len(list(same))) for noun, same in groupby(meaning.nouns)]
    for k, (noun, number) in enumerate(groups):
        text += "" if k == 0 else " and " if k == len(groups) - 1 else ", "
        phrase = some(noun) if number == 1 else several(noun, number)
        spans.append(TextSpan(len(text), len(text) + len(phrase), noun, number))
        text += phrase
    if meaning.ground is not None:
        text += " on a ground of {} {} {}".format(*meaning.ground)
    return text, spans
