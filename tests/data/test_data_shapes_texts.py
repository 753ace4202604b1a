"""Texts of the generator, judged by a second evaluator: it parses the words and looks at the published scene graph."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from vbert.data.raw import RawFiles
from vbert.data.shapes.scene import COLOURS
from vbert.data.shapes.scenes import ShapesSettings
from vbert.data.shapes.write import write

Json = dict[str, Any]

SETTINGS = {
    "default": ShapesSettings(images=260, held_out_every=8, pairs=2, choices=9),
    "other": ShapesSettings(
        images=90,
        size=56,
        seed=7,
        objects_min=2,
        objects_max=7,
        shapes=("cross", "diamond", "circle"),
        colours=("red", "blue", "teal"),
        captions=8,
        choices=3,
        held_out_every=4,
    ),
}


class Made:
    """What was generated, by kind of example."""

    def __init__(self, directory: Path, settings: ShapesSettings) -> None:
        self.settings = settings
        self.figures = write(directory, settings, lambda done, total: None)
        self.raw = RawFiles.at(directory)
        self.scenes = {row["image_id"]: row for row in lines(self.raw, "scenes.jsonl")}
        self.oracles = json.loads(self.raw.read("oracles.json"))
        self.rows: dict[str, list[Json]] = defaultdict(list)
        for row in lines(self.raw, "texts.jsonl"):
            self.rows[row["kind"]].append(row)


def lines(raw: RawFiles, name: str) -> list[Json]:
    return [json.loads(line) for line in raw.read(name).splitlines()]


@pytest.fixture(scope="module", params=list(SETTINGS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("shapes"), SETTINGS[request.param])


# The second evaluator: plain two-valued truth, no margins.

WORD = r"(?:(?:small|large) )?(?:(?:{}) )?(?:shape|circle|rectangle|triangle|diamond|cross)".format("|".join(COLOURS))
NOUN = WORD + r"(?:e?s)?(?: in the [a-z]+(?: [a-z]+)? part)?(?: at \d+ \d+)?(?: sized \d+ \d+)?"
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
COUNTED = rf"(?P<n>{'|'.join(NUMBERS)}) (?P<x>{NOUN})"
SIDES = ("left of", "right of", "above", "below")


def centre(item: Json) -> tuple[float, float]:
    x1, y1, x2, y2 = item["box"]
    return (x1 + x2) / 2, (y1 + y2) / 2


def fits(noun: str, item: Json, size: int) -> bool:
    words = re.split(r" in the | part| at | sized ", noun)[0].split()
    shape = words[-1]
    if not (shape in ("shape", "shapes") or shape in (item["shape"], item["shape"] + "s", item["shape"] + "es")):
        return False
    if any(word not in (item["color"], item["size"]) for word in words[:-1]):
        return False
    x, y = centre(item)
    if part := re.search(r"in the (.+) part", noun):
        names = set(part[1].split())
        column, row = ("left", "center", "right")[int(3 * x / size)], ("top", "middle", "bottom")[int(3 * y / size)]
        if not names <= {column, row}:
            return False
    if (at := re.search(r"at (\d+) (\d+)", noun)) and (int(at[1]), int(at[2])) != (int(x), int(y)):
        return False
    x1, y1, x2, y2 = item["box"]
    sized = re.search(r"sized (\d+) (\d+)", noun)
    return sized is None or (int(sized[1]), int(sized[2])) == (x2 - x1, y2 - y1)


def number(noun: str, scene: Json) -> int:
    return sum(fits(noun, item, scene["width"]) for item in scene["objects"])


def beside(first: str, how: str, second: str, scene: Json) -> bool:
    for one in scene["objects"]:
        for other in scene["objects"]:
            (x, y), (u, v) = centre(one), centre(other)
            so = {"left of": x < u, "right of": x > u, "above": y < v, "below": y > v}[how]
            if so and fits(first, one, scene["width"]) and fits(second, other, scene["width"]):
                return True
    return False


def only(text: str, scene: Json) -> bool:
    """The list is the scene's, in some assignment."""
    ground = re.search(r" on a ground of (\d+) (\d+) (\d+)$", text)
    if ground:
        if [int(g) for g in ground.groups()] != scene["ground"]:
            return False
        text = text[: ground.start()]
    nouns = []
    for phrase in re.split(r", | and ", text):
        match = re.fullmatch(rf"(?:a|{'|'.join(NUMBERS)}) ({NOUN})", phrase)
        assert match, phrase
        nouns += [match[1]] * (1 if phrase.startswith("a ") else NUMBERS.index(phrase.split()[0]))

    def assigned(nouns: list[str], items: list[Json]) -> bool:
        if not nouns:
            return not items
        return any(
            fits(nouns[0], item, scene["width"]) and assigned(nouns[1:], items[:k] + items[k + 1 :])
            for k, item in enumerate(items)
        )

    return len(nouns) == len(scene["objects"]) and assigned(nouns, scene["objects"])


