"""A folder of images that nobody has scored yet becomes a Manifest, to be filled in by hand."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

from saqm.errors import ManifestError
from saqm.manifest import DEFAULT_DOMAIN, Manifest, Row


def folder(
    root: str | Path,
    pattern: str = "*",
    *,
    scene_from: str | None = None,
    method_from: str | None = None,
    domain: str = DEFAULT_DOMAIN,
) -> Manifest:
    """Every image under a folder as a row without score, to be filled in by hand.

    pattern: which of them, by their path below `root` ("*" crosses folders: "*_v2.png").
    scene_from, method_from: regular expressions searched in that path; their first group is the scene (else the file's
    stem, so that a/01.png and b/01.png are two versions of one scene) and the method (else unknown).
    Raises ManifestError for no image, or for files that an expression does not match, all of them listed.
    """
    from saqm.image import find_images

    root = Path(root).absolute()
    if not root.is_dir():
        raise ManifestError(f"{root}: not a folder")
    rows: list[Row] = []
    unmatched: list[str] = []
    for name in find_images([root]):
        path = Path(name).absolute()
        below = path.relative_to(root).as_posix()
        if not fnmatch(below, pattern):
            continue
        scene, method = _group(scene_from, below, unmatched), _group(method_from, below, unmatched)
        rows.append(Row(path=path, score=None, scene=scene or path.stem, domain=domain, method=method))
    if unmatched:
        raise ManifestError("\n  ".join([f"{root}: {len(unmatched)} names are not matched", *unmatched]))
    if not rows:
        raise ManifestError(f"{root}: no image matches {pattern!r}")
    return Manifest(tuple(rows))


def _group(expression: str | None, below: str, unmatched: list[str]) -> str | None:
    """The first group of a regular expression searched in a path; what it does not match is added to `unmatched`."""
    if expression is None:
        return None
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise ManifestError(f"{expression!r} is not a regular expression: {error}") from error
    if not compiled.groups:
        raise ManifestError(f"{expression!r} has no group; put the part that is wanted in ( )")
    match = compiled.search(below)
    if match is None or not match[1]:
        unmatched.append(f"{below} by {expression!r}")
        return None
    return match[1]
