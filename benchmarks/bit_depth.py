"""What a detour through 8 bits would change: the metrics on pictures of more, as they are and rounded (`make laws`).

The pictures are the DICOM files with more than 8 bits that come with pydicom, one of each content. Writes
benchmarks/results/bit_depth.csv, which docs/metrics.md quotes.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pydicom.data

from saqm.errors import NotScorable
from saqm.image import read_image
from saqm.metrics import METRICS
from saqm.scorer import MetricScorer, load_scorer, metric_input

FILES = ("693_J2KI.dcm", "CT_small.dcm", "MR_small.dcm", "examples_overlay.dcm", "JPEG2000.dcm")
RESULT = Path(__file__).parent / "results" / "bit_depth.csv"


def main() -> None:
    folder = Path(pydicom.data.__file__).parent / "test_files"
    with RESULT.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["metric", "file", "modality", "value", "value_8_bit"])
        for name in FILES:
            image = read_image(folder / name)
            levels, mask, snap = metric_input(image)
            for key, metric in METRICS.items():
                scorer = load_scorer(key)
                assert isinstance(scorer, MetricScorer)
                given = () if scorer.parameters is None else (scorer.parameters,)
                options = {"mask": mask, **({"snap": snap} if metric.takes_snap else {}), **metric.options}
                try:
                    found = [metric.function(x, *given, **options) for x in (levels, np.rint(levels))]
                except NotScorable:
                    continue  # too small for this metric, or nothing in it
                table.writerow([key, name, image.modality, *(f"{value:.6g}" for value in found)])


if __name__ == "__main__":
    main()
