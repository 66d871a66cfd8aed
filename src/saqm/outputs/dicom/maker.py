"""Who makes an object, and which UIDs it gets: the same content always the same ones."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import NamedTuple

from saqm.errors import SaqmError

PROJECT = "saqm project"
PRODUCT = "saqm"
UID_LENGTH = 64  # characters (PS3.5 9.1)
ROOT = "2.25."  # a UUID as a decimal number (PS3.5 B.2)


class Coded(NamedTuple):
    """A coded concept, in the order that pydicom's `Code` takes."""

    value: str
    scheme: str
    meaning: str


INSTITUTIONAL = Coded("111240", "DCM", "Institutionally defined quality control standard")


@dataclass(frozen=True)
class Maker:
    """Who reports: one per installation, and the same for as long as that stands.

    device_uid: names the installation as the observer. standard: against which a verdict is given (CID 6326).
    station, institution: where it stands; None leaves them out. Raises SaqmError for what is no UID.
    """

    device_uid: str
    standard: Coded = INSTITUTIONAL
    station: str | None = None
    institution: str | None = None

    def __post_init__(self) -> None:
        if not is_uid(self.device_uid):
            raise SaqmError(
                f"device UID {self.device_uid!r}: digits and dots are wanted, at most {UID_LENGTH}, each part without "
                "a leading 0; Maker.named makes one of a name"
            )

    @classmethod
    def named(cls, name: str) -> Maker:
        """A maker whose device UID is made of a name, of this machine say: the same name is the same device."""
        return cls(derived_uid("device", name))


def is_uid(text: str) -> bool:
    """Whether a text is a DICOM UID (PS3.5 9.1)."""
    parts = text.split(".")
    digits = all(part.isascii() and part.isdigit() and (part == "0" or part[0] != "0") for part in parts)
    return len(text) <= UID_LENGTH and digits


def derived_uid(*parts: object) -> str:
    """A UID made of what it stands for, plain types of JSON: the same parts, the same UID.

    The first 128 bits of a SHA-256, marked as a UUID of version 8 (RFC 9562), below DICOM's root for UUIDs.
    """
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).digest()
    number = int.from_bytes(digest[:16])
    number = number & ~(0xF << 76) | 8 << 76
    return f"{ROOT}{number & ~(0x3 << 62) | 2 << 62}"
