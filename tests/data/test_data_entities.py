"""The parser of Flickr30k Entities' files, against the rules of its authors' own."""

from __future__ import annotations

from contextlib import suppress

import pytest
from data.text_world import SHARED
from hypothesis import given
from hypothesis import strategies as st

from vbert.data.entities import annotation, sentences
from vbert.data.xml import XML_BYTES
from vbert.errors import UserError

MARKED = """\
[/EN#7/people A girl] and [/EN#7/people/other a girl] see [/EN#0/notvisual it] , [/EN#9/scene a road\u00a0side] .\r

She runs .
"""


def photo(*objects: str, size: str = "<width>500</width><height>375</height>") -> bytes:
    rows = "".join(f"<object>{item}</object>" for item in objects)
    return f"<annotation><size>{size}<depth>3</depth></size>{rows}</annotation>".encode()


def box(*corners: int) -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    return f"<bndbox>{''.join(f'<{side}>{value}</{side}>' for side, value in sides)}</bndbox>"


def official(line: str) -> tuple[str, list[tuple[int, str, str, list[str]]]]:
    """`get_sentence_data` of flickr30k_entities_utils.py, for one line."""
    words: list[str] = []
    found: list[tuple[int, str, str, list[str]]] = []
    current: list[str] | None = None
    first, parts = 0, [""]
    for token in line.split():
        if current is not None:
            ends = token[-1] == "]"
            token = token[:-1] if ends else token
            current.append(token)
            words.append(token)
            if ends:
                found.append((first, " ".join(current), parts[1][3:], parts[2:]))
                current = None
        elif token[0] == "[":
            current, first, parts = [], len(words), token.split("/")
        else:
            words.append(token)
    return " ".join(words), found


def ours(line: str) -> tuple[str, list[tuple[int, str, str, list[str]]]]:
    (sentence,) = sentences(line, "1.txt")
    text = sentence.text
    return text, [(p.first_word, text[p.start : p.end], p.chain, list(p.types)) for p in sentence.phrases]


def test_sentences() -> None:
    first, second = sentences(MARKED, "1.txt")
    assert (first.text, first.where) == ("A girl and a girl see it , a road side .", "1.txt:1")
    assert [(p.start, p.end, p.first_word, p.chain, p.types) for p in first.phrases] == [
        (0, 6, 0, "7", ("people",)),
        (11, 17, 3, "7", ("people", "other")),
        (22, 24, 6, "0", ("notvisual",)),
        (27, 38, 8, "9", ("scene",)),
    ]
    assert (second.text, second.phrases, second.where) == ("She runs .", (), "1.txt:3")


WORDS = st.lists(st.text("abc.,'é&-(", min_size=1, max_size=5), min_size=1, max_size=4).map(" ".join)
MARKS = st.builds(
    lambda chain, types, words: f"[/EN#{chain}/{'/'.join(types)} {words}]",
    st.integers(0, 300),
    st.lists(st.sampled_from(["people", "scene", "other", "notvisual"]), min_size=1, max_size=3),
    WORDS,
)


@given(st.lists(WORDS | MARKS, min_size=1, max_size=8), st.sampled_from([" ", "  ", "\t"]))
def test_sentences_are_the_authors(parts: list[str], between: str) -> None:
    assert ours(between.join(parts)) == official(between.join(parts))


def test_real_sentences_are_the_authors() -> None:
    files = sorted((SHARED / "flickr30k_entities/sentences").glob("*.txt"))
    if not files:
        pytest.skip("no ../shared/data/flickr30k_entities")
    lines = [line for file in files for line in file.read_text().split("\n") if line.strip()]
    assert len(lines) == 25
    assert [ours(line) for line in lines] == [official(line) for line in lines]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ok\n[/EN#1/people a girl", r"1\.txt:2: the phrase '\[/EN#1/people' has no end"),
        ("[/EN#1/people a [/EN#2/people girl] ]", "holds another, '.*EN#2"),
        ("[/EN#1/people ]", "has no words"),
        ("[/EN#1 a girl]", r"'\[/EN#1' is no mark of a phrase"),
        ("[/EN#x/people a girl]", "is no mark"),
    ],
)
def test_wrong_sentences_are_named(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        sentences(text, "1.txt")


def test_an_annotation() -> None:
    """Two chains in one box, two boxes of one chain, a scene, one not to be boxed."""
    data = photo(
        f"<name>7</name><name>8</name>{box(1, 2, 30, 40)}",
        f"<name>7</name>{box(5, 6, 500, 375)}",
        "<name>9</name><scene>1</scene><nobndbox>1</nobndbox>",
        "<name>10</name><scene>0</scene><nobndbox>1</nobndbox>",
    )
    found = annotation(data, "1.xml")
    assert (found.width, found.height) == (500, 375)
    assert found.boxes == {"7": ((1, 2, 30, 40), (5, 6, 500, 375)), "8": ((1, 2, 30, 40),)}
    assert (found.scenes, found.unboxed) == ({"9"}, {"9", "10"})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<annotation>", "1.xml: not XML"),
        (b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>', "document type"),
        (b"<annotation/>", "1.xml: size: is missing"),
        (photo(size="<width>500</width>"), "1.xml: size: height: is missing"),
        (photo(box(1, 2, 3, 4)), r"1.xml: object\[0\]: name: is missing"),
        (photo(f"<name>dog</name>{box(1, 2, 3, 4)}"), "name: must be the number of a chain, not 'dog'"),
        (photo("<name>7</name>"), r"object\[0\]: has neither bndbox nor the flags"),
        (photo("<name>7</name><bndbox><xmin>1</xmin></bndbox>"), r"object\[0\]: bndbox: ymin: is missing"),
        (photo("<name>7</name><scene>yes</scene>"), "scene: must be a whole number, not 'yes'"),
        (photo(f"<name>7</name>{box(1, 2, 3, 10**12)}"), "ymax: must be a whole number"),
        (b" " * (XML_BYTES + 1), "at most 4,194,304 are read"),
    ],
)
def test_wrong_annotations_are_named(data: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        annotation(data, "1.xml")


@given(st.binary(max_size=60) | st.text("<annotationobjectname>/7 ", max_size=120).map(str.encode))
def test_any_bytes_are_read_or_named(data: bytes) -> None:
    for read in (lambda: annotation(data, "1.xml"), lambda: sentences(data.decode("latin-1"), "1.txt")):
        with suppress(UserError):
            read()
