"""The graph on Prefect: the flows' body, its tasks, what the UI shows, running a flow here, serving one on a schedule.

The store is the truth; Prefect schedules, retries and shows. Nothing else of vbert imports Prefect but the flow files.
"""

import os

HEARTBEAT = 30  # seconds between two signs of life of a flow run, the shortest that Prefect allows

# Set before Prefect's first import. Without internet its telemetry logs errors; the terminal is for our own lines.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT),
}.items():
    os.environ.setdefault(_name, _value)
