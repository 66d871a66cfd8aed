"""Who is asked and for what: a server, its credentials, and what a URL names on it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from saqm.errors import SaqmError

SCHEMES = {"dicomweb": "http", "dicomwebs": "https"}  # ours, and what it is spoken over
VARIABLES = {  # of the environment: what must not stand in a URL, as URLs are kept in records and logs
    "user": "SAQM_DICOMWEB_USER",
    "password": "SAQM_DICOMWEB_PASSWORD",
    "token": "SAQM_DICOMWEB_TOKEN",
    "ca": "SAQM_DICOMWEB_CA",
    "certificate": "SAQM_DICOMWEB_CERTIFICATE",
    "key": "SAQM_DICOMWEB_KEY",
}

# What real servers hold is not always a UID; whatever passes is safe as the name of a file and as part of a URL.
SAFE_UID = re.compile(r"(?!\.+$)[A-Za-z0-9._-]{1,64}")


class DicomwebError(SaqmError):
    """A DICOMweb server cannot be reached, refuses, or sends what it should not.

    retry: whether trying again later can help. status: of its answer; None where there was none.
    """

    def __init__(self, message: str, *, retry: bool = False, status: int | None = None, after: float = 0) -> None:
        super().__init__(message)
        self.retry, self.status, self.after = retry, status, after


@dataclass(frozen=True, kw_only=True)
class Server:
    """How a DICOMweb server is reached. Credentials are shown nowhere, not even by `repr`.

    url: http(s)://host[:port]/root, or dicomweb(s)://. ca: PEM file of the authorities to trust instead of the
    system's. certificate, key: PEM files of ours, where the server wants one. timeout: seconds of silence. seconds: of
    a request as a whole, however busy. attempts, pause: how often, and the seconds before the second; each further one
    waits twice as long, or what the server asks for. largest: bytes of an instance.
    """

    url: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    timeout: float = 30
    seconds: float = 600
    attempts: int = 4
    pause: float = 1
    largest: int = 4 * 2**30

    def __post_init__(self) -> None:
        """Raises DicomwebError for what cannot be meant."""
        root, what = split(self.url)
        if what != EVERYTHING:
            raise DicomwebError(f"{self.url}: the root of a server is wanted, without studies, series or instances")
        object.__setattr__(self, "url", root)
        if self.token is not None and self.user is not None:
            raise DicomwebError(f"{root}: a user and a token are two ways to say who asks; choose one")
        if self.user is None and self.password is not None:
            raise DicomwebError(f"{root}: a password without a user")
        if self.user is not None and ":" in self.user:
            raise DicomwebError(f"{root}: a user's name with a colon cannot be sent (RFC 7617)")
        if any(not part.isprintable() for part in (self.user or "", self.password or "", self.token or "")):
            raise DicomwebError(f"{root}: credentials with a line break or another control character")
        if not all(c.isascii() for c in self.token or ""):
            raise DicomwebError(f"{root}: a token with a letter outside ASCII")
        if not root.startswith("https") and (self.ca or self.certificate):
            raise DicomwebError(f"{root}: certificates, but no TLS: say https:// or dicomwebs://")
        if self.attempts < 1 or not (self.timeout > 0 and self.seconds > 0 and self.pause >= 0 and self.largest > 0):
            raise DicomwebError(f"{root}: at least one attempt, and times and sizes above 0 are wanted")


@dataclass(frozen=True)
class Query:
    """What is looked for: everything, or what has this study, series, instance (UIDs), modality and day of the study.

    date: YYYYMMDD, or a range of two with a dash between. Raises DicomwebError for what is none of these.
    """

    study: str | None = None
    series: str | None = None
    instance: str | None = None
    modality: str | None = None
    date: str | None = None

    def __post_init__(self) -> None:
        for uid in (self.study, self.series, self.instance):
            if uid is not None and not SAFE_UID.fullmatch(uid):
                raise DicomwebError(f"{uid[:80]!a}: a UID is wanted: digits and dots, 64 at most")
        if self.modality is not None and not re.fullmatch(r"[A-Z0-9_]{1,16}", self.modality):
            raise DicomwebError(f"modality {self.modality[:40]!a}: a word of DICOM is wanted: CT, MR, US")
        if self.date is not None and not re.fullmatch(r"\d{8}|\d{8}-(\d{8})?|-\d{8}", self.date):
            raise DicomwebError(f"date {self.date[:40]!a}: YYYYMMDD is wanted, or YYYYMMDD-YYYYMMDD")
        if self.instance is not None and (self.series is None or self.study is None):
            raise DicomwebError(f"instance {self.instance}: its study and its series are wanted as well")


EVERYTHING = Query()


class Found(NamedTuple):
    """An instance that a server holds."""

    study: str
    series: str
    instance: str


def is_url(name: str) -> bool:
    """Whether a name is that of something on a DICOMweb server: dicomweb://... or dicomwebs://..."""
    return name.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def from_environment(url: str, *, ca: Path | None = None) -> Server:
    """The server of a URL, with the credentials that the environment holds for it (see VARIABLES). ca: instead of its.

    Raises DicomwebError.
    """
    root, _ = split(url)
    given = {name: os.environ.get(variable) or None for name, variable in VARIABLES.items()}
    tls = root.startswith("https:")  # one environment may serve several servers, and some of them speak none

    def file(name: str) -> Path | None:
        return Path(given[name] or "") if tls and given[name] else None

    return Server(
        url=root,
        user=given["user"],
        password=given["password"],
        token=given["token"],
        ca=ca or file("ca"),
        certificate=file("certificate"),
        key=file("key"),
    )


