"""What the example of adaptation prints and leaves: whichever way its numbers fall, they are those of the files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import saqm
from saqm.modelfile import read_header

EXAMPLE = Path(__file__).parents[1] / "examples" / "adapt_to_your_scanner.py"
ROW = re.compile(r"^(\S.*?) {2,}([0-9.]+)% +(-?[01]\.[0-9]{2})$", re.MULTILINE)

pytestmark = pytest.mark.slow


def run(out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)


def test_the_example_prints_its_table_and_leaves_a_model_that_scores(tmp_path: Path) -> None:
    done = run(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = {name: (float(share), float(srocc)) for name, share, srocc in ROW.findall(done.stdout)}
    assert len(rows) == 5
    assert all(0 <= share <= 100 and -1 <= srocc <= 1 for share, srocc in rows.values())
    first, adapted, unsupervised, *_, at_home = rows
    assert first == "A alone (source-only)"
    assert adapted.startswith("saqm adapt")
    assert unsupervised.endswith("(unsupervised)")
    assert rows[at_home][1] > 0.5, "a model that has not learnt its own scanner shows nothing"

    header = read_header(tmp_path / "out" / "adapted" / "model.onnx")
    results = header.training.results
    assert f"helped: {'yes' if results['helped'] else 'no'}\n" in done.stdout
    rose = rows[adapted][1] > rows[first][1]
    if rows[adapted][1] != rows[first][1]:  # two that are printed alike may still differ
        assert f"the making {'rose' if rose else 'did not rise'}, from {rows[first][1]:.2f} to " in done.stdout
    assert "says nothing of your scanner" in done.stdout

    scorer = saqm.load_scorer(tmp_path / "out" / "adapted" / "model.onnx")
    shown = [float(score) for score in done.stdout.split("most damaged:")[1].splitlines()[1].split()]
    pictures = [tmp_path / "out" / "scanner-b" / f"test-{number:02}.png" for number in range(5)]
    assert shown == pytest.approx([saqm.score(saqm.read_image(path), scorer).score for path in pictures], abs=0.051)

    again = run(tmp_path / "out")
    assert again.returncode == 2
    assert "holds a model already; choose another --out" in again.stderr
