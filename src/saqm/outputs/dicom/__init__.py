"""Scores as DICOM has them: structured reports, quality maps, key object notes; and what stands in a report, read back.

    header = header_of("scan.dcm")
    report = quality_report([(header, [score])], Maker(device_uid="2.25.1234"), now=now)
    for reported in read_report(report):
        print(reported.uids["instance"], reported.score, reported.verdict)

Needs highdicom, which is loaded when the first object is made or read; `saqm[dicom]` installs it.
"""

from __future__ import annotations

from saqm.outputs.dicom.building import need_highdicom
from saqm.outputs.dicom.header import header_of
from saqm.outputs.dicom.maker import Coded, Maker
from saqm.outputs.dicom.maps import quality_map
from saqm.outputs.dicom.notes import REJECTION_REASONS, quality_note, rejection_note
from saqm.outputs.dicom.reading import read_report
from saqm.outputs.dicom.report import quality_report
from saqm.outputs.dicom.reported import Reported
from saqm.outputs.dicom.series import Rejection, SeriesReports, save_object

__all__ = [
    "REJECTION_REASONS",
    "Coded",
    "Maker",
    "Rejection",
    "Reported",
    "SeriesReports",
    "header_of",
    "need_highdicom",
    "quality_map",
    "quality_note",
    "quality_report",
    "read_report",
    "rejection_note",
    "save_object",
]
