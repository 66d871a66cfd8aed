"""What `make demo` runs, on a toy model: it ends, leaves its files and says what they are."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image as pillow

from saqm.outputs.table import read_records

DEMO = Path(__file__).parents[1] / "examples" / "demo.py"

pytestmark = pytest.mark.slow


@pytest.fixture
def demo(tmp_path: Path, toy_model: Path) -> tuple[Path, str]:
    """The folder that the demo leaves, and what it prints."""
    out = tmp_path / "demo"
    command = [sys.executable, str(DEMO), "--out", str(out), "--model", str(toy_model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_the_demo_scores_real_files_and_a_ladder_and_says_what_to_look_at(demo: tuple[Path, str]) -> None:
    out, said = demo
    records = list(read_records(out / "scores.tsv"))
    assert {record["modality"] for record in records} == {"CT", "MR", "US"}
    assert all(record["status"] == "scored" for record in records)
    assert sum(record["frame"] is not None for record in records) == 30  # the cine
    outside = [record for record in records if record["modality"] != "CT"]
    assert all("outside the model's domain" in str(record["warnings"]) for record in outside)

    with (out / "ladder.csv").open() as stream:
        ladder = list(csv.DictReader(stream))
    assert {row["degradation"] for row in ladder} == {"noise", "blur", "compression", "median"}
    assert len({row["score"] for row in ladder if row["strength"] in ("0", "0.0")}) == 1  # all start untouched

    for name in ("ladder.png", "map.png"):
        assert name in said
        with pillow.open(out / name) as picture:
            assert picture.width > 1000
    assert "Not a medical device" in said
