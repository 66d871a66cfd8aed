"""The service keeps to its own OpenAPI, whatever it is sent: every check of schemathesis, seeded and bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Served

EXAMPLES = 10  # of each operation, beside those that cover its bounds, and chains of operations
# No schema can say that bytes are an image (422), of which kind (406, 415), or that thresholds are in order (422).
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 404, 406, 409, 415, 422]
"""


@pytest.mark.slow
def test_whatever_is_sent_is_answered_as_described(served: Served, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{served.port}/openapi.json",
        "--checks", "all", "--max-examples", str(EXAMPLES), "--seed", "1", "--no-color",
        "--generation-database", "none",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "14 selected / 14 total" in done.stdout
    assert served.client.get("/readyz").status_code == 200


def test_every_answer_that_is_promised_has_an_example_or_is_bytes(served: Served) -> None:
    described = served.client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], path
            assert operation["description"], path
            assert {"401", "403", "421"} <= set(operation["responses"]), (path, method)
            for status, answer in operation["responses"].items():
                for media, content in answer.get("content", {}).items():
                    if media.endswith("json"):
                        assert content["example"], (path, status)
    assert "HTTPValidationError" not in json.dumps(described)
