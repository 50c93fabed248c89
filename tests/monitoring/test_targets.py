"""Which processes of this machine Prometheus is to scrape."""

from __future__ import annotations

import json
from pathlib import Path

from monitoring.targets import main


def test_each_process_that_told_its_address_is_a_target(tmp_path: Path):
    """
    By its name; what is no address of a process is passed over.
    """
    (tmp_path / "feature.json").write_text(json.dumps({"ops": "http://127.0.0.1:4711", "pid": 12}))
    (tmp_path / "gateway.json").write_text(json.dumps({"ops": "http://127.0.0.1:4712", "http": "http://127.0.0.1:8080"}))
    (tmp_path / "other.json").write_text("{}")
    main(tmp_path, tmp_path / "targets" / "local.json")
    assert json.loads((tmp_path / "targets" / "local.json").read_text()) == [
        {"targets": ["127.0.0.1:4711"], "labels": {"process": "feature"}},
        {"targets": ["127.0.0.1:4712"], "labels": {"process": "gateway"}},
    ]
