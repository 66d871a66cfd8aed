"""`saqm score --on ray`: what differs from scoring on this machine alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import typer

from saqm.errors import ImageError

if TYPE_CHECKING:
    from saqm.batch import Record, Settings


def found_everywhere(paths: list[str]) -> list[str]:
    """The files and objects that paths, folders, globs and URLs name. Raises ImageError where there is none."""
    from saqm.scale import find_everywhere

    names = list(find_everywhere(paths))
    if not names:
        raise ImageError(f"no image found in {', '.join(paths)}")
    return names


def score_on_ray(
    names: list[str],
    settings: Settings,
    workers: int,
    out: str | Path | None,
    watched: Callable[[Iterable[Record]], Iterator[Record]],
    *,
    resume: bool,
) -> None:
    """Score on Ray into one file, or, where `out` has no suffix, into a folder of Parquet files that can be resumed.

    The folder may be one in an object store.
    """
    from saqm import scale
    from saqm.outputs import table

    if out is None:
        raise typer.BadParameter("--on ray writes a file or a folder: name it with --out")
    if PurePosixPath(out).suffix:
        if scale.REMOTE in str(out):
            raise typer.BadParameter(f"--out {out}: an object store takes a folder of parts: a name without a suffix")
        table.format_of(out)  # a wrong suffix is told before the work
        if resume:
            raise typer.BadParameter("--resume on Ray goes on with a folder of parts: --out a name without a suffix")
        with closing(scale.score_on_ray(names, settings, workers=workers)) as records:
            table.save_records(watched(records), out)
    else:
        known = scale.begin_parts(out, settings, resume=resume)
        todo = [name for name in names if name not in known]
        with closing(scale.score_on_ray(todo, settings, workers=workers)) as records:
            scale.save_parts(watched(records), out)
