"""The group table in the manner of MRIQC: one row an image and model, and beside it what each column means."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from saqm.errors import OutputError
from saqm.outputs.report.rows import checked
from saqm.outputs.table import COLUMNS, Column, Record, save_records
from saqm.scorer import SOFTWARE
from saqm.writing import replacing

GROUP_COLUMNS = (*COLUMNS, Column("device", ("device",)), Column("acquired", ("acquired",)))
FORMATS = (".tsv", ".csv", ".parquet")

Description = dict[str, object]


def _said(text: str, **more: object) -> Description:
    return {"Description": text, **more}


_HIGHER = "higher is better"
_SHARE = {"Units": "share", "Minimum": 0, "Maximum": 1}
_PERCENT = {"Units": "points", "Minimum": 0, "Maximum": 100, "Direction": _HIGHER}
_TEXTS = {"Delimiter": "; "}
_JSON = {"Format": "JSON"}

# Every column, in the words of BIDS' sidecars (LongName is left to the name); Direction is ours.
DESCRIPTIONS: dict[str, Description] = {
    "path": _said("File that was scored; a member of an archive as archive.zip!/member"),
    "sha256": _said("SHA-256 of the file"),
    "frame": _said("Frame or slice in the file, from 0; none for a single image", Units="frames", Minimum=0),
    "modality": _said("DICOM's word for what took the image: CT, MR, US, ..."),
    "uids_study": _said("DICOM Study Instance UID"),
    "uids_series": _said("DICOM Series Instance UID"),
    "uids_instance": _said("DICOM SOP Instance UID"),
    "uids_sop_class": _said("DICOM SOP Class UID"),
    "status": _said(
        "Whether there is a score",
        Levels={"scored": "there is one", "not_scored": "there is none; reasons say why"},
    ),
    "score": _said("Quality", **_PERCENT),
    "score_raw": _said(
        "On the model's or the metric's own scale",
        Direction="as model_direction says; higher is better where it is silent",
    ),
    "interval_low": _said("Lower end of the score's interval", **_PERCENT),
    "interval_high": _said("Upper end of the score's interval", **_PERCENT),
    "coverage": _said("Share of intervals that hold what they should; none where nothing is promised", **_SHARE),
    "out_of_domain_statistic": _said(
        "Distance from the images the model knows, over that which 19 of 20 known ones stay within",
        Direction="lower is more alike",
    ),
    "out_of_domain_p": _said(
        "How often a known image lies as far or farther, at most", **_SHARE, Direction="higher is more alike"
    ),
    "out_of_domain_flag": _said(
        "Whether the image is unlike those the model knows; its interval promises nothing then"
    ),
    "out_of_domain_view": _said(
        "In which view it is the least alike",
        Levels={"picture": "the picture itself", "features": "what the network sees"},
    ),
    "verdict": _said(
        "Of the gate, where thresholds were given",
        Levels={"pass": "good enough", "review": "a person should look", "fail": "not good enough"},
    ),
    "reasons": _said("Why there is no score, or why the verdict", **_TEXTS),
    "findings": _said("What is wrong, worst first: name, value, unit, threshold, direction, code", **_JSON),
    "model_name": _said("Model or metric that scored"),
    "model_version": _said("Its version"),
    "model_sha256": _said("SHA-256 of its file"),
    "model_engine": _said("What ran it"),
    "model_direction": _said("Which direction of score_raw is better, of a metric"),
    "model_definition": _said("How exactly the metric follows its source"),
    "preparation_channels": _said("What the model is shown as its three channels"),
    "preparation_mean": _said("Mean taken off each channel", **_TEXTS),
    "preparation_sd": _said("Each channel is divided by this", **_TEXTS),
    "preparation_patch": _said("Side of a window", Units="pixels"),
    "preparation_stride": _said("From window to window", Units="pixels"),
    "preparation_min_coverage": _said("Share of a window that must be anatomy for it to be judged", **_SHARE),
    "preparation_window": _said("Grey-level window, and where it came from", **_JSON),
    "preparation_mask": _said("What was left out of the picture, and how it was found", **_JSON),
    "preparation_judged_share": _said("Share of the picture inside the mask", **_SHARE),
    "preparation_steps": _said("All that was done to the pixels, in order", **_JSON),
    "preparation_snap": _said("Whether the metric's input was rounded, so that flat areas do not depend on it"),
    "preparation_flat_fraction": _said("Share of the judged pixels without any texture", **_SHARE),
    "preparation_parameters": _said("Parameters of a trained metric"),
    "preparation_options": _said("Options of a metric", **_JSON),
    "patches_used": _said("Windows that were judged", Units="windows"),
    "patches_masked": _said("Windows that were left out", Units="windows"),
    "warnings": _said("What to mind", **_TEXTS),
    "software": _said("What made the row"),
    "created": _said("When, ISO 8601; only where asked for"),
    "device": _said("Manufacturer, model and station that took the image, of its DICOM header"),
    "acquired": _said("Day on which the image was taken, of its DICOM header", Units="ISO 8601 date"),
}


def save_group(records: Iterable[Record], path: str | Path) -> Path:
    """Write the group table (.tsv, .csv or .parquet) and its sidecar (.json beside it), whose path is given back.

    Records as for `write_report`; what is missing is n/a in TSV. Raises OutputError, and MissingExtra for Parquet.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise OutputError(
            f"{path}: a group table is written as {', '.join(FORMATS)}; its sidecar stands beside as .json"
        )
    rows = checked(records)
    sidecar = path.with_suffix(".json")
    save_records(rows, path, GROUP_COLUMNS)
    described = {column.name: DESCRIPTIONS[column.name] for column in GROUP_COLUMNS}
    with replacing(sidecar) as beside:
        beside.write_text(
            json.dumps({"GeneratedBy": {"Name": SOFTWARE}, **described}, indent=2) + "\n", encoding="utf-8"
        )
    return sidecar