def true(text: str, scene: Json) -> bool:
    """Whether the caption is true of the scene; an unknown wording fails the test."""
    patterns = {
        "only": r"the image shows only (?P<list>.+)|only (?P<seen>.+) can be seen|(?P<else>.+) and nothing else",
        "more": rf"(?:there are|the image contains) more (?P<x>{NOUN}) than (?P<y>{NOUN})",
        "number": rf"(?:there (?:is|are)|the image contains) {COUNTED}",
        "present": rf"{COUNTED} (?:is|are) present",
        "exactly": rf"there (?:is|are) exactly {COUNTED} in the image",
        "relation": rf"(?:there is )?a (?P<x>{WORD}) (?:is )?(?P<how>{'|'.join(SIDES)}) a (?P<y>{WORD})",
        "none": rf"(?:there is no|there is not a|no|the image does not contain a|the image contains no) (?P<x>{NOUN})"
        r"(?: in the image| is present)?",
        "some": rf"(?:there is |the image contains |the image shows )?a (?P<x>{NOUN})(?: in the image| is present"
        r"| is in the image)?",
        "is": rf"the (?:color of the )?(?P<x>{WORD}) is (?P<not>not )?(?:a )?(?P<what>[a-z]+)",
    }
    for kind, pattern in patterns.items():
        match = re.fullmatch(pattern, text)
        if match is None:
            continue
        found = match.groupdict()
        if kind == "only":
            return only(found["list"] or found["seen"] or found["else"], scene)
        if kind == "more":
            return number(found["x"], scene) > number(found["y"], scene)
        if kind in ("number", "present", "exactly"):
            return number(found["x"], scene) == NUMBERS.index(found["n"])
        if kind == "relation":
            return beside(found["x"], found["how"], found["y"], scene)
        if kind in ("some", "none"):
            return (number(found["x"], scene) > 0) is (kind == "some")
        items = [o for o in scene["objects"] if fits(found["x"], o, scene["width"])]
        if len(items) != 1:  # "the circle" is of one circle
            return False
        (item,) = items
        return (found["what"] in (item["color"], item["shape"])) is (found["not"] is None)
    raise AssertionError(f"unknown wording: {text}")


def test_captions_are_true_and_negatives_false(made: Made) -> None:
    checked = 0
    for row in made.rows["caption"]:
        scene = made.scenes[row["image_ids"][0]]
        assert true(row["text"], scene), (row["text"], scene)
        for negative in row["negatives"]:
            assert not true(negative, scene), (row["text"], negative, scene)
            checked += 1
    assert checked > 2 * len(made.rows["caption"])


def test_negatives_say_what_they_change(made: Made) -> None:
    """Seen in the words: color and shape change a word, a relation its preposition."""
    words = {"color": set(COLOURS), "relation": {"left", "right", "above", "below"}, "shape": set(made.settings.shapes)}
    found: Counter[str] = Counter()
    for row in made.rows["caption"]:
        for negative, changed in zip(row["negatives"], row["changed"], strict=True):
            found[changed] += 1
            if changed in words and row["question_type"] != "list" and row["question_type"] != "description":
                said, denied = (set(re.findall("[a-z]+", text)) for text in (row["text"], negative))
                plurals = {p for w in words[changed] for p in (w, f"{w}s", f"{w}es")}
                assert said ^ denied <= plurals, (row["text"], negative, changed)
    assert set(found) == {"color", "shape", "size", "place", "count", "relation", "negation"}


def test_images_that_a_caption_is_false_of(made: Made) -> None:
    """False of each, and neither an image nor a text is more frequent there than beside true ones."""
    own: Counter[tuple[str, str]] = Counter()
    other: Counter[tuple[str, str]] = Counter()
    missing = 0
    for row in made.rows["caption"]:
        for image in row["false_of"]:
            assert made.scenes[image]["split"] == row["split"]
            assert not true(row["text"], made.scenes[image]), (row["text"], image)
            other[image, row["question_type"]] += 1
            own[row["image_ids"][0], row["question_type"]] += 1
        missing += made.settings.false_of - len(row["false_of"])
    assert missing < 0.2 * sum(own.values())
    assert sum(abs(own[key] - other[key]) for key in {*own, *other}) < 0.25 * sum(own.values())


