"""Parts of the server by themselves."""

from __future__ import annotations

import pytest
from serve.fake_model import FakeModel
from serve.serving import photo

from vbert.serve import worker
from vbert.serve.gate import host_allowed
from vbert.serve.rate import Rates
from vbert.serve.worker import Job, Opened, open_model, work


def test_rates_grow_back_and_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("vbert.serve.rate.ADDRESSES", 3)
    rates = Rates(60, lambda: now)
    assert [rates.take("a") for _ in range(60)] == [0.0] * 60
    assert rates.take("a") == pytest.approx(1.0)
    now = 0.5
    assert rates.take("a") == pytest.approx(0.5)
    now = 1.01
    assert rates.take("a") == 0.0
    assert [rates.take(f"2001:db8::{k}") for k in range(60)] == [0.0] * 60  # one network
    assert rates.take("2001:db8::ffff") > 0
    for k in range(10):
        rates.take(f"10.0.0.{k}")
    assert len(rates) == 3


@pytest.mark.parametrize(
    ("header", "bound", "allowed"),
    [
        ("127.0.0.1:80", "127.0.0.1", True),
        ("127.8.8.8", "127.0.0.1", True),
        ("LOCALHOST.:1", "127.0.0.1", True),
        ("[::1]:80", "::1", True),
        ("192.168.1.5:80", "127.0.0.1", False),
        ("", "127.0.0.1", False),
        ("[evil", "127.0.0.1", False),
        ("evil.example", "127.0.0.1", False),
        ("evil.example", "0.0.0.0", False),
        ("192.168.1.5:80", "0.0.0.0", True),
        ("box.example:80", "box.example", True),
    ],
)
def test_names_of_the_server(header: str, bound: str, allowed: bool) -> None:
    assert host_allowed(header, bound) is allowed


def test_a_server_that_shares_nothing_forgets_after_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    for forget in (False, True):
        monkeypatch.setattr(worker, "_held", None)
        model = FakeModel()
        opened = Opened(lambda where, model=model: model, "fake", forget=forget)  # type: ignore[arg-type, misc]
        open_model(opened)
        before = model.forgotten
        work(opened, Job("answer", {"image": photo()}, {"question": "what?"}))
        assert model.forgotten - before == forget


def test_examples_are_in_words_that_the_model_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    known = {"what", "color", "is", "the", "shape", "circle", "there", "a", "in", "image"}
    model = FakeModel()
    pieces = staticmethod(lambda text: SimpleNamespace(ids=[int(w in known) for w in text.replace("?", "").split()]))
    encoder = type("Encoder", (), {"unk": 0, "__call__": lambda self, text: pieces(text)})()
    monkeypatch.setattr(model, "encoder", encoder)
    from vbert.serve.examples import examples

    shown = examples(model, ["answer"])  # type: ignore[arg-type]
    assert shown
    for one in shown:
        assert set(one["fields"]["question"].strip("?").split()) <= known
    assert len({one["pictures"][0] for one in shown}) == len(shown)
