"""A few predictions and annotations in every format that `vbert score` reads, small enough to score by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ANSWERS = {1: ["net"] * 8 + ["mesh", "a net"], 2: ["2"] * 5 + ["two"] * 5, 3: ["yes"] * 10}
GUESSES = {1: "Mesh", 2: "Two.", 3: "Yes"}  # 0.3, 1, and 0: unanimous answers are compared as they are


def write(folder: Path) -> None:
    """All of them, by the names in README."""
    vqa(folder)
    aokvqa(folder)
    one_answer(folder)
    nlvr2(folder)
    nlvr(folder)
    classification(folder)
    vcr(folder)
    captions(folder)
    grounding(folder)
    refcoco(folder)


def as_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1))


def as_lines(path: Path, rows: Iterable[Any]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def vqa(folder: Path) -> None:
    as_json(folder / "questions.json", {"questions": [{"question_id": n, "question": "?"} for n in ANSWERS]})
    rows = [
        {
            "question_id": n,
            "question_type": "what is" if n == 1 else "how many",
            "answer_type": "other",
            "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": k} for k, a in enumerate(answers, 1)],
        }
        for n, answers in ANSWERS.items()
    ]
    as_json(folder / "annotations.json", {"annotations": rows})
    as_json(folder / "results.json", [{"question_id": n, "answer": answer} for n, answer in GUESSES.items()])


def aokvqa(folder: Path) -> None:
    """b is a difficult one: its direct answer doesn't count."""
    rows = [
        {
            "question_id": name,
            "choices": ["ski", "cat", "dog", "hat"],
            "correct_choice_idx": n,
            "direct_answers": ["ski", "ski", *["skis"] * 8],
            "difficult_direct_answer": name == "b",
        }
        for n, name in enumerate("abc")
    ]
    as_json(folder / "aokvqa_v1p0_val.json", rows)
    guesses = {name: {"multiple_choice": "cat", "direct_answer": "ski"} for name in "abc"}
    as_json(folder / "aokvqa.json", guesses)


def one_answer(folder: Path) -> None:
    truth = {"1": "yes", "2": "red", "3": "two"}
    as_json(folder / "truth.json", truth)
    as_json(folder / "answers.json", truth | {"3": "Two"})
    questions = {n: {"answer": a, "question": "?", "imageId": "7", "isBalanced": True} for n, a in truth.items()}
    questions |= {n: questions["1"] | {"isBalanced": False} for n in ("8", "9")}  # these don't count
    as_json(folder / "gqa.json", questions)
    guesses = [{"questionId": n, "prediction": a} for n, a in (truth | {"3": "Two", "9": "no"}).items()]
    as_json(folder / "gqa_predictions.json", guesses)


def nlvr2(folder: Path) -> None:
    """Set 1's sentence is right of both pairs, set 2's of one of two."""
    names = ("dev-1-0-0", "dev-1-1-0", "dev-2-0-0", "dev-2-3-0")
    rows = [
        {"identifier": name, "sentence": f"Sentence {name[4]}.", "label": label, "left_url": "http://x"}
        for name, label in zip(names, ("True", "False", "True", "True"), strict=True)
    ]
    as_lines(folder / "dev.json", rows)
    as_lines(folder / "balanced_dev.json", rows[2:])
    (folder / "annotated_dev_examples.txt").write_text(
        "Sentence 1.\n* negation\n* coordination\n\nSentence 2.\n* negation\n\nElsewhere.\n* coordination"
    )
    guesses = zip(names, ("true", "FALSE", "True", "False"), strict=True)
    (folder / "nlvr2.csv").write_text("".join(f"{name},{guess}\n" for name, guess in guesses))


def nlvr(folder: Path) -> None:
    """Of presentation 7 one picture of twelve is wrong, of 8 none."""
    names = ("7-0", "7-2", "8-0")
    as_lines(folder / "nlvr_dev.json", [{"identifier": n, "label": "true", "structured_rep": []} for n in names])
    guesses = {f"dev-{name}-{k}.png": "True" for name in names for k in range(6)} | {"dev-7-2-5.png": "false"}
    (folder / "nlvr.csv").write_text("".join(f"{name},{guess}\n" for name, guess in guesses.items()))


def classification(folder: Path) -> None:
    labels = (0, 1, 1, 0)
    as_lines(
        folder / "labels.jsonl", [{"id": n, "img": "x.png", "label": y, "text": "?"} for n, y in enumerate(labels)]
    )
    (folder / "only_labels.csv").write_text("id,label\n0,0\n1,1\n2,0\n3,0\n")
    (folder / "labels.csv").write_text("id,proba,label\n0,0.2,0\n1,0.9,1\n2,0.2,0\n3,0.1,0\n")


def vcr(folder: Path) -> None:
    """Answers right of v1 and v2, rationales of v1 and v3."""
    import numpy as np

    rows = [{"annot_id": f"v{n}", "answer_choices": [], "answer_label": 1, "rationale_label": 2} for n in (1, 2, 3)]
    as_lines(folder / "val.jsonl", rows)
    answers = np.array([[0, 1, 0, 0], [0.1, 0.7, 0.1, 0.1], [1, 0, 0, 0]], np.float32)
    rationales = np.array([[0, 0, 9, 0], [5, 0, 0, 0], [-2, -2, -1, -2]], np.float32)
    np.save(folder / "answers.npy", answers)
    np.save(folder / "rationales.npy", rationales)
    names = [f"answer_{k}" for k in range(4)]
    names += [f"rationale_conditioned_on_a{a}_{k}" for a in range(4) for k in range(4)]
    lines = [",".join(["annot_id", *names])]
    for row, answer, rationale in zip(rows, answers, rationales, strict=True):
        given = [rationale if a == row["answer_label"] else rationale[::-1] for a in range(4)]
        lines.append(",".join([str(row["annot_id"]), *(str(x) for scores in (answer, *given) for x in scores)]))
    (folder / "leaderboard.csv").write_text("\n".join(lines))


