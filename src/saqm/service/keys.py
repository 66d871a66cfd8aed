"""Keys of those who may ask: 256 random bits each, kept only as hashes, looked up in constant time.

A key is long enough that a plain SHA-256 cannot be turned back by trying; a slow hash is for what people think up.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from pathlib import Path

from saqm.errors import SaqmError
from saqm.writing import replacing

PREFIX = "saqm_"  # so that a key that leaked into a file can be found there
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def add_key(path: Path, name: str) -> str:
    """A new key under a name, noted in the file by its hash; what is given back is told once and stands nowhere.

    Raises SaqmError for a name that is taken or unfit (it appears in logs), or a file that is none of keys.
    """
    if not _NAME.fullmatch(name):
        raise SaqmError(f"{name!r}: 1 to 64 letters, digits, dots, dashes and underscores are wanted")
    known = _read(path) if path.exists() else {}
    if name in known:
        raise SaqmError(f"{path}: there is a key {name} already; remove its line first, or take another name")
    key = PREFIX + secrets.token_urlsafe(32)
    known[name] = _hashed(key)
    with replacing(path) as beside:
        os.chmod(beside, 0o600)
        beside.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    return key


class Keys:
    """The keys of a file. It is read again once it has changed, so that a key comes or goes without a restart."""

    def __init__(self, path: Path) -> None:
        """Raises SaqmError for a file that cannot be read or holds no key."""
        self._path = path
        self._seen = self._state()
        self._hashes = _read(path)
        if not self._hashes:
            raise SaqmError(f"{path}: holds no key; make one with saqm serve --keys {path} --add-key NAME")

    def holder(self, key: str) -> str | None:
        """Who holds a key; None for nobody. Takes as long whatever the key. A file that is gone lets nobody in."""
        try:
            if (state := self._state()) != self._seen:
                self._hashes, self._seen = _read(self._path), state
        except SaqmError:
            self._hashes = {}
        asked, holder = _hashed(key), None
        for name, known in self._hashes.items():
            if hmac.compare_digest(known, asked):
                holder = name
        return holder

    def _state(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()
        except OSError as error:
            raise SaqmError(f"{self._path}: cannot be read: {error.strerror}") from error
        return found.st_mtime_ns, found.st_size, found.st_ino


def _hashed(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path) -> dict[str, str]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SaqmError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SaqmError(f"{path}: no file of keys: {error}") from error
    if not isinstance(known, dict) or not all(isinstance(value, str) for value in known.values()):
        raise SaqmError(f"{path}: no file of keys: names with their hashes are wanted")
    return known
