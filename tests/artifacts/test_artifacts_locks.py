"""Two builders at once: locks save work, truth does not rest on them; two users share one store."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from artifacts import as_user, toy

from vbert.artifacts.making.attempts import new_attempt
from vbert.artifacts.making.engine import build_here
from vbert.artifacts.making.plan import walk
from vbert.artifacts.making.work import Work, make_unit
from vbert.artifacts.steps.stage import Job, Machine
from vbert.artifacts.store import durable
from vbert.artifacts.store import owner as owners
from vbert.artifacts.store.owner import Owner
from vbert.artifacts.store.store import Store
from vbert.artifacts.upkeep.gc import gc
from vbert.artifacts.upkeep.verify import verify

TESTS = Path(__file__).parents[1]

BUILDER = """
import contextlib, json, os, sys
from artifacts import toy
from vbert.artifacts.making.engine import Engine, Events
from vbert.artifacts.store.store import Store

class Told(Events):
    def message(self, artifact, sentence): print("said", sentence, flush=True)
    def started(self, artifact): print("started", artifact.title, flush=True)
    def finished(self, built): print(built.outcome, built.artifact.title, flush=True)

@contextlib.contextmanager
def unlocked(self, fingerprint, waiting=None): yield

root, target, locked = sys.argv[1:]
if locked == "unlocked": Store.lock = unlocked
made = eval(target)
Engine(Store(root), events=Told()).ensure_all([made])
print("read", json.dumps(made.bound(Store(root)).read()), flush=True)
"""


def builder(root: Path, target: str, locked: str = "locked", **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(root), target, locked],
        env=os.environ | {"PYTHONPATH": str(TESTS), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def lines(process: subprocess.Popen[str]) -> list[str]:
    said, wrong = process.communicate(timeout=200)
    assert process.returncode == 0, wrong
    return said.splitlines()


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for said in process.stdout:
        if said.strip() == line:
            return
    raise AssertionError(f"never said {line!r}: {process.communicate()[1]}")


def kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_one_builds_the_other_waits_and_says_for_whom(tmp_path: Path) -> None:
    target = "toy.squares(toy.numbers(3), toy.Slow(seconds=0.4))"
    log = tmp_path / "log"
    first = builder(tmp_path / "s", target, TOY_LOG=str(log))
    wait_for(first, "started toy_squares")
    second = lines(builder(tmp_path / "s", target, TOY_LOG=str(log)))
    rest = lines(first)
    assert second[1].startswith(f"said toy_squares: waiting for process {first.pid} on {Owner.current().host}, since ")
    assert second[2] == "cached toy_squares"
    assert rest == ["built toy_squares", second[-1]]
    assert sorted(log.read_text().split()) == ["0", "1", "2", "square", "square", "square"]


def test_a_killed_holder_frees_the_lock_at_once(tmp_path: Path) -> None:
    target = "toy.squares(toy.numbers(2), toy.Slow(seconds=30))"
    first = builder(tmp_path, target)
    wait_for(first, "started toy_squares")
    store = Store(tmp_path)
    mark = toy.squares(toy.numbers(2), toy.Slow(seconds=30)).fingerprint
    owner = Owner.read(tmp_path / "locks" / f"{mark}.holder")
    assert owner is not None
    assert not owner.dead()
    os.kill(first.pid, signal.SIGKILL)  # the builder alone: its children find out by themselves
    first.wait()
    began = time.monotonic()
    with store.lock(mark):
        assert time.monotonic() - began < 10  # at once, on a busy machine too; the builder would have taken a minute
    assert owner.dead()


def test_a_lock_excludes_threads_and_is_never_deleted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.lock("a"), pytest.raises(Heard), store.lock("a", waiting=_stop):
        raise AssertionError("the second got in")
    with store.lock("a"):
        pass
    assert [path.name for path in (tmp_path / "locks").iterdir()] == ["a.lock"]


class Heard(Exception):
    pass


def _stop(sentence: str) -> None:
    assert "since" in sentence
    raise Heard


@pytest.mark.parametrize("round_", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(8))])
def test_without_locks_there_is_still_one_whole_truth(tmp_path: Path, round_: int) -> None:
    """Units, checkpoints in scratch and publishing of three builders at once; one truth."""
    target = f"toy.graph(4, seconds=0.0{round_})"
    made = [builder(tmp_path, target, "unlocked") for _ in range(3)]
    said = [lines(process) for process in made]
    assert {found[-1] for found in said} == {f"read {sum(n * n for n in range(4)) + sum(n * n for n in range(5))}"}
    built = [line for found in said for line in found if line.startswith("built")]
    assert len(built) >= len(walk(toy.graph(4)))
    store = Store(tmp_path)
    assert verify(store) == []
    assert {p.name for p in (tmp_path / "artifacts").glob("*/*")} == {
        a.fingerprint for a in walk(toy.graph(4, seconds=round_ / 100))
    }
    assert list((tmp_path / "damaged").iterdir()) == []
    gc(store, keep_roots=[toy.graph(4, seconds=round_ / 100).fingerprint], dry_run=False)
    assert list((tmp_path / "unfinished").glob("*/*")) == []


def test_the_first_commit_of_a_unit_stands(tmp_path: Path) -> None:
    """Another worker commits the same unit while this one makes it: its files and figures are the unit's."""
    store = Store(tmp_path)

    def first(job: Job, n: int) -> dict[str, int]:
        (job.directory / "file").write_text("first")
        return {"n": 1}

    def second(job: Job, n: int) -> dict[str, int]:
        assert make_unit(Work(store, "stage", "mark", "key", first, n, Machine())) == {"n": 1}
        (job.directory / "file").write_text("second")
        return {"n": 2}

    work = Work(store, "stage", "mark", "key", second, 0, Machine())
    assert make_unit(work) == {"n": 1}
    units = store.units("stage", "mark")
    record = units.committed(contents=True)["key"]
    assert units.path(record, record.files[0]).read_text() == "first"
    assert list((work.unfinished / "making").iterdir()) == []
    assert make_unit(work) == {"n": 1}  # nothing is made: it is there


