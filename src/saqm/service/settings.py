"""How the service is set up: a table of saqm.toml, over it the environment, over both the flags."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from saqm.errors import SaqmError

TABLE = "serve"  # of saqm.toml
PREFIX = "SAQM_SERVE_"  # of the environment
MEGABYTE = 1 << 20
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _listed(value: object) -> object:
    """Of the environment: "a, b" is a list."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class ServeSettings(BaseModel):
    """What may be set, with its unit in its description."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on; any but this machine's own demands keys")
    port: int = Field(8787, ge=0, le=65535, description="0 takes a free one")
    hosts: Words = Field((), description="names that requests may be addressed to; empty: any, on loopback its own")
    keys: Path | None = Field(None, description="file of the keys, written by saqm serve --add-key")
    models: Words = Field((), description="names or files; the first is the default; empty: the shipped default")
    workers: int = Field(1, ge=1, description="scoring processes of each model, beside one that shows pictures")
    queue: int = Field(64, ge=1, description="requests at work or waiting; more are refused with 429")
    connections: int = Field(500, ge=1, description="open connections; more are refused with 503")
    max_body_mb: float = Field(512, gt=0, description="MiB of one upload")
    max_stored_mb: float = Field(4096, gt=0, description="MiB of all uploads that are kept at a time")
    max_files: int = Field(1000, ge=1, description="files of one upload")
    max_pixels: int = Field(50_000_000, ge=1, description="pixels of one frame")
    max_frames: int = Field(5000, ge=1, description="frames or slices of one file, and images of one answer")
    seconds: float = Field(60, gt=0, description="seconds that one frame may take")
    read_seconds: float = Field(30, gt=0, description="seconds that a request may keep the service waiting")
    job_minutes: float = Field(60, gt=0, description="minutes that a finished job is kept")
    max_jobs: int = Field(50, ge=1, description="jobs that are kept at a time")
    drain_seconds: float = Field(30, ge=0, description="seconds that running work may take at the end")
    folder: Path | None = Field(None, description="where uploads stand for a while; the system's temporary folder")
    device_uid: str | None = Field(None, description="of this installation, in its reports; made of its name")

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK

    @property
    def max_body(self) -> int:
        """Bytes of one upload."""
        return int(self.max_body_mb * MEGABYTE)

    @property
    def max_stored(self) -> int:
        """Bytes of all uploads that are kept."""
        return int(self.max_stored_mb * MEGABYTE)


def read_settings(
    config: Path | None, environment: Mapping[str, str], flags: Mapping[str, object] | None = None
) -> ServeSettings:
    """The settings of a file, an environment and flags (those that are not None), the last word to the last.

    Raises SaqmError for a file that cannot be read, a name that there is not, and a value that is wrong: all at once.
    """
    given = {} if config is None else _table(config)
    given |= {key.removeprefix(PREFIX).lower(): value for key, value in environment.items() if key.startswith(PREFIX)}
    given |= {key: value for key, value in (flags or {}).items() if value is not None}
    try:
        return ServeSettings.model_validate(given)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        where = f"{config}, [{TABLE}], " if config else ""
        raise SaqmError(f"{where}{PREFIX}* or flags: {wrong}") from error


def _table(config: Path) -> dict[str, object]:
    try:
        with config.open("rb") as stream:
            table = tomllib.load(stream).get(TABLE, {})
    except OSError as error:
        raise SaqmError(f"{config}: cannot be opened: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SaqmError(f"{config}: no TOML: {error}") from error
    if not isinstance(table, dict):
        raise SaqmError(f"{config}: {TABLE} is no table; write [{TABLE}]")
    return table
