"""Mutated files of others: an entry is read, or refused by the readers' own errors; nothing else leaves a reader."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from regions import interop_files as files

from vbert.artifacts.errors import UserError
from vbert.regions import interop
from vbert.regions.interop.found import BadEntry
from vbert.regions.interop.npz_files import _parse as read_npz
from vbert.regions.interop.vilbert_lmdb import _found as of_vilbert

GIVEN = files.images(2)
ODD = (
    None,
    -1,
    0,
    3.5,
    2**70,
    "4",
    b"!",
    "",
    [1],
    {"a": 1},
    np.zeros(3),
    np.zeros((2, 2), np.int8),
    np.float64("nan"),
    True,
)


def broken(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        kind, at = chance.randrange(4), chance.randrange(max(1, len(out)))
        out = out or bytearray(b"\0")
        if kind == 0:
            out[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del out[at : at + chance.randint(1, 40)]
        elif kind == 2:
            out[at:at] = bytes(chance.choices(b"\0\t\n=A1\xff", k=chance.randint(1, 8)))
        else:
            del out[max(1, at) :]
    return bytes(out) or b"\0"


TABLES: dict[str, Callable[[Path], Path]] = {
    "lxmert_tsv": lambda path: files.lxmert_tsv(path, GIVEN),
    "bottom_up_tsv": lambda path: files.bottom_up_tsv(path, GIVEN),
    "oscar_tsv": lambda path: files.oscar_tsv(path, GIVEN, lineidx=False),
}


OFTEN = pytest.mark.parametrize("times", [300, pytest.param(2000, marks=pytest.mark.slow)])


@OFTEN
@pytest.mark.parametrize("format", TABLES)
def test_a_mutated_table(format: str, times: int, tmp_path: Path) -> None:
    module, chance = interop.load(format), random.Random(format)
    whole = TABLES[format](tmp_path / "a.tsv").read_bytes()
    refused = 0
    for _ in range(times):
        (tmp_path / "a.tsv").write_bytes(broken(whole, chance))
        local = module.files(tmp_path / "a.tsv")
        try:
            with module.opened(local) as read:
                for entry in module.index(local):
                    read(*entry)
        except (UserError, BadEntry):
            refused += 1
    assert refused > times // 4


@OFTEN
def test_a_mutated_npz(times: int, tmp_path: Path) -> None:
    chance, refused = random.Random(1), 0
    folder = files.mcan_npz(tmp_path / "npz", GIVEN, by_rows=True)
    whole = next(folder.iterdir()).read_bytes()
    arrays = dict(np.load(next(folder.iterdir()), allow_pickle=True))
    for at in range(times):
        data = broken(whole, chance)
        if at % 4 == 0:
            name = chance.choice([name for name in arrays if name != "info"])
            np.savez(tmp_path / "x.npz", **(arrays | {name: np.asarray(chance.choice(ODD[1:9]))}))
            data = (tmp_path / "x.npz").read_bytes()
        try:
            read_npz(data, "x")
        except BadEntry:
            refused += 1
    assert refused > times // 4


@OFTEN
def test_a_mutated_dict_of_vilbert(times: int, tmp_path: Path) -> None:
    import lmdb

    with lmdb.open(str(files.vilbert_lmdb(tmp_path / "x", GIVEN, volta=True))) as env, env.begin() as txn:
        held = pickle.loads(txn.get(GIVEN[0].name.encode()))
    chance, refused = random.Random(2), 0
    for _ in range(times):
        about = dict(held)
        for name in chance.sample(sorted(about), 2):
            about[name] = chance.choice(ODD)
        try:
            of_vilbert(about, None, "x")
        except BadEntry:
            refused += 1
    assert refused > times // 4
