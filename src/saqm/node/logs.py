"""What a node says of itself: JSON lines that hold UIDs, AE titles, hosts, states and counts, and nothing of a patient.

Errors are told by their type and place, never by their message: messages of parsers quote what they parsed.
"""

from __future__ import annotations

import json
import logging
import threading
import traceback
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

LOGGER = logging.getLogger("saqm.node")
QUIET = ("pynetdicom", "pydicom", "highdicom")  # their lines hold data sets, identifiers and quoted values


def tell(event: str, **fields: object) -> None:
    """One line: what happened, and to what."""
    LOGGER.info(event, extra={"fields": fields})


def tell_error(event: str, error: BaseException, **fields: object) -> None:
    """One line for a fault of our own: its type and where it came about."""
    told = {**fields, "error": type(error).__name__, "at": place_of(error)}
    LOGGER.error(event, extra={"fields": told})


def place_of(error: BaseException) -> str:
    """The innermost frames of an error: file, line and function."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)


class JsonLines(logging.Formatter):
    """Time, level and event of a record, with the fields that `tell` was given."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON. The text of an exception that somebody attached is left out."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        said = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        return json.dumps({**said, **getattr(record, "fields", {})}, default=str)


def start_logging(stream: IO[str], level: int = logging.INFO) -> None:
    """Have everything go to a stream as JSON lines, and the libraries below be silent; for the process of a node."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    LOGGER.handlers[:] = [handler]
    LOGGER.propagate = False
    LOGGER.setLevel(level)
    for name in QUIET:
        hush(name)
    warnings.simplefilter("ignore")  # parsers warn with the values they dislike
    threading.excepthook = _told


def hush(name: str) -> None:
    """Silence a library's loggers."""
    logger = logging.getLogger(name)
    logger.handlers[:] = [logging.NullHandler()]
    logger.propagate = False
    logger.setLevel(logging.CRITICAL + 1)


def _told(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None:
        tell_error("thread ended", arguments.exc_value)
