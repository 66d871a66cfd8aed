"""Tables of predictions: read back as written, and found by the image, whatever it is called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saqm.errors import ManifestError, OutputError, UndefinedScore
from saqm.manifest import Row
from saqm.outputs.predictions import mean_of_seeds, predictions_of, read_predictions, write_predictions


def pictures(folder: Path) -> tuple[Row, ...]:
    rows = []
    for index in range(12):
        path = folder / f"{index}.png"
        Image.fromarray(np.full((2, 2), index, np.uint8)).save(path)
        rows.append(Row(path, 1 + index / 3, f"s{index // 3}", raters=2))
    return tuple(rows)


def test_predictions_are_read_back(tmp_path: Path) -> None:
    rows = [replace(row, score=None if index == 1 else row.score) for index, row in enumerate(pictures(tmp_path))]
    predictions = [None, *(0.1 * index for index in range(1, 12))]
    path = tmp_path / "out.csv"
    write_predictions(path, rows, predictions, [index % 3 for index in range(12)], seeds=7)
    found = read_predictions(path)
    assert [p.prediction for p in found] == predictions
    assert [p.score for p in found] == [row.score for row in rows]
    assert [(p.path, p.fold, p.seed) for p in found[:2]] == [("0.png", 0, 7), ("1.png", 1, 7)]
    assert len({p.sha256 for p in found}) == 12
    assert str(tmp_path) not in path.read_text()
    with pytest.raises(UndefinedScore, match="12 rows, 12 predictions, 1 folds, 12 seeds"):
        write_predictions(path, rows, predictions, [0])
    with pytest.raises(OutputError, match="cannot be written"):
        write_predictions(tmp_path / "none" / "out.csv", rows, predictions, [0] * 12)
    assert read_predictions(path) == found


def test_predictions_find_their_images_whatever_they_are_called(tmp_path: Path) -> None:
    rows = pictures(tmp_path)
    path = tmp_path / "out.csv"
    seeds = [0] * 12 + [1] * 11
    write_predictions(path, rows + rows[:11], [*range(12), *range(2, 13)], [0] * 23, seeds)
    renamed = rows[11].path.rename(tmp_path / "renamed.png")
    table = read_predictions(path)
    by_seed = predictions_of((replace(rows[11], path=renamed), rows[0]), table)
    assert by_seed == ((11, 0), (None, 2))
    assert mean_of_seeds(by_seed) == (11, 1)
    with pytest.raises(ManifestError, match=r"0\.png: predicted twice with seed 0; leave one line"):
        predictions_of(rows[:1], (*table, table[0]))
    with pytest.raises(ManifestError, match="none of the 1 predictions is of one of these 1 images"):
        predictions_of(rows[:1], table[1:2])


def test_a_foreign_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ManifestError, match="wanted the columns sha256, path"):
        read_predictions(path)
    path.write_text("sha256,path,scene,domain,method,fold,seed,score,prediction\nh,a.png,s,d,,x,,1,2\nh\n")
    with pytest.raises(
        ManifestError, match=r"2 problems\n  line 2: invalid literal for int.*\n  line 3: wanted 9 cells"
    ):
        read_predictions(path)
    with pytest.raises(ManifestError, match="cannot be read"):
        read_predictions(tmp_path / "none.csv")
