"""Score records become one HTML file: no network, no server, opens by mail.

    records = with_acquisition(read_records("scores.jsonl"))
    write_report(records, "report.html", title="CT of March")

Everything is in the file: data as JSON that the page only ever shows as text, pictures as data URIs, and a content
security policy that lets nothing run but the page's own script and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from saqm.errors import OutputError
from saqm.outputs.heatmap import RAMP
from saqm.outputs.report.drift import control_charts
from saqm.outputs.report.pictures import LARGE, THUMBNAILS, Pictures, pictures_of
from saqm.outputs.report.rows import Record, checked, models_of, packed, with_acquisition, worst_first
from saqm.scorer import SOFTWARE
from saqm.writing import replacing

if TYPE_CHECKING:
    from saqm.scorer import ModelScorer

__all__ = ["PICTURES", "with_acquisition", "write_report"]

PICTURES = 60  # larger pictures by default: some 3 MB
SCRIPTS = ("data.js", "draw.js", "view.js", "plots.js", "table.js", "image.js", "main.js")  # one scope, in this order


def write_report(
    records: Iterable[Record],
    path: str | Path,
    *,
    title: str = "Image quality",
    pictures: int | None = PICTURES,
    scorer: ModelScorer | None = None,
    created: str | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> None:
    """Write a report of score records (contract 4.4) as one HTML file, beside and then in its place.

    pictures: how many of the worst images get a picture to look at, of 512 pixels at most; all of them, up to
    THUMBNAILS, get a small one. None leaves every picture out, and reads no image. What cannot be shown says why.
    scorer: draws the quality map over each larger picture that it scored itself; None draws none.
    created: the time to note in the page. on_image(done, of): called after each image that was read.
    Device and day, and with them the control charts, come from the keys that `with_acquisition` adds.
    Raises OutputError where there is no record, one is none of `saqm score`, or the file cannot be written.
    """
    if pictures is not None and pictures < 0:
        raise OutputError(f"{pictures} pictures: 0 or more are wanted; None for no picture at all")
    rows = checked(records)
    order = worst_first(rows)
    seen = Pictures() if pictures is None else pictures_of(rows, order, pictures, scorer, on_image)
    models, model_of = models_of(rows)
    data = {
        "title": title,
        "software": SOFTWARE,
        "created": created,
        "models": models,
        **packed(rows, {"model": model_of, "image": seen.of_row}),
        "images": seen.images,
        "charts": control_charts(rows, model_of),
        "ramp": RAMP,
        "largest": LARGE,
        "left_out": _left_out(rows, order, pictures, scorer, seen),
    }
    with replacing(path) as beside:
        beside.write_text(_page(data, title, _in_short(rows)), encoding="utf-8", newline="\n")


def _left_out(
    rows: Sequence[Record], order: Sequence[int], asked: int | None, scorer: ModelScorer | None, seen: Pictures
) -> list[str]:
    """What a reader may miss, and how to get it."""
    if asked is None:
        return ["Pictures were left out (--no-pictures)."]
    said = []
    if len(order) > asked:
        said.append(f"Larger pictures are of the {asked:,} worst of {len(order):,} images: --pictures N for more.")
    if len(order) > THUMBNAILS:
        said.append(f"Small pictures are of the {max(THUMBNAILS, asked):,} worst.")
    if failed := sum("note" in image and "thumbnail" not in image for image in seen.images):
        said.append(f"{failed:,} images could not be shown; their pages say why.")
    if scorer is None:
        said.append("No quality maps were drawn: --maps draws them over the larger pictures.")
    if not any(row.get("acquired") for row in rows):
        said.append(
            "No dates, so no course over time: they come from DICOM headers, unless --no-dates leaves them out."
        )
    return said


def _in_short(rows: Sequence[Record]) -> str:
    """One sentence for a viewer that runs no script."""
    scored = sum(row["status"] == "scored" for row in rows)
    return f"{len(rows):,} rows, {scored:,} of them scored. Open this file in a browser to see them."


def _page(data: dict[str, object], title: str, in_short: str) -> str:
    page = resources.files(__name__) / "page"
    style, *scripts = ((page / name).read_text(encoding="utf-8") for name in ("style.css", *SCRIPTS))
    # the braces keep the names to themselves; "<" is escaped so that no text of the data can end the element
    script = '"use strict";\n{\n' + "\n".join(scripts) + "}\n"
    as_json = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    policy = {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": _hash_of(style),
        "script-src": _hash_of(script),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return Template((page / "page.html").read_text(encoding="utf-8")).substitute(
        policy="; ".join(f"{what} {source}" for what, source in policy.items()),
        software=SOFTWARE,
        title=html.escape(title),
        in_short=in_short,
        style=style,
        data=as_json,
        script=script,
    )


def _hash_of(inlined: str) -> str:
    """The source expression that lets a browser accept this very text and no other (CSP Level 3, 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(inlined.encode()).digest()).decode()}'"
