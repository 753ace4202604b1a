"""`vbert doctor`: whether this installation and this machine can do what vbert does, and what to do where not."""

from __future__ import annotations

import json

from flows.options import JsonOption, StoreOption


def doctor(*, store: StoreOption = None, json_: JsonOption = False) -> None:
    """Look at the installation, GPU, optional programs, store, disk and Prefect server, and say what to do.

    Exit code 1 where something that is needed is broken.

    Example: `vbert doctor`, or `vbert doctor --store /data/store --json`
    """
    from flows.doctor import examine, tell
    from flows.terminal import page

    checks = []
    out = page()
    for check in examine(store):
        checks.append(check)
        if not json_:
            tell(check, out.print)
    broken = [check.name for check in checks if check.state == "broken"]
    if json_:
        print(json.dumps({"ok": not broken, "checks": [vars(check) for check in checks]}))
    elif broken:
        print(f"to be mended: {', '.join(broken)}")
    else:
        print("vbert can run here")
    if broken:
        raise SystemExit(1)
