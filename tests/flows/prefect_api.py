"""Reads runs, tasks and artifacts from a Prefect server, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from processes import until

FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Api:
    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, timeout=30)

    def post(self, path: str, **body: Any) -> Any:
        done = self._client.post(path, json=body)
        done.raise_for_status()
        return done.json()

    def flow_runs(self, **filters: Any) -> list[dict[str, Any]]:
        """The latest first."""
        return list(self.post("flow_runs/filter", sort="START_TIME_DESC", limit=50, **filters))

    def run_into(self, store: Path) -> dict[str, Any]:
        """The last flow run into a store; the server is that of every test of the session."""
        begun = self.flow_runs(flow_runs={"start_time": {"is_null_": False}})  # not the many a schedule has ahead
        return next(run for run in begun if run["parameters"].get("store") == str(store))

    def deployment(self, flow: str, name: str) -> dict[str, Any]:
        """Empty where there is none."""
        found = self._client.get(f"deployments/name/{flow}/{name}")
        return dict(found.json()) if found.status_code == 200 else {}

    def flow_run(self, flow_run_id: str) -> dict[str, Any]:
        return dict(self._client.get(f"flow_runs/{flow_run_id}").json())

    def tasks(self, flow_run_id: Any, count: int) -> dict[str, dict[str, Any]]:
        """Task runs by name, once `count` of them are final: they are recorded from events, a little later."""

        def recorded() -> list[dict[str, Any]]:
            return self.post("task_runs/filter", flow_runs={"id": {"any_": [str(flow_run_id)]}}, limit=200)

        until(lambda: sum(run["state_type"] in FINAL for run in recorded()) >= count, 30, recorded)
        runs = recorded()
        assert len(runs) == count, [(run["name"], run["state_name"]) for run in runs]
        return {run["name"]: run for run in runs}

    def artifacts(self, flow_run_id: Any) -> dict[str, dict[str, Any]]:
        """By the part of their keys that runs share."""
        found = self.post("artifacts/filter", artifacts={"flow_run_id": {"any_": [str(flow_run_id)]}})
        own = f"-{str(flow_run_id)[-8:]}"
        assert all(artifact["key"].endswith(own) for artifact in found), "no run shows only where another is shown"
        return {artifact["key"].removesuffix(own): artifact for artifact in found}

    def logs(self, flow_run_id: Any, wanted: str) -> list[str]:
        """The lines, once `wanted` is in one of them."""

        def lines() -> list[str]:
            found = self.post("logs/filter", logs={"flow_run_id": {"any_": [str(flow_run_id)]}}, limit=200)
            return [line["message"] for line in found]

        until(lambda: any(wanted in line for line in lines()), 30, lines)
        return lines()


def states(tasks: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Name without the fingerprint → the state's name."""
    return {(name.rsplit(" ", 1)[0] if " " in name else name): run["state_name"] for name, run in tasks.items()}