def test_every_scene_has_a_caption_true_of_it_alone(made: Made) -> None:
    described: Counter[str] = Counter()
    for row in made.rows["caption"]:
        if row["unique"] and "the image shows only" in row["text"]:
            others = [s for s in made.scenes.values() if s["split"] == row["split"] and true(row["text"], s)]
            assert [s["image_id"] for s in others] == row["image_ids"], row["text"]
        described[row["image_ids"][0]] += row["unique"]
    assert set(described) == set(made.scenes)
    assert all(described.values())


def test_plain_lists_of_two_alike_scenes_are_not_unique(made: Made) -> None:
    lists = [row for row in made.rows["caption"] if row["question_type"] == "list"]
    same: dict[tuple[str, ...], list[Json]] = defaultdict(list)
    for row in lists:
        scene = made.scenes[row["image_ids"][0]]
        same[row["split"], *sorted(f"{o['color']} {o['shape']}" for o in scene["objects"])].append(row)
    assert any(len(rows) > 1 for rows in same.values())
    for rows in same.values():
        assert {row["unique"] for row in rows} == {len(rows) == 1}


def test_things_are_named_in_one_order(made: Made) -> None:
    for row in made.rows["phrases"]:
        if row["example_id"].endswith("/0"):
            nouns = [row["text"][p["start"] : p["end"]].split()[1:] for p in row["phrases"]]
            assert nouns == sorted(nouns)


def test_questions_have_the_right_answers(made: Made) -> None:
    plain = rf"(?P<x>{NOUN})"
    for row in made.rows["question"]:
        text, scene, (answer,) = row["text"], made.scenes[row["image_ids"][0]], row["answers"]
        expected: str | None = None
        if match := re.fullmatch(
            rf"(?:how many|what is the number of) {plain}(?: are there| does the image contain)?\?", text
        ):
            expected = str(number(match["x"], scene))
        elif match := re.fullmatch(rf"(?:are there|does the image contain) more {plain} than (?P<y>{NOUN})\?", text):
            expected = "yes" if number(match["x"], scene) > number(match["y"], scene) else "no"
        elif match := re.fullmatch(rf"is (?:there )?a {plain} (?P<how>{'|'.join(SIDES)}) a (?P<y>{NOUN})\?", text):
            expected = "yes" if beside(match["x"], match["how"], match["y"], scene) else "no"
        elif match := re.fullmatch(rf"(?:is|does)(?P<w>[a-z ]*?)(?: a| no) {plain}(?: present| in the image)?\?", text):
            negated = " not" in text or " no " in text
            expected = "yes" if (number(match["x"], scene) > 0) is not negated else "no"
        elif match := re.fullmatch(
            rf"(?:what|which) (?:color is|is the color of|color does) the {plain}(?: have)?\?", text
        ):
            (item,) = [o for o in scene["objects"] if fits(match["x"], o, scene["width"])]
            expected = item["color"]
        elif match := re.fullmatch(
            r"(?:what is|what shape is|which shape is)(?: the)? (?P<x>[a-z ]+?)(?: shape| one)?\?", text
        ):
            words = set(match["x"].split())
            if words & set(COLOURS):
                (item,) = [o for o in scene["objects"] if words <= {o["color"], o["size"]}]
            else:
                (item,) = scene["objects"]
            expected = item["shape"]
        elif text == "what shape does the image contain?":
            (item,) = scene["objects"]
            expected = item["shape"]
        assert answer == {"answer": expected, "score": 1.0}, (text, scene)


def test_yes_and_no_are_balanced_within_each_wording(made: Made) -> None:
    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for row in made.rows["question"]:
        if row["question_type"] == "exists":
            counts[" no" in row["text"]][row["answers"][0]["answer"]] += 1
    for polarity in counts.values():
        assert sum(polarity.values()) > 50
        assert abs(polarity["yes"] - polarity["no"]) < 4 * sum(polarity.values()) ** 0.5


