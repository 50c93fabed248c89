"""
The processes that run on this machine, as Prometheus reads targets from a file.

    python monitoring/targets.py .driftline/run monitoring/prometheus/targets/local.json

Each process writes its address into the run dir when it starts (`DRIFTLINE_RUN_DIR`); call this again when one was started anew.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def targets(run_dir: Path) -> list[dict[str, Any]]:
    """One entry a process, labelled with its name. (`pipeline` and `service` are labels of the metrics themselves.)"""
    found = []
    for place in sorted(run_dir.glob("*.json")):
        told = json.loads(place.read_text())
        if "ops" in told:
            found.append({"targets": [told["ops"].removeprefix("http://")], "labels": {"process": place.stem}})
    return found


def main(run_dir: Path, out: Path) -> None:
    """Write the file, all of it or nothing."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".part").write_text(json.dumps(targets(run_dir), indent=2) + "\n")
    out.with_suffix(".part").replace(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