def query_of(url: str) -> Query:
    """What a URL names below the root: .../studies/UID/series/UID/instances/UID?Modality=CT&StudyDate=20240101."""
    return split(url)[1]


def name_of(server: Server, found: Found) -> str:
    """The URL of an instance, as records have it. No credentials are in it."""
    scheme, rest = server.url.split("://", 1)
    ours = {theirs: scheme for scheme, theirs in SCHEMES.items()}[scheme]
    return f"{ours}://{rest}{path_of(found)}"


def split(url: str) -> tuple[str, Query]:
    """Root (http://host/root) and what is named below it. Raises DicomwebError, without the URL if it has secrets."""
    if "@" in url:
        raise DicomwebError(
            f"{url.rpartition('@')[2][:200]!a}: credentials in a URL would be seen in records and logs; "
            f"set {VARIABLES['user']} and {VARIABLES['password']}, or {VARIABLES['token']}"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise DicomwebError(f"{url[:200]!a}: no URL") from None
    scheme = SCHEMES.get(parts.scheme, parts.scheme)
    if scheme not in SCHEMES.values() or not host or parts.fragment or not url.isascii() or not url.isprintable():
        raise DicomwebError(f"{url[:200]!a}: dicomweb://host[:port]/root is wanted, or dicomwebs:// for TLS")
    at = f"[{host}]" if ":" in host else host
    place = at if port is None else f"{at}:{port}"
    segments = [segment for segment in parts.path.split("/") if segment]
    named: dict[str, str] = {}
    for level, word in (("instance", "instances"), ("series", "series"), ("study", "studies")):
        if len(segments) > 1 and segments[-2] == word:
            named[level] = segments.pop()
            segments.pop()
    if ("series" in named and "study" not in named) or {".", ".."} & set(segments):
        raise DicomwebError(f"{url[:200]!a}: .../studies/UID/series/UID/instances/UID is wanted")
    return f"{scheme}://{place}{''.join(f'/{segment}' for segment in segments)}", Query(
        **named, **_filters(url, parts.query)
    )


def _filters(url: str, query: str) -> dict[str, str]:
    known = {"modality": "modality", "studydate": "date"}
    found: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        key, _, value = pair.partition("=")
        if key.lower() not in known:  # PatientName, say: it would stand in every log
            raise DicomwebError(f"{url.partition('?')[0]}: only Modality= and StudyDate= may follow the question mark")
        found[known[key.lower()]] = value
    return found


def path_of(found: Found) -> str:
    """Where an instance is below the root."""
    return f"/studies/{found.study}/series/{found.series}/instances/{found.instance}"
