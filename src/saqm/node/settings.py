"""What a node is told: tables [node] and [gate] of saqm.toml, over them the environment, over both the flags."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from saqm.errors import SaqmError
from saqm.outputs.dicom.maker import is_uid

Network = IPv4Network | IPv6Network

TABLE = "node"  # of saqm.toml
PREFIX = "SAQM_NODE_"  # of the environment
MEGABYTE = 1 << 20
DICOM_PORT = 11112  # IANA's port for DICOM that needs no privileges; 2762 is DICOM over TLS


def _title(text: str) -> str:
    """An AE title as PS3.5 6.2 has it: 1 to 16 printable ASCII characters, no backslash, blanks at the ends ignored."""
    title = text.strip()
    if not 1 <= len(title) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
        raise ValueError(f"{text!r} is no AE title: 1 to 16 printable ASCII characters without backslash")
    return title


Title = Annotated[str, AfterValidator(_title)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Allowed(_Table):
    """Who may send: an AE title, and the addresses (10.1.2.3 or 10.1.2.0/24) it may come from."""

    title: Title
    hosts: tuple[Network, ...] = Field(min_length=1)

    @field_validator("hosts", mode="before")
    @classmethod
    def _networks(cls, hosts: object) -> object:
        if isinstance(hosts, list | tuple):
            return tuple(ip_network(host) if isinstance(host, str) else host for host in hosts)
        return hosts

    def holds(self, host: str) -> bool:
        """Whether an address is one of its own; an IPv4 address in IPv6's clothes counts as what it is."""
        address = ip_address(host.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self.hosts)


class Destination(_Table):
    """Where reports go: `title`, `host` and `port` for C-STORE, or the `url` of a DICOMweb root for STOW."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")
    title: Title | None = None
    host: str | None = None
    port: int | None = Field(None, ge=1, le=65535)
    tls: bool = False
    url: str | None = Field(None, pattern=r"^https?://")
    user: str | None = None
    password_file: Path | None = None
    token_file: Path | None = None
    ca: Path | None = None  # of an https:// url; None: the authorities that the system trusts

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        store = (self.title, self.host, self.port)
        if (None not in store) == (self.url is not None) or (self.url is not None and any(store)):
            raise ValueError(f"{self.name}: give title, host and port for C-STORE, or url for STOW")
        if self.url is None and (self.user or self.password_file or self.token_file or self.ca):
            raise ValueError(f"{self.name}: user, password_file, token_file and ca are for STOW")
        if self.url is not None and self.tls:
            raise ValueError(f"{self.name}: tls is for C-STORE; STOW over TLS has an https:// url")
        if (self.user is None) != (self.password_file is None) or (self.user and self.token_file):
            raise ValueError(f"{self.name}: user goes with password_file, or token_file stands alone")
        return self


class Tls(_Table):
    """This node's certificate and key, and the authority that those of all others must be signed by (PEM files)."""

    certificate: Path
    key: Path
    ca: Path
    listen: bool = True  # on the node's own port; False: only towards destinations with tls = true


class Gate(_Table):
    """Thresholds of `saqm gate`; without them reports hold no verdict."""

    pass_at: float
    fail_below: float | None = None
    sure: bool = False
    not_scored: Literal["review", "fail"] = "review"


