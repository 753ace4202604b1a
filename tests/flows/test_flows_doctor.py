"""`vbert doctor`: each check on a machine that is well and on one that isn't."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer

from flows import doctor
from flows.doctor import Check, examine, judged, packages

PROJECT = """
[project]
name = "vbert"
dependencies = ["pydantic>=1", "no-such-package>=2", "numpy>=99"]
[project.optional-dependencies]
some = ["rich>=1"]
other = ["vbert[some]", "not-this-either"]
"""


def by_name(checks: Any) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_this_machine_is_well(tmp_path: Path, vbert: Any) -> None:
    code, out, _ = vbert("doctor", "--store", tmp_path)
    assert code == 0, out
    assert out.splitlines()[-1] == "vbert can run here"
    assert not list(tmp_path.iterdir())  # looking leaves nothing behind
    code, out, _ = vbert("doctor", "--store", tmp_path, "--json")
    found = json.loads(out.splitlines()[-1])
    assert found["ok"]
    names = {check["name"] for check in found["checks"]}
    assert {"packages", "versions", "gpu", "detectron2", "java", "browser", "store", "disk", "prefect server"} <= names


def test_packages_are_compared_with_what_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "constraints.txt").write_text("pydantic==1.0\nnot-here==3\n")
    found = by_name(packages(tmp_path))
    assert found["packages"].state == "broken"
    assert "no-such-package is missing; numpy is" in found["packages"].found
    assert found["packages"].found.endswith("must be >=99")
    assert found["versions"].state == "odd"
    assert found["versions"].found.startswith("pydantic 2")
    assert found["versions"].found.endswith("(tested: 1.0)")
    assert found["extra some"].state == "fine"
    assert found["extra other"].state == "absent"
    assert "-e '.[other]'" in found["extra other"].advice
    assert by_name(packages(tmp_path / "absent"))["packages"].state == "odd"


@pytest.mark.parametrize(
    ("driver", "built", "state", "told"),
    [
        (13020, "13.2", "fine", "the driver runs CUDA 13.2"),
        (13000, "13.2", "fine", "torch is built with 13.2"),
        (12040, "13.2", "odd", "the driver runs CUDA 12.4"),
        (13020, None, "odd", "torch is built with none"),
    ],
)
def test_the_driver_is_compared_with_torch(driver: int, built: str | None, state: str, told: str) -> None:
    check = judged(["NVIDIA H200"], driver, built)
    assert (check.state, bool(check.advice)) == (state, state != "fine")
    assert told in check.found


def test_torch_s_cuda_is_read_from_its_file() -> None:
    import torch

    assert doctor.torch_cuda() == torch.version.cuda


def test_a_java_that_fails_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.java().found == "no `java` on the PATH"
    assert doctor.browser().state == "absent"
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    assert doctor.java().found == "`java -version` fails"
    java.write_text("#!/bin/sh\necho 'openjdk version \"21\"' >&2\n")
    assert doctor.java() == Check("java", "fine", 'openjdk version "21"')
    java.write_text("#!/bin/sh\nexec /bin/sleep 9\n")
    monkeypatch.setattr(doctor, "PATIENCE", 0.1)
    assert doctor.java().state == "odd"


def test_a_store_that_can_t_be_used_is_broken(tmp_path: Path, vbert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store.json").write_text('{"format": 99}')
    code, out, _ = vbert("doctor", "--store", tmp_path)
    assert code == 1
    assert "store format 99, this version knows 2; upgrade vbert" in out
    assert out.splitlines()[-1] == "to be mended: store"
    monkeypatch.setattr(doctor, "writable", lambda root: False)
    (tmp_path / "store.json").write_text('{"format": 2}')
    assert by_name(examine(str(tmp_path)))["store"].state == "odd"  # it can be read
    assert by_name(examine(str(tmp_path / "new")))["store"].state == "broken"


def test_a_bucket_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setattr(doctor, "PATIENCE", 0.2)
    assert [check.state for check in doctor.storage("s3://bucket/prefix")] == ["broken"]


@pytest.mark.parametrize(("free", "state"), [(1 << 20, "broken"), (5 << 30, "odd"), (1 << 40, "fine")])
def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda at: usage(1 << 41, 0, free))
    check = doctor.disk(tmp_path / "not" / "there")
    assert (check.state, str(tmp_path) in check.found) == (state, True)


def test_the_prefect_server_is_asked_for_its_version(
    httpserver: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(tmp_path / "profiles.toml"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert doctor.prefect_server().state == "fine"
    url = httpserver.url_for("/api")
    (tmp_path / "profiles.toml").write_text(f'active = "x"\n[profiles.x]\nPREFECT_API_URL = "{url}"\n')
    httpserver.expect_request("/api/admin/version").respond_with_json(doctor.installed("prefect"))
    assert doctor.prefect_server().found.startswith(url)
    httpserver.clear()
    httpserver.expect_request("/api/admin/version").respond_with_json("3.0.0")
    check = doctor.prefect_server()
    assert (check.state, "is Prefect 3.0.0, here is" in check.found) == ("odd", True)
    httpserver.clear()
    monkeypatch.setenv("PREFECT_API_URL", httpserver.url_for("/elsewhere"))
    assert doctor.prefect_server().state == "broken"
