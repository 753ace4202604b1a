"""Words of the shapes generator back into meanings, and what a text says of a scene."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbert.data.raw import RawFiles
from vbert.data.readers import shapes as reader
from vbert.data.scene_checks import SceneCheck, check
from vbert.data.shapes.captions import levels
from vbert.data.shapes.language import (
    COLUMNS,
    OPPOSITE,
    ROWS,
    ExactCount,
    Exists,
    HasAttribute,
    Meaning,
    MoreOf,
    Noun,
    Relation,
    WholeScene,
    canonical,
    facts,
)
from vbert.data.shapes.parsing import parse
from vbert.data.shapes.scene import COLOURS, Shape
from vbert.data.shapes.scenes import ShapesSettings, scene
from vbert.data.shapes.wording import NUMERALS, words
from vbert.data.shapes.write import write
from vbert.errors import BuildError
from vbert.objectives.checked_texts import checked

pixels = st.integers(0, 511)
pair = st.tuples(pixels, pixels)
shape, colour = st.sampled_from(get_args(Shape)), st.sampled_from(list(COLOURS))


def optional(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | of


attributes = (optional(shape), optional(colour), optional(st.sampled_from(("small", "large"))))
places = (optional(st.sampled_from(ROWS)), optional(st.sampled_from(COLUMNS)), optional(pair), optional(pair))
bare = st.tuples(*attributes).map(lambda fields: Noun(*fields))
placed = st.tuples(*attributes, *places).map(lambda fields: Noun(*fields))
listed = st.lists(placed, min_size=1, max_size=9).map(lambda nouns: tuple(sorted(nouns, key=canonical)))
meanings: st.SearchStrategy[Meaning] = st.one_of(
    st.builds(Exists, placed, st.booleans()),
    st.builds(ExactCount, placed, st.integers(0, len(NUMERALS) - 1)),
    st.builds(MoreOf, bare, bare),  # `words` tells no place of these and the next
    st.builds(HasAttribute, bare, shape.map(Noun) | colour.map(lambda name: Noun(None, name)), st.booleans()),
    st.builds(Relation, placed, st.sampled_from(list(OPPOSITE)), placed),
    st.builds(WholeScene, listed, optional(st.tuples(pixels, pixels, pixels))),
)


@settings(max_examples=400)
@given(meanings, st.integers(0, 59))
def test_parsing_the_words_of_any_meaning_gives_it_back(meaning: Meaning, wording: int) -> None:
    text = words(meaning, wording)
    found = parse(text)
    assert (type(found), found) == (type(meaning), meaning)  # as tuples, some meanings equal those of another kind
    decoded = text.replace(",", " ,").capitalize() + " ."
    assert parse(decoded) == parse(text.replace(",", "")) == meaning


def test_every_caption_and_negative_has_a_meaning_of_known_truth(tmp_path: Path) -> None:
    write(tmp_path, ShapesSettings(images=60, held_out_every=4, captions=8), lambda done, total: None)
    rows = list(reader.examples({"generated": RawFiles.at(tmp_path)}, {f"{i:06d}" for i in range(60)}))
    captions = [row for row in rows if row["kind"] == "caption"]
    assert {type(parse(row["text"])) for row in captions} == set(get_args(Meaning))
    for row in captions:
        assert check(row["text"], row["scene"]).true, row["text"]
        assert not any(check(text, row["scene"]).true for text in row["negatives"]), row["negatives"]
        if row["question_type"] in ("list", "description"):
            found = check(row["text"], row["scene"])
            assert (found.says, found.named) == ("WholeScene", found.things)
    assert all(row.get("scene") is None for row in rows if row["kind"] != "caption")


def test_full_descriptions_are_true_of_their_scene_alone() -> None:
    """Whatever a description tells: sizes, parts, pixels, the ground."""
    scenes = [facts(scene(ShapesSettings(), i)) for i in range(12)]
    for one in scenes:
        for meaning in levels(one):
            found = parse(words(meaning, 0))
            assert found == meaning
            assert found.truth(one) is True
        assert [other.number for other in scenes if found.truth(other)] == [one.number]


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "red",
        "a red circle",
        "there is red circle",
        "there is a red circles",
        "there is a red circle there",
        "there is a circle red",
        "there are one red circle",
        "there is two red circles",
        "there are two red circle",
        "there are 2 red circles",
        "there are more red circle than blue circles",
        "the red circle is a shape",
        "the red circle is a blue",
        "the color of the circle is a square",
        "a circle is beside a triangle",
        "a circle is above",
        "the image shows only a circle a triangle",
        "the image shows only and a circle",
        "the image shows only a circle and a triangle and a rectangle",
        "the image shows only one circle",
        "the image shows only a circle on a ground of 1 2",
        "the image shows only a circle in the left top part",
        "the image shows only a circle in the part",
        "a circle and nothing else at all",
        "there is a circle in the topleft part",
        "there is a circle at ١ ٢",
    ],
)
def test_what_is_not_in_the_grammar_has_no_meaning(text: str) -> None:
    assert parse(text) is None


SCENE = json.dumps(
    {
        "shapes": {
            "side": 80,
            "ground": [230, 240, 250],
            "things": [
                ["circle", "red", "small", 0, 0, 10, 10],
                ["circle", "red", "large", 40, 0, 80, 30],
                ["triangle", "blue", "medium", 30, 60, 50, 80],
            ],
        }
    }
)


@pytest.mark.parametrize(
    ("text", "true", "named"),
    [
        ("the image shows only a blue triangle and two red circles", True, 3),
        ("only a blue triangle and a red circle can be seen", False, 2),
        ("a red circle and three red triangles and nothing else", False, 1),
        ("the image shows only a blue triangle and two red circles on a ground of 230 240 250", True, 3),
        ("the image shows only a blue triangle and two red circles on a ground of 230 240 251", False, 3),
        ("there are two red circles", True, 2),
        ("there are three red circles", False, 2),
        ("there are three shapes", True, 3),
        ("there is a small blue triangle", True, 0),  # unclear: not false, and not surely named
        ("there is no yellow shape", True, 0),
        ("there is no red shape", False, 0),
        ("a blue triangle is below a red circle", True, 3),
        ("a blue triangle is above a red circle", False, 3),
        ("there are more circles than triangles", True, 3),
        ("the triangle is blue", True, 1),
        ("the triangle is red", False, 1),
        ("there is a red circle at 5 5 sized 10 10", True, 1),
        ("there is a red circle in the top right part", True, 1),
        ("a dog on a sofa", False, 0),
    ],
)
def test_a_text_is_checked(text: str, true: bool, named: int) -> None:
    found = check(text, SCENE)
    assert (found.true, found.named, found.things) == (true, named, 3)
    assert (found.says is None) is (text == "a dog on a sofa")


def test_shares_of_texts() -> None:
    answers = ["there are three shapes", "there is a green circle", "a dog", "there are two red circles", "any"]
    rows = [{"scene": SCENE}] * 4 + [{"scene": None}]
    found = checked(rows, [{"answer": answer} for answer in answers])
    assert {name: metric.value() for name, metric in found.items()} == {
        "faithful": 2 / 4,
        "covered": pytest.approx((3 + 0 + 0 + 2) / 12),
        "understood": 3 / 4,
    }
    lost = checked(rows[:1], [{"answer": answers[0], "quarantined": True}])
    assert [metric.value() for metric in lost.values()] == [0.0, 0.0, 0.0]
    assert checked(rows[4:], [{"answer": "any"}]) == {}


def test_a_scene_that_no_check_knows_is_named() -> None:
    with pytest.raises(BuildError, match="unknown check 'shape'; did you mean 'shapes'"):
        check("", '{"shape": {}}')
    with pytest.raises(BuildError, match="no JSON object of one key"):
        check("", "[1]")
    assert isinstance(check("", SCENE), SceneCheck)
