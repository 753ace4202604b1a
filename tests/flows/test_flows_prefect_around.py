"""Prefect's surroundings: proxies, profiles, broken home folders and servers, and imports of Prefect before ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from processes import gone

ROOT = Path(__file__).parents[2]
PROXY = {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}


def python(code: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.upper().startswith(("PREFECT_", "NO_PROXY"))}
    given = clean | {"PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True)


HERE = """
import sys
from flows.on_prefect import import_prefect
from vbert.errors import UserError
try:
    import_prefect()
    from flows.on_prefect.in_process import in_this_process
    from vbert.artifacts.making.engine import Events
    with in_this_process([None], None, Events()): ...
except UserError as error:
    print(error.message)
"""


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("profile", "Prefect does not start with its settings (TOMLDecodeError: {error}); mend {home}/profiles.toml"),
        ("variable", "Prefect does not start with its settings (ValidationError: 1 validation error for "),
        ("home", "Prefect's own server needs a folder that it can write, and {home} is none (Not a directory)"),
        ("server", "no Prefect server answers at http://127.0.0.1:9/api (ConnectError); start one"),
        ("server", "unset PREFECT_API_URL, or give --local"),
        ("profile's server", "`prefect config unset PREFECT_API_URL` (it stands in the profile 'mine' of {home}/prof"),
    ],
)
def test_what_keeps_prefect_from_starting_is_one_sentence(tmp_path: Path, case: str, said: str) -> None:
    home, environment = tmp_path / "home", dict(PROXY)
    error = "Expected '=' after a key in a key/value pair (at line 1, column 6)"
    home.mkdir()
    if case == "profile":
        (home / "profiles.toml").write_text("this is no TOML")
    elif case == "variable":
        environment["PREFECT_SERVER_API_PORT"] = "many"
    elif case == "home":
        (tmp_path / "file").touch()
        home = tmp_path / "file" / "home"
    elif case == "server":
        environment["PREFECT_API_URL"] = "http://127.0.0.1:9/api"
    else:
        url = 'PREFECT_API_URL = "http://127.0.0.1:9/api"'
        (home / "profiles.toml").write_text(f'active = "mine"\n[profiles.mine]\n{url}\n')
    done = python(HERE, home, **environment)
    assert said.format(error=error, home=home) in done.stdout, done
    assert len(done.stdout.splitlines()) == 1


def test_a_flow_used_directly_has_the_commands_settings(tmp_path: Path) -> None:
    """A notebook, `prefect deploy`: Prefect comes first, and has read its variables."""
    code = """
import os, prefect, flows.pipeline
from prefect.settings import get_current_settings
now = get_current_settings()
print(now.flows.heartbeat_frequency, now.server.ephemeral.startup_timeout_seconds, os.environ["NO_PROXY"])
"""
    done = python(code, tmp_path / "home", **PROXY, no_proxy="intranet")
    assert done.stdout == "30 120 intranet,127.0.0.1,localhost,::1\n", done


def test_a_server_is_begun_before_prefect_is_imported_unless_another_may_be_named(tmp_path: Path) -> None:
    code = """
import sys
from flows.on_prefect import own_server
own_server.start_early()
assert "prefect" not in sys.modules
begun = own_server._ahead
print(begun is not None)
if begun is not None:
    own_server.stop_unneeded()
    print(begun.process.poll() is not None)
"""
    home = tmp_path / "home"
    assert python(code, home).stdout == "True\nTrue\n"
    assert python(code, home, PREFECT_API_URL="http://127.0.0.1:9/api").stdout == "False\n"
    home.mkdir()
    (home / "profiles.toml").write_text('[profiles.mine]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n')
    assert python(code, home).stdout == "False\n"


@pytest.mark.slow
def test_behind_a_proxy_the_own_server_is_reached_and_ends_with_the_run(tmp_path: Path) -> None:
    code = """
import os, prefect_toy, psutil
from vbert.artifacts.steps.stage import Machine
from flows.on_prefect.in_process import in_this_process
target = prefect_toy.KINDS["toy"]()
with in_this_process([target], prefect_toy.Store("store"), prefect_toy.Said()):
    print(prefect_toy.toy_flow("store", "toy", {}, Machine()))
print(*(child.pid for child in psutil.Process().children()), os.environ["PREFECT_API_URL"])
"""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "flows")])
    done = python(f"import os; os.chdir({str(tmp_path)!r}){code}", tmp_path / "home", **PROXY | {"PYTHONPATH": paths})
    result, last = done.stdout.splitlines()
    assert result == "{'toy_total/total': 146}", done
    assert gone([psutil.Process(int(pid)) for pid in last.split()[:-1] if psutil.pid_exists(int(pid))])