def test_pairs_are_right_and_guessable_from_neither_text_nor_one_image(made: Made) -> None:
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for row in made.rows["pair"]:
        left, right = (made.scenes[i] for i in row["image_ids"])
        assert left["split"] == right["split"] == row["split"]
        assert row["image_ids"][0] != row["image_ids"][1]
        noun = re.search(
            rf"(?:(?:{'|'.join(COLOURS)}) )?(?:shape|circle|rectangle|triangle|diamond|cross)(?:e?s)?\b", row["text"]
        )
        assert noun is not None
        a, b = number(noun[0], left), number(noun[0], right)
        total = next((k for k, name in enumerate(NUMBERS) if f" {name} {noun[0]}" in row["text"]), None)
        expected = {
            "one": (a > 0) is not (b > 0),
            "both": (a > 0) is (b > 0),
            "same": a == b,
            "different": a != b,
            "total": a + b == total,
        }[row["question_type"]]
        assert row["label"] == ("true" if expected else "false"), (row["text"], left, right)
        labels[row["text"]][row["label"]] += 1
    assert len(labels) > 10
    assert all(counts["true"] == counts["false"] for counts in labels.values())
    for figures in made.oracles["pair"].values():
        assert figures["text"] == figures["text_and_left"] == figures["text_and_right"] == 0.5


def test_sentiments_need_both_image_and_text(made: Made) -> None:
    rows = made.rows["sentiment"]
    for row in rows:
        liked, disliked = re.findall(
            r"(?:(?:{}) )?(?:shapes|circles|rectangles|triangles|diamonds|crosses)".format("|".join(COLOURS)),
            row["text"],
        )
        scene = made.scenes[row["image_ids"][0]]
        difference = number(liked, scene) - number(disliked, scene)
        assert row["label"] == ("neutral", "positive", "negative")[(difference > 0) - (difference < 0)], row["text"]
    assert Counter(row["label"] for row in rows).most_common(1)[0][1] == len(rows) / 3
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    for figures in made.oracles["sentiment"].values():
        assert figures["image"] <= 0.70
        assert figures["text"] <= 0.70


def test_one_choice_is_true_and_stands_anywhere(made: Made) -> None:
    captions = {row["example_id"].replace("caption", "choice"): row for row in made.rows["caption"]}
    places: Counter[int] = Counter()
    scenes: Counter[str] = Counter()
    for row in made.rows["choice"]:
        texts, label, caption = [c["text"] for c in row["choices"]], int(row["label"]), captions[row["example_id"]]
        scene = made.scenes[row["image_ids"][0]]
        assert [true(text, scene) for text in texts] == [k == label for k in range(len(texts))], (texts, scene)
        assert sorted(texts) == sorted([caption["text"], *caption["negatives"]])
        assert len(texts) > 2
        assert (row["split"], row["question_type"]) == (caption["split"], caption["question_type"])
        places[label] += 1
        scenes[row["image_ids"][0]] += 1
    assert min(places[k] for k in range(3)) > 0.2 * places.total()
    assert max(scenes.values()) <= made.settings.choices
    assert len(scenes) == len(made.scenes)
    for figures in made.oracles["choice"].values():
        assert 0.25 <= figures["random"] < 0.34
        assert figures["alone"] < 0.5
        assert figures["compared"] > 0.8


def test_phrases_have_all_their_boxes_and_no_other(made: Made) -> None:
    for row in made.rows["phrases"]:
        scene = made.scenes[row["image_ids"][0]]
        ends = 0
        for phrase in row["phrases"]:
            text = row["text"][phrase["start"] : phrase["end"]]
            article, noun = text.split(" ", 1)
            boxes = [o["box"] for o in scene["objects"] if fits(noun, o, scene["width"])]
            assert sorted(phrase["boxes"]) == sorted(boxes)
            assert len(boxes) == (1 if article in ("a", "the") else NUMBERS.index(article))
            assert phrase["start"] >= ends
            ends = phrase["end"]


def test_statements_deny_as_often_as_they_assert_true_or_false(made: Made) -> None:
    rows = [row for row in made.rows["caption"] if row["question_type"] == "statement"]
    false = [(text, 1 / len(row["negatives"])) for row in rows for text in row["negatives"]]
    for group in ([(row["text"], 1.0) for row in rows], false):
        denying = sum(weight for text, weight in group if " no" in f" {text}")
        assert 0.45 < denying / sum(weight for _, weight in group) < 0.55
    if made.settings.objects_min == 1:
        assert any(re.fullmatch("the shape is (not )?[a-z]+", text) for text in (row["text"] for row in rows))
