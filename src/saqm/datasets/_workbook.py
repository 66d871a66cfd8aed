"""Cells of a sheet of an .xlsx workbook, read with the standard library: CSIQ publishes its scores in no other form."""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from saqm.errors import ManifestError

MAX_BYTES = 100_000_000  # of one part once unpacked: CSIQ's whole file has less than one megabyte
_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"


def sheet_rows(path: Path, sheet: str) -> dict[int, dict[str, str]]:
    """The rows of a sheet by number, their cells as text by column letters, what is empty left out.

    A formula is read by its stored value.

    Raises ManifestError for a file that is no such workbook or has no such sheet.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _rows(archive, sheet)
    except (
        zipfile.BadZipFile, zlib.error, OSError, KeyError, ElementTree.ParseError, ValueError, IndexError,
        NotImplementedError, RuntimeError, EOFError,
    ) as error:  # fmt: skip
        raise ManifestError(f"{path}: not a workbook with a sheet {sheet!r}: {error}") from error


def _rows(archive: zipfile.ZipFile, sheet: str) -> dict[int, dict[str, str]]:
    relations = {each.get("Id"): each.get("Target", "") for each in _part(archive, "xl/_rels/workbook.xml.rels")}
    ids = {each.get("name"): each.get(_RELATION) for each in _part(archive, "xl/workbook.xml").findall(".//{*}sheet")}
    target = relations[ids[sheet]]
    strings: list[str] = []
    if "xl/sharedStrings.xml" in archive.namelist():
        strings = [_text(each) for each in _part(archive, "xl/sharedStrings.xml").findall(".//{*}si")]
    part = target.lstrip("/") if target.startswith("/") else str(PurePosixPath("xl") / target)
    rows: dict[int, dict[str, str]] = {}
    for row in _part(archive, part).findall(".//{*}row"):
        cells = {}
        for cell in row.findall("{*}c"):
            value = _value(cell, strings)
            if value:
                cells[re.sub(r"\d", "", cell.get("r", ""))] = value
        if cells:
            rows[int(row.get("r", max(rows, default=0) + 1))] = cells
    return rows


def _value(cell: ElementTree.Element, strings: list[str]) -> str:
    if cell.get("t") == "inlineStr":
        return _text(cell).strip()
    value = (cell.findtext("{*}v") or "").strip()
    return strings[int(value)].strip() if value and cell.get("t") == "s" else value


def _text(element: ElementTree.Element) -> str:
    return "".join(run.text or "" for run in element.findall(".//{*}t"))


def _part(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    if archive.getinfo(name).file_size > MAX_BYTES:
        raise ValueError(f"{name} has {archive.getinfo(name).file_size} bytes, more than {MAX_BYTES}")
    return ElementTree.fromstring(archive.read(name))
