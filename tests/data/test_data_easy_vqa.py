"""easy-VQA: its questions, its published counts, and its rows beside its own files."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from data.data_steps import built, described, same

from tasks.download import download
from vbert.artifacts.store.store import Store
from vbert.data.examples import Examples
from vbert.data.images import Images
from vbert.data.raw import RawFiles
from vbert.data.readers import easy_vqa as reader
from vbert.data.readers.easy_vqa import question_type
from vbert.data.spec import dataset
from vbert.errors import BuildError

pytestmark = pytest.mark.usefixtures("own_memory")


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("what is the blue shape?", "shape"),
        ("what shape does the image contain?", "shape"),
        ("what is the color of the triangle?", "color"),
        ("what color is the shape?", "color"),
        ("is there a red shape in the image?", "yes/no color"),
        ("is no teal shape present?", "yes/no color negated"),
        ("does the image not contain a circle?", "yes/no shape negated"),
        ("is a rectangle present?", "yes/no shape"),
    ],
)
def test_question_types(question: str, kind: str) -> None:
    assert question_type(question) == kind


def test_unknown_question_is_refused() -> None:
    with pytest.raises(BuildError, match=r"q\.json: 'is it a dog\?' is no question of easy-VQA"):
        question_type("is it a dog?", "q.json")


@pytest.fixture(scope="module")
def easy_vqa(tmp_path_factory: pytest.TempPathFactory) -> tuple[Images, Examples, RawFiles]:
    store = Store(tmp_path_factory.mktemp("easy_vqa") / "store")
    index, texts = described(dataset("easy_vqa"))
    try:
        built(store, download(dataset("easy_vqa").sources["package"]))
    except BuildError as error:
        pytest.skip(f"easy-vqa can't be fetched here: {error}")
    built(store, texts)
    return index.bound(store), texts.bound(store), index.bound(store).raws["package"]


def test_easy_vqa_has_its_published_counts(easy_vqa: tuple[Images, Examples, RawFiles]) -> None:
    index, texts, _ = easy_vqa
    spec = dataset("easy_vqa")
    table, rows = index.table().to_pylist(), texts.table().to_pylist()
    official = Counter(row["image_id"].split("/")[0] for row in table)
    assert official == spec.images.counts == {"train": 4000, "test": 1000}
    assert spec.examples is not None
    assert Counter(row["example_id"].split("/")[0] for row in rows) == spec.examples.counts
    assert len({row["example_id"] for row in rows}) == 48_248
    assert len({answer["answer"] for row in rows for answer in row["answers"]}) == 13
    yes_no = Counter(row["split"] == "test" for row in rows if row["question_type"].startswith("yes/no"))
    assert yes_no == {False: 28_407, True: 7_136}  # as its README says
    assert {(row["width"], row["height"]) for row in table} == {(64, 64)}


def test_easy_vqa_rows_are_golden(easy_vqa: tuple[Images, Examples, RawFiles]) -> None:
    raws = {"package": easy_vqa[2]}
    rows = list(reader.images(raws))
    found = [rows, list(reader.examples(raws, {row["image_id"] for row in rows}))]
    same(found, "59d02caaef32a8040510519c4f8303ce92e4025965c689fbcdb15ebf7f5c625d", "vbert/data/readers/easy_vqa.py")


def test_easy_vqa_answers_fit_their_questions(easy_vqa: tuple[Images, Examples, RawFiles]) -> None:
    for row in easy_vqa[1].table().to_pylist():
        (answer,) = row["answers"]
        kind = row["question_type"]
        assert (answer["answer"] in ("yes", "no")) == kind.startswith("yes/no")
        assert (answer["answer"] in ("circle", "rectangle", "triangle")) == (kind == "shape")
        assert answer["score"] == 1.0


def test_easy_vqa_validation_is_of_training_images_alone(easy_vqa: tuple[Images, Examples, RawFiles]) -> None:
    index, texts, _ = easy_vqa
    splits = dict(zip(*index.table().select(["image_id", "split"]).to_pydict().values(), strict=True))
    assert 160 < Counter(splits.values())["val"] < 240
    assert all(split == "test" for image_id, split in splits.items() if image_id.startswith("test/"))
    for row in texts.table().to_pylist():
        assert row["split"] == splits[row["image_ids"][0]]


def test_easy_vqa_rows_are_those_of_its_files(easy_vqa: tuple[Images, Examples, RawFiles]) -> None:
    index, texts, raw = easy_vqa
    rows = {row["example_id"]: row for row in texts.table().to_pylist()}
    for split in ("train", "test"):
        questions = json.loads(raw.read(f"easy_vqa/data/{split}/questions.json"))
        for position, (text, answer, number) in enumerate(questions):
            row = rows[f"{split}/{position:05d}"]
            assert (row["text"], row["answers"][0]["answer"]) == (text, answer)
            assert row["image_ids"] == [f"{split}/{number}"]
    assert index.read("test/3") == raw.read("easy_vqa/data/test/images/3.png")