def test_attempts_never_share_a_scratch_directory(tmp_path: Path) -> None:
    """Two builders without locks: each has its own, with what the one before left."""
    unfinished = tmp_path / "unfinished" / "stage" / "mark"
    unfinished.mkdir(parents=True)
    first = new_attempt(unfinished, tmp_path) / "content"
    (first / "checkpoint").write_text("1")
    live = first.parent.parent / f"{first.parent.name}.owner"
    owner = json.loads(live.read_text())
    live.write_text(json.dumps(owner | {"host": "elsewhere"}))  # can't be told to be dead: copied
    second = new_attempt(unfinished, tmp_path) / "content"
    assert (second / "checkpoint").read_text() == (first / "checkpoint").read_text() == "1"
    (second / "checkpoint").write_text("2")
    third = new_attempt(unfinished, tmp_path) / "content"  # this process's own: taken over
    assert (third / "checkpoint").read_text() == "2"
    assert not second.exists()
    assert (first / "checkpoint").read_text() == "1"
    assert len({first, second, third}) == 3


def test_an_attempt_killed_before_it_took_over_hides_nothing(tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished" / "stage" / "mark"
    unfinished.mkdir(parents=True)
    first = new_attempt(unfinished, tmp_path) / "content"
    (first / "checkpoint").write_text("1")
    dead = Owner.current()
    record = json.dumps({**vars(dead), "pid": 2**22 + 1})
    (unfinished / "scratch" / "1.owner").write_text(record)
    (unfinished / "scratch" / "2").mkdir()
    (unfinished / "scratch" / "2.owner").write_text(record)
    third = new_attempt(unfinished, tmp_path) / "content"
    assert (third / "checkpoint").read_text() == "1"
    assert [p.name for p in (unfinished / "scratch").iterdir() if p.is_dir()] == ["3"]


def test_owners_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = 2**22 + 1
    me = Owner.current()
    assert me.alive() is True
    assert me.is_current()
    for namespace, machine, change, alive in (
        (owners.INITIAL, "m", {"pid": gone}, False),
        (owners.INITIAL, "m", {"started": "1"}, False),  # the number was given to another process since
        (owners.INITIAL, "m", {"boot": "earlier"}, False),
        (owners.INITIAL, "m", {"boot": "earlier", "machine": "other"}, None),  # another machine of this name
        (owners.INITIAL, "", {"boot": "earlier"}, None),
        ("pid:[7]", "m", {"boot": "earlier"}, None),  # a container of this name, of one image, on another machine
        ("pid:[7]", "m", {"pid": gone}, False),
        ("pid:[7]", "m", {"namespace": "pid:[8]"}, None),  # another container here: its numbers say nothing
        ("pid:[7]", "m", {"namespace": ""}, None),  # of a version that did not record it
        ("", "m", {"pid": gone}, None),
        ("pid:[7]", "m", {"host": "elsewhere", "pid": gone}, None),
    ):
        monkeypatch.setattr(owners, "_namespace", lambda namespace=namespace: namespace)
        monkeypatch.setattr(owners, "_machine", lambda machine=machine: machine)
        other = Owner(**{**vars(Owner.current()), **change})
        assert other.alive() is alive, (namespace, machine, change)
        assert other.dead() is (alive is False)
        assert not other.is_current() or not change
    monkeypatch.undo()
    me.write(tmp_path / "o")
    assert Owner.read(tmp_path / "o") == me
    monkeypatch.setattr(owners, "_sees_processes", lambda: False)  # /proc of another PID namespace
    assert me.alive() is None
    for torn in ("", "{}", "[1]", '{"host": 1'):
        (tmp_path / "o").write_text(torn)
        assert Owner.read(tmp_path / "o") is None
        assert Owner.describe(tmp_path / "o") == "another builder"


NEIGHBOUR = """
import sys
from pathlib import Path
from vbert.artifacts.making.attempts import new_attempt
from vbert.artifacts.store.owner import Owner
from vbert.artifacts.store.store import Store

store = Store(sys.argv[1])
store.prepare()
attempt = new_attempt(store.unfinished("stage", "mark"), store.root)
(attempt / "content" / "checkpoint").write_text("theirs")
(attempt / "files").mkdir()
(attempt / "files" / "file").write_text("theirs")
assert Owner.current().alive() is True
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_builder_in_another_pid_namespace_is_not_taken_for_dead(tmp_path: Path) -> None:
    """Two containers of one host name: its numbers of processes mean nothing here, and ours nothing there."""
    other = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", NEIGHBOUR, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert other.stdin is not None
    assert other.stdout is not None
    if other.stdout.readline() != "ready\n":
        said = other.communicate()[1]
        assert "unshare" in said, said
        pytest.skip(f"no PID namespace can be made here: {said.strip()}")
    try:
        store = Store(tmp_path)
        scratch = store.unfinished("stage", "mark") / "scratch"
        assert Owner.read(scratch / "1.owner").alive() is None  # type: ignore[union-attr]
        mine = new_attempt(store.unfinished("stage", "mark"), store.root)
        assert (mine / "content" / "checkpoint").read_text() == "theirs"
        gc(store, dry_run=False)
        assert {path.name for path in (scratch / "1").rglob("*")} == {"content", "checkpoint", "files", "file"}
    finally:
        other.stdin.close()
        other.wait(30)
    days_ago = time.time() - 8 * 86_400
    for path in scratch.rglob("*"):
        os.utime(path, (days_ago, days_ago))
    new_attempt(store.unfinished("stage", "mark"), store.root)
    assert not (scratch / "1").exists()


def test_leftovers_of_killed_makers_go_with_the_next_attempt(tmp_path: Path) -> None:
    """Half a unit, half an artifact: as large as whole ones, and nobody's."""
    store = Store(tmp_path)
    store.prepare()
    units, unfinished = store.units("stage", "mark"), store.unfinished("stage", "mark")
    killed = Owner(**{**vars(Owner.current()), "pid": 2**22 + 1})
    half = new_attempt(unfinished, store.root)
    killed.write(half.with_name("1.owner"))
    (unfinished / "making" / "key.x").mkdir(parents=True)
    killed.write(unfinished / "making" / "key.x.owner")
    for left in (half / "files", unfinished / "making" / "key.x" / "files"):
        left.mkdir()
        (left / "file").write_text("half")
    with units.making("other") as live, units.making("key"):
        pass_ = {path.name for path in (unfinished / "making").iterdir() if not path.name.startswith("key.")}
        assert pass_ == {live.name, live.name + ".owner"}
        assert not (unfinished / "making" / "key.x").exists()
    new_attempt(unfinished, store.root)
    assert not half.exists()


# ---------------------------------------------------------------------- two users

A, B = 54321, 54322


@pytest.fixture
def data() -> Iterator[Path]:
    if (reason := as_user.why_not()) is not None:
        pytest.skip(reason)
    with as_user.shared_directory() as directory:
        yield directory


def as_builder(uid: int, umask: int, root: Path, target: str, **environment: str) -> subprocess.Popen[str]:
    code = f"import sys; sys.argv[1:] = [{str(root)!r}, {target!r}, 'locked']\n" + BUILDER
    return as_user.python(uid, code, umask, **environment)


@pytest.mark.parametrize("umask", [pytest.param(0o022, marks=pytest.mark.slow), 0o077], ids=["umask 022", "umask 077"])
def test_two_users_of_one_group_share_a_store(data: Path, umask: int) -> None:
    root, log = data / "store", data / "log"
    log.touch()
    log.chmod(0o666)
    nested = "toy.nested(toy.numbers(3))"
    assert lines(as_builder(A, umask, root, nested))[-1] == 'read {"0": 0, "1": 1, "2": 4}'
    # B reads what A made, directories inside it too.
    assert lines(as_builder(B, umask, root, nested))[-2:] == ["cached toy_nested", 'read {"0": 0, "1": 1, "2": 4}']

    # B goes on where A was killed: with A's units, and with A's checkpoint.
    slow = "toy.squares(toy.numbers(6), toy.Slow(seconds=0.1))"
    killed = as_builder(A, umask, root, slow, TOY_LOG=str(log))
    _until(lambda: len(list((root / "unfinished").glob("*/*/units/*/unit.json"))) >= 3)
    kill(killed)
    done = len(list((root / "unfinished").glob("*/*/units/*/unit.json")))
    assert lines(as_builder(B, umask, root, slow, TOY_LOG=str(log)))[-2] == "built toy_squares"
    assert 6 <= log.read_text().count("square") <= 6 + 2
    assert done >= 3

    sum_ = "toy.total(toy.squares(toy.numbers(6), toy.Slow(seconds=0.1)), {}, toy.Slow(seconds=0.1))"
    killed = as_builder(A, umask, root, sum_, TOY_LOG=str(log))
    _until(lambda: log.read_text().count("add") >= 3)
    kill(killed)
    assert lines(as_builder(B, umask, root, sum_, TOY_LOG=str(log)))[-1] == "read 55"
    assert log.read_text().count("add") <= 6 + 1

    # B mends what was damaged of A's, and sweeps it.
    (mine,) = root.glob(f"artifacts/toy_numbers/{toy.numbers(3).fingerprint}/*/numbers.json")
    assert mine.stat().st_uid == A
    mine.chmod(0o644)
    mine.write_text("")
    assert lines(as_builder(B, umask, root, "toy.numbers(3)"))[-1] == "read [0, 1, 2]"
    sweep = f"""
from vbert.artifacts.store.store import Store
from vbert.artifacts.upkeep.gc import gc
swept = gc(Store({str(root)!r}), dry_run=False, grace=0)
assert swept.kept == 0 and swept.items, swept
"""
    swept = as_user.python(B, sweep, umask)
    assert (swept.wait(), swept.communicate()[1]) == (0, "")
    left = [path for path in root.rglob("*") if path.is_file() and path.parent.name != "locks"]
    assert left == [root / "store.json"]


def _until(condition: object, seconds: float = 100) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def modes(root: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in [root, *root.rglob("*")] if not path.is_symlink()}


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_the_users_umask_holds_where_a_store_is_not_shared(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        build_here([toy.nested(toy.numbers(3)), toy.graph(2)], tmp_path / "store")
        store = Store(tmp_path / "store")
        store.record_run("x", {})
        assert os.umask(umask) == umask
        assert modes(store.root) <= {mode & ~umask for mode in (0o777, 0o666, 0o444)}
        store.share()
        store.prepare()
        assert all(mode & 0o2070 == 0o2070 or not mode & 0o100 for mode in modes(store.root))
        assert all(mode & 0o040 and (mode & 0o020) == (mode & 0o200) >> 3 for mode in modes(store.root))
        shared = modes(store.root)
        build_here([toy.nested(toy.numbers(4))], store)
        assert modes(store.root) <= shared | {0o2770 | 0o005 & ~umask}
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


@pytest.mark.parametrize("given", [False, True])
def test_sharing_that_was_killed_is_done_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    """Half of a store was closed to the group for ever. `given`: by `chmod g+ws`, not by `--shared`."""
    store = Store(tmp_path / "store")
    build_here([toy.nested(toy.numbers(3))], store)
    (store.root / "link").symlink_to("nowhere")
    if given:
        store.root.chmod(0o2775)
    real, opened = durable._open_mode, 0

    def killed(path: Path, mode: int) -> None:
        nonlocal opened
        opened += 1
        if opened > left:
            raise KeyboardInterrupt
        if path.suffix == ".holder":
            path.unlink()  # by the builder whose it is
        real(path, mode)

    again = store.prepare if given else store.share
    for tries in range(60):
        (store.root / "locks" / "x.holder").touch()
        opened, left = 0, tries
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(durable, "_open_mode", killed)
            again()
            break
    assert left > 3, "it was killed several times"
    closed = [path for path in store.root.rglob("*") if not path.is_symlink() and not path.stat().st_mode & 0o040]
    closed += [path for path in store.root.rglob("*") if path.is_dir() and durable.shared(path) is None]
    assert closed == []


def test_one_user_shares_what_the_other_builds_on(data: Path) -> None:
    """A store of A alone, its group given to it later."""
    (data / "mine").mkdir(mode=0o755)
    os.chown(data / "mine", A, as_user.GROUP)
    (data / "mine").chmod(0o755)
    root, nested = data / "mine" / "store", "toy.nested(toy.numbers(3))"
    assert lines(as_builder(A, 0o077, root, nested))[-1] == 'read {"0": 0, "1": 1, "2": 4}'
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    for path in [root, *root.rglob("*")]:  # `chgrp -R`
        os.chown(path, A, as_user.GROUP)
    share = f"from vbert.artifacts.store.store import Store\nStore({str(root)!r}).share()"
    assert "closed to this user" in as_user.python(B, share).communicate()[1]
    assert as_user.python(A, share, 0o077).communicate()[1] == ""
    assert lines(as_builder(B, 0o077, root, nested))[-2:] == ["cached toy_nested", 'read {"0": 0, "1": 1, "2": 4}']
    assert lines(as_builder(B, 0o077, root, "toy.numbers(4)"))[-1] == "read [0, 1, 2, 3]"
    assert lines(as_builder(A, 0o077, root, "toy.numbers(4)"))[-1] == "read [0, 1, 2, 3]"


def test_users_build_at_once(data: Path) -> None:
    target = "toy.graph(4, seconds=0.05)"
    both = [as_builder(uid, umask, data / "store", target) for uid, umask in ((A, 0o022), (B, 0o077))]
    assert {lines(process)[-1] for process in both} == {"read 44"}
    assert verify(Store(data / "store")) == []


def test_what_another_user_is_just_making_is_asked_for_again() -> None:
    answers = [PermissionError("closed"), PermissionError("closed"), "there"]

    def asked() -> str:
        answer = answers.pop(0)
        if isinstance(answer, PermissionError):
            raise answer
        return answer

    assert durable.retry_permission(asked) == "there"

    def never() -> None:
        raise PermissionError("closed")

    with pytest.raises(PermissionError):
        durable.retry_permission(never)