class Settings(_Table):
    """Everything about a node. Seconds are wall-clock seconds; sizes in MB are of 1,048,576 bytes."""

    folder: Path
    device_uid: str | None = None  # of this installation, in its reports; None: made once and kept in the folder
    title: Title = "SAQM"
    host: str = "127.0.0.1"
    port: int = Field(DICOM_PORT, ge=0, le=65535)  # 0 takes a free one
    allow: tuple[Allowed, ...] = Field(min_length=1)
    destination: tuple[Destination, ...] = Field(min_length=1)
    tls: Tls | None = None
    gate: Gate | None = None

    # scoring
    model: str | None = None
    window: tuple[float, float] | None = None
    mask: Literal["auto", "none"] = "auto"
    strict: bool = False
    workers: int = Field(1, ge=1)
    seconds: float = Field(300, gt=0)  # that a frame may take
    max_pixels: int | None = Field(None, ge=1)
    map: bool = False
    note: bool = False

    # when a series is complete, and how often what ends the node is tried
    stable_seconds: float = Field(30, ge=0)  # without a new instance
    released_seconds: float = Field(5, ge=0)  # the same, once its sender has released the association
    attempts: int = Field(3, ge=2)

    # bounds
    max_waiting: int = Field(20_000, ge=1)  # instances that are accepted and not yet reported
    max_object_mb: float = Field(2048, gt=0)
    reserve_mb: float = Field(1024, ge=0)  # of the disk, that accepting leaves free
    max_pdu: int = Field(131_072, ge=4096)  # bytes
    max_associations: int = Field(10, ge=1)
    acse_seconds: float = Field(30, gt=0)  # for an association to be asked for and answered, TLS included
    dimse_seconds: float = Field(60, gt=0)  # for a message, beside what its size takes
    network_seconds: float = Field(60, gt=0)  # that an association may be silent, and that one PDU may take

    # sending, and what stays
    retry_first_seconds: float = Field(5, gt=0)
    retry_most_seconds: float = Field(900, gt=0)
    keep_hours: float = Field(0, ge=0)  # that images stay once every destination has confirmed their report
    remember_days: float = Field(30, gt=0)  # that an instance sent again is known by its UID
    stop_seconds: float = Field(30, ge=0)  # that what is in hand may take to finish when the node is stopped

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [destination.name for destination in self.destination]
        if len(set(names)) < len(names):
            raise ValueError("two destinations have the same name")
        if self.tls is None and any(destination.tls for destination in self.destination):
            raise ValueError("a destination has tls = true, which needs [node.tls] with certificate, key and ca")
        if self.device_uid is not None and not is_uid(self.device_uid):
            raise ValueError("device_uid: digits and dots are wanted, at most 64")
        if self.note and self.gate is None:
            raise ValueError("note tells of images that did not pass, which needs [gate]")
        if self.window is not None and not self.window[1] > 0:
            raise ValueError("window: the width must be above 0")
        return self


def read_settings(
    config: Path | None, environment: Mapping[str, str], flags: Mapping[str, object] | None = None
) -> Settings:
    """The settings of a file, an environment and flags (those that are not None), the last word to the last.

    Paths in the file are relative to it; what is a table or a list is JSON in the environment. Raises SaqmError, which
    names every fault, and repeats no value: some are secret.
    """
    given = {} if config is None else _tables(config)
    given |= {
        key.removeprefix(PREFIX).lower(): _parsed(value) for key, value in environment.items() if key.startswith(PREFIX)
    }
    given |= {key: value for key, value in (flags or {}).items() if value is not None}
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc'])) or TABLE}: {fault['msg']}" for fault in error.errors())
        where = f"{config}, [{TABLE}], " if config else ""
        raise SaqmError(f"{where}{PREFIX}* or flags: {faults}") from None


def _parsed(value: str) -> object:
    """A value of the environment; JSON where it begins like a table or a list."""
    if value.lstrip()[:1] in ("{", "["):
        with suppress(ValueError):
            return json.loads(value)
    return value


def _tables(config: Path) -> dict[str, Any]:
    """[node], with [gate] inside; other tables are somebody else's."""
    try:
        with config.open("rb") as stream:
            read = tomllib.load(stream)
    except OSError as error:
        raise SaqmError(f"{config}: cannot be opened: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SaqmError(f"{config}: no TOML: {error}") from error
    node = read.get(TABLE, {})
    if not isinstance(node, dict):
        raise SaqmError(f"{config}: {TABLE} is no table; write [{TABLE}]")
    if "gate" in read:
        node.setdefault("gate", read["gate"])
    return _rooted(node, config.resolve().parent)


_PATHS = {"folder", "certificate", "key", "ca", "password_file", "token_file"}


def _rooted(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The table with its relative paths made absolute."""
    rooted: dict[str, Any] = {}
    for name, value in table.items():
        if name in _PATHS and isinstance(value, str):
            rooted[name] = folder / value
        elif isinstance(value, Mapping):
            rooted[name] = _rooted(value, folder)
        elif isinstance(value, list):
            rooted[name] = [_rooted(each, folder) if isinstance(each, Mapping) else each for each in value]
        else:
            rooted[name] = value
    if "model" in rooted and isinstance(rooted["model"], str) and rooted["model"].endswith((".onnx", ".safetensors")):
        rooted["model"] = str(folder / rooted["model"])
    return rooted
