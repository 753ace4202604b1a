"""The graph on Prefect: the flows' body, its tasks, the UI's artifacts, running a flow in process, schedules.

The store is the truth; Prefect schedules, retries and shows. Nothing else of vbert imports Prefect but the flow files.
"""

import os
import sys
from pathlib import Path
from urllib.request import getproxies

from vbert.errors import UserError

HEARTBEAT = 30  # seconds between two heartbeats of a flow run, the least that Prefect allows
LOOPBACK = ("127.0.0.1", "localhost", "::1")

# Without internet Prefect's telemetry logs errors; the terminal is for our own lines.
_given = dict(os.environ)
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT),
}.items():
    os.environ.setdefault(_name, _value)

if any(name in getproxies() for name in ("http", "https", "all")):
    # A server on this machine is never reached by way of a proxy.
    _named = [name.strip() for name in getproxies().get("no", "").split(",") if name.strip()]
    if "*" not in _named:
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(dict.fromkeys([*_named, *LOOPBACK]))

if "prefect.context" in sys.modules and dict(os.environ) != _given:
    # Prefect was imported first (`prefect deploy`, a notebook, a runner's process) and has read the variables already.
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()


def import_prefect() -> None:
    """Import Prefect. Raises UserError where its own settings, a profile or a variable, keep it from starting."""
    try:
        import prefect.context  # noqa: F401  reads them
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"Prefect does not start with its settings ({type(error).__name__}: {reason}); mend {profiles()} or the "
            "PREFECT_ variables, or give --local"
        ) from None


def profiles() -> Path:
    """The path of Prefect's profiles by its own rules, without importing it."""
    given = os.environ.get("PREFECT_PROFILES_PATH")
    home = os.environ.get("PREFECT_HOME") or "~/.prefect"
    return Path(given).expanduser() if given else Path(home).expanduser() / "profiles.toml"
