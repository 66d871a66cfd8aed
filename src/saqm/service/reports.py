"""Structured reports of what was scored. Called in a worker, because headers of strangers are read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from saqm.errors import ImageError
from saqm.outputs.dicom import Maker, header_of, quality_report

Reportable = tuple[str, str, list[dict[str, Any]]]  # where a file stands, what it is called, its records


def report_of(images: Sequence[Reportable], maker: Maker, now: datetime) -> tuple[str, bytes]:
    """The report of images of one study: a name for it, and the file. Raises SaqmError as `quality_report` does."""
    made = []
    for path, name, records in images:
        try:
            header = header_of(path)
        except ImageError as error:
            raise ImageError(str(error).replace(path, name)) from error
        made.append((header, [{k: v for k, v in record.items() if k not in ("file", "map")} for record in records]))
    report = quality_report(made, maker, now=now)
    buffer = io.BytesIO()
    report.save_as(buffer, enforce_file_format=True)
    return f"{report.SOPInstanceUID}.dcm", buffer.getvalue()
