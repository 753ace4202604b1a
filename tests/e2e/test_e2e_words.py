"""`shapes_words`: captions are true and full, texts find their images, phrases their regions; controls do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import vbert

# Shares of what the generator's oracles reach: (figure, oracle, share).
OF_ORACLES = [
    ("captions/cider", "captioning/leave_one_out", 0.9),
    *((f"list@{seed}/cider", "captioning/list_reworded", 0.85) for seed in range(3)),
    ("retrieval/text_to_image_r1", "retrieval/caption_to_image_r1", 0.9),
    ("retrieval/text_to_image_r1/unique", "retrieval/description_to_image_r1", 0.85),
    ("retrieval/image_to_text_r1", "retrieval/image_to_caption_r1", 0.85),
]
REACHED = {
    "grounding/r1/contested": 0.90,
    "captions/faithful": 0.90,
    **{f"list@{seed}/{name}": least for seed in range(3) for name, least in (("faithful", 0.83), ("covered", 0.80))},
}
CONTROLS = {
    "grounding_text/r1": 0.45,
    "grounding_image/r1": 0.45,
    "retrieval_shuffled/text_to_image_r1": 0.03,
    "retrieval_shuffled/image_to_text_r1": 0.05,
    "list_shuffled/faithful": 0.10,
    "list_none/faithful": 0.10,
}


@pytest.mark.slow
@pytest.mark.timeout(10800)
def test_words_are_learnt_and_their_controls_are_not(tmp_path: Path) -> None:
    done = vbert.run("shapes_words", store=tmp_path, how="local")
    oracles = json.loads(done.artifact("generate[shapes]", vbert.RawFiles).read("oracles.json"))

    def figure(name: str) -> float:
        entry, _, metric = name.partition("/")
        return done.metrics[f"{entry}/shapes/test/{metric}"]

    def oracle(name: str) -> float:
        kind, _, metric = name.partition("/")
        return float(oracles[kind]["test"][metric])

    of_oracles = {name: (figure(name), share * oracle(best)) for name, best, share in OF_ORACLES}
    assert {name: both for name, both in of_oracles.items() if both[0] < both[1]} == {}
    assert {name: figure(name) for name, least in REACHED.items() if figure(name) < least} == {}
    assert {name: figure(name) for name, most in CONTROLS.items() if figure(name) > most} == {}
    assert figure("retrieval/image_to_text_r1") > figure("retrieval_random/image_to_text_r1")
    assert figure("grounding/r1") >= 0.9 * figure("grounding/upper_bound")
    (heads,) = (artifact for artifact in done.artifacts if artifact.title == "heads[grounding]")
    assert heads.figures["best"] > max(heads.figures["random_regions"], heads.figures["random_weights"])
    for side in ("text_to_image", "image_to_text"):
        predictions = done.artifact("evaluate[retrieval]", vbert.Evaluation).predictions()
        ranked = [p[side] for p in predictions if side in p]
        first = [(one["rank"] == 1, one["shorter"]["32"] == 1) for one in ranked]
        exhaustive, short = (sum(each) / len(first) for each in zip(*first, strict=True))
        assert short >= exhaustive - 0.01