def captions(folder: Path) -> None:
    """Three images of two, two and one captions; a caption each, and their scores: image 20's is level with another's,
    the texts 3 and 5 prefer image 10."""
    import numpy as np

    texts = {1: 10, 2: 10, 3: 20, 4: 20, 5: 30}
    words = ["A cat on a mat.", "The cat sits (still).", "Two dogs run", "dogs running outside", "A red bus"]
    rows = [{"id": n, "image_id": image, "caption": w} for (n, image), w in zip(texts.items(), words, strict=True)]
    images = [{"id": image, "file_name": f"{image}.jpg"} for image in (10, 20, 30)]
    as_json(folder / "captions.json", {"images": images, "annotations": rows})
    given = {10: "A cat on a mat.", 20: "two dogs", 30: "a blue train"}
    as_json(folder / "captions_results.json", [{"image_id": i, "caption": c} for i, c in given.items()])
    scores = np.array([[5, 2, 9, 0, 9], [1, 1, 3, 2, 3], [0, 0, 1, 1, 4]], np.float32)
    np.savez(folder / "scores.npz", scores=scores, image_ids=[10, 20, 30], text_ids=[1, 2, 3, 4, 5])
    best = [{"text_id": n, "images": [10, 20, 30]} for n in texts]
    as_lines(folder / "rankings.jsonl", [*best, *({"image_id": i, "texts": [5, 4, 3, 2, 1]} for i in (10, 20, 30))])


def four_images(folder: Path) -> None:
    """Instead of the three: enough for two folds. Each text finds its image but 4, which prefers image 30's row."""
    import numpy as np

    ids = [10, 20, 30, 40]
    rows = [{"id": n, "image_id": image, "caption": f"text {n}"} for n, image in enumerate(ids, 1)]
    as_json(folder / "captions.json", {"images": [{"id": image} for image in ids], "annotations": rows})
    as_json(folder / "captions_results.json", [{"image_id": image, "caption": "text 1"} for image in ids])
    scores = np.eye(4, dtype=np.float32)
    scores[2, 3] = 2
    np.savez(folder / "scores.npz", scores=scores, image_ids=ids, text_ids=[1, 2, 3, 4])
    as_lines(folder / "rankings.jsonl", [{"text_id": n, "images": ids} for n in range(1, 5)])


XML = """<annotation><size><width>100</width><height>80</height></size>{}</annotation>"""
OBJECT = "<object>{}<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


def grounding(folder: Path) -> None:
    """A photo of two people (chain 1, two boxes), a ball (2) and the scene (3); four phrases with a box in two
    sentences. The first people are right under `any`, the second under `merged`; the ball is second best, then
    absent."""
    root = folder / "flickr30k_entities"
    for part in ("Annotations", "Sentences"):
        (root / part).mkdir(parents=True)
    (root / "test.txt").write_text("7\n")
    people = [("<name>1</name>", 0, 0, 10, 40), ("<name>1</name>", 50, 0, 60, 40), ("<name>2</name>", 20, 20, 30, 30)]
    scene = "<object><name>3</name><scene>1</scene><nobndbox>0</nobndbox></object>"
    (root / "Annotations" / "7.xml").write_text(XML.format("".join(OBJECT.format(*one) for one in people) + scene))
    (root / "Sentences" / "7.txt").write_text(
        "[/EN#1/people Two men] throw [/EN#2/other/clothing a ball] in [/EN#3/scene a park] .\n"
        "[/EN#1/people They] play with [/EN#2/other a ball] , [/EN#0/notvisual that] is fun .\n"
        "[/EN#3/scene A park] .\n"
    )
    man, both, ball, far = [0, 0, 10, 40], [0, 0, 60, 40], [20, 20, 30, 30], [90, 70, 95, 75]
    boxes = [[[man], [far, ball]], [[both], [far]]]
    as_json(
        folder / "phrases.json",
        [{"image_id": 7, "sentence_id": k, "boxes": its} for k, its in enumerate(boxes)],
    )


def refcoco(folder: Path) -> None:
    """Three expressions of two things of testA: one box right, one of half the thing, and one on a thing of a pixel's
    width, which has no inclusive overlap with itself."""
    import pickle

    things = [{"id": 1, "image_id": 7, "bbox": [10, 10, 20, 20]}, {"id": 2, "image_id": 7, "bbox": [0, 0, 1, 30]}]
    as_json(folder / "instances.json", {"images": [], "annotations": things})
    common = {"category_id": 1, "image_id": 7, "split": "testA"}
    refs = [
        {**common, "ref_id": n, "ann_id": n, "sentences": [{"sent_id": s, "sent": "it", "raw": "it"} for s in sents]}
        for n, sents in ((1, (11, 12)), (2, (13,)))
    ]
    refs.append({**refs[0], "ref_id": 3, "split": "val"})
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs))
    given = {11: [10, 10, 20, 18], 12: [10, 10, 20, 10], 13: [0, 0, 1, 30]}
    as_json(folder / "expressions.json", [{"sent_id": s, "pred_box": box} for s, box in given.items()])
