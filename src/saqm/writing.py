"""Files are written beside and put in place: whoever reads sees the old one or the new one, never a half."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from saqm.errors import OutputError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A file beside `path`, put in its place when the block ends well and removed when it does not.

    Raises OutputError where `path` is no ordinary file, or its folder is missing or cannot be written.
    """
    path = Path(path).resolve()  # a link keeps pointing where it did
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: is not an ordinary file; name one")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # its folder may never have been there
            temporary.unlink(missing_ok=True)
