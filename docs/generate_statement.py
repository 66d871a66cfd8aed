"""Write tables from the code: what the node accepts, sends, answers, the codes it uses; the metrics of the service.

python docs/generate_statement.py          writes docs/conformance.md and docs/deploy.md anew, between their marks
python docs/generate_statement.py --check  exit code 1 where one is out of date
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from pydicom.uid import UID
from pynetdicom.sop_class import (
    Comprehensive3DSRStorage,
    KeyObjectSelectionDocumentStorage,
    ParametricMapStorage,
    SegmentationStorage,
)

from saqm import __version__
from saqm.findings import CAUSES
from saqm.node import listener, sending
from saqm.node.settings import Settings
from saqm.outputs.dicom import building, maps, notes, report
from saqm.outputs.dicom.maker import INSTITUTIONAL, Coded
from saqm.service.telemetry import Telemetry

PAGES = tuple(Path(__file__).with_name(name) for name in ("conformance.md", "deploy.md"))
MARKED = re.compile(r"(<!-- ([a-z-]+):begin -->\n).*?(<!-- \2:end -->)", re.DOTALL)
# What DICOM calls the statuses of a C-STORE (PS3.4 B.2.3, PS3.7 annex C). When the node answers which, it says itself.
STATUSES: Mapping[int, str] = {
    0x0000: "Success",
    0x0110: "Processing failure",
    0x0111: "Duplicate SOP Instance",
    0x0124: "Refused: Not authorized",
    0xA700: "Refused: Out of Resources",
    0xA900: "Error: Data Set does not match SOP Class",
    0xC000: "Error: Cannot understand",
}
ACCEPTED = "accepted: on disk, synced, in the queue; or known already with the same content"
SAID = re.compile(r"^0x([0-9A-F]{4}) (.+)$", re.MULTILINE)  # in the docstring of saqm.node.listener
SENT: Mapping[str, tuple[str, str]] = {
    Comprehensive3DSRStorage: ("always", "the report of a series"),
    ParametricMapStorage: ("`map = true`", "quality map of an image that has a place in the patient"),
    SegmentationStorage: ("`map = true`", "quality map of any other image"),
    KeyObjectSelectionDocumentStorage: ("`note = true`", "the images of a report whose verdict is not pass"),
}
LIMITS = (
    "title", "host", "port", "max_pdu", "max_associations", "acse_seconds", "dimse_seconds", "network_seconds",
    "max_object_mb", "max_waiting", "reserve_mb", "stable_seconds", "released_seconds", "retry_first_seconds",
    "retry_most_seconds",
)  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def name_of(uid: str) -> str:
    """The name of a UID in the registry (PS3.6 annex A)."""
    return UID(uid).name


def by_name(uids: Iterable[str]) -> list[tuple[str, str]]:
    """Names and UIDs, in the order of the names."""
    return sorted((name_of(uid), uid) for uid in uids)


def implementation() -> str:
    """What an association says of who it is with."""
    return table(
        ("", "value"),
        (
            ("Implementation Class UID", listener.IMPLEMENTATION_CLASS),
            ("Implementation Version Name", f"SAQM_{__version__}"[:16]),
            ("Application Context Name", "1.2.840.10008.3.1.1.1"),
        ),
    )


def accepted() -> str:
    """The SOP classes of which the node is a provider."""
    return table(("SOP class", "UID"), by_name(listener.image_classes()))


def syntaxes() -> str:
    """The transfer syntaxes in which it takes them."""
    return table(("transfer syntax", "UID"), by_name(listener.transfer_syntaxes()))


def sent() -> str:
    """The SOP classes of which it is a user."""
    rows = ((name_of(uid), uid, when, what) for uid, (when, what) in SENT.items())
    return table(("SOP class", "UID", "when", "what"), rows)


def statuses() -> str:
    """What a C-STORE is answered."""
    said = {0x0000: ACCEPTED} | {int(code, 16): when for code, when in SAID.findall(listener.__doc__ or "")}
    return table(
        ("status", "meaning", "when"), ((f"0x{code:04X}", STATUSES[code], said[code]) for code in sorted(said))
    )


def answers() -> str:
    """What the status of an object that was sent leads to."""
    passing = ", ".join(f"0x{status:04X}" for status in sorted(sending.PASSING))
    rows = (
        ("0x0000", "done"),
        (_range(sending.WARNINGS), "done: the object was stored"),
        (f"0x{sending.DUPLICATE:04X}", "done: UIDs are made of the content, so it has this very object already"),
        (f"{_range(sending.OUT_OF_RESOURCES)}, {passing}", "tried again"),
        ("none, or no association", "tried again, and nothing else sent to this destination until then"),
        ("any other, or the SOP class is not accepted", "set aside with the status, shown by `--status`"),
    )
    return table(("status", "what follows"), rows)


def _range(statuses: range) -> str:
    return f"0x{statuses[0]:04X} to 0x{statuses[-1]:04X}"


def limits() -> str:
    """The settings that a partner notices."""
    fields = Settings.model_fields
    return table(("setting", "default"), ((f"`{name}`", fields[name].get_default()) for name in LIMITS))


def coded_terms(*modules: ModuleType) -> list[Coded]:
    """The codes that modules have as constants, singly or in tables."""
    found: list[Coded] = []
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, Coded):
                found.append(value)
            elif isinstance(value, Mapping):
                found += [each for each in value.values() if isinstance(each, Coded)]
    return found


def codes() -> str:
    """Every code that objects made here may hold, but the source images' own."""
    terms = {tuple(each) for each in (*coded_terms(building, report, notes, maps), INSTITUTIONAL)}
    terms |= {(code.value, code.scheme, code.meaning) for cause in CAUSES.values() for code in cause.codes.values()}
    return table(("scheme", "value", "meaning"), sorted((scheme, f"`{value}`", said) for value, scheme, said in terms))


def causes() -> str:
    """Findings, and the code that each is reported with."""
    rows = (
        (name, modality, f"({code.value}, {code.scheme}, {code.meaning})")
        for name, cause in CAUSES.items()
        for modality, code in cause.codes.items()
    )
    return table(("finding", "modality", "Quality Finding"), rows)


def metrics() -> str:
    """What the service tells Prometheus."""
    rows = []
    for family in Telemetry().registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append((f"`{name}`", family.type, family.documentation))
    return table(("metric", "kind", ""), sorted(rows))


TABLES: Mapping[str, Callable[[], str]] = {
    "implementation": implementation,
    "accepted": accepted,
    "syntaxes": syntaxes,
    "sent": sent,
    "statuses": statuses,
    "answers": answers,
    "limits": limits,
    "codes": codes,
    "causes": causes,
    "metrics": metrics,
}


def page(path: Path) -> str:
    """A page with its tables as the code has it now; marks of other names are somebody else's."""

    def made(found: re.Match[str]) -> str:
        return found[1] + TABLES[found[2]]() + found[3] if found[2] in TABLES else found[0]

    return MARKED.sub(made, path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(any(path.read_text(encoding="utf-8") != page(path) for path in PAGES))
    for path in PAGES:
        path.write_text(page(path), encoding="utf-8")
