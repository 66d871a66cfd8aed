"""`saqm pull` and `saqm push`: images from a DICOMweb server, and reports to one."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saqm.cli.terminal import AsJson, found, made_folder, print_json, say
from saqm.errors import ImageError

if TYPE_CHECKING:
    from saqm.dicomweb import Query

commands = typer.Typer()

CaOption = Annotated[
    Path | None, typer.Option("--ca", help="PEM file of the authorities to trust instead of the system's.")
]


@commands.command(
    epilog="Examples: saqm pull dicomweb://pacs:8042/dicom-web --out incoming --modality CT --date 20240601 · "
    "saqm pull dicomwebs://pacs/dicom-web/studies/1.2.3 --out incoming"
)
def pull(
    url: Annotated[
        str,
        typer.Argument(help="dicomweb://HOST:PORT/ROOT, and /studies/UID behind it; dicomwebs: for TLS."),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder: STUDY/SERIES/INSTANCE.dcm; what is there is not fetched again.")],
    study: Annotated[str | None, typer.Option(metavar="UID", help="Of this study only.")] = None,
    series: Annotated[str | None, typer.Option(metavar="UID", help="Of this series only.")] = None,
    modality: Annotated[str | None, typer.Option(help="Of series of this modality only: CT, MR, US.")] = None,
    date: Annotated[str | None, typer.Option(help="Of studies of this day: YYYYMMDD, or a range with a dash.")] = None,
    ca: CaOption = None,
    as_json: AsJson = False,
) -> None:
    """Fetch images from a DICOMweb server: QIDO-RS and WADO-RS, instance by instance, as they are stored.

    The files are printed as they come; what cannot be had is told, and the exit code is 1. A stopped run goes on where
    it was. Credentials come from the environment and never stand in a URL: SAQM_DICOMWEB_USER and
    SAQM_DICOMWEB_PASSWORD, or SAQM_DICOMWEB_TOKEN; SAQM_DICOMWEB_CA, SAQM_DICOMWEB_CERTIFICATE and SAQM_DICOMWEB_KEY
    name PEM files. `saqm score URL` scores without keeping the files.
    """
    from saqm import dicomweb

    server, asked = dicomweb.from_environment(url, ca=ca), dicomweb.query_of(url)
    asked = _narrowed(asked, study=study, series=series, modality=modality, date=date)
    made_folder(out)
    with closing(dicomweb.pull(server, out, asked)) as pulled:
        if not _tell("fetched", ((each.name, each.path, each.problem) for each in pulled), as_json):
            raise ImageError(f"no image found in {url}")


@commands.command(
    epilog="Examples: saqm push reports/ --to dicomweb://pacs:8042/dicom-web · "
    "saqm push reports/ --to dicomwebs://pacs/dicom-web --ca hospital.pem"
)
def push(
    paths: Annotated[list[str], typer.Argument(help="DICOM files, or folders of them: reports, maps, images.")],
    *,
    to: Annotated[str, typer.Option(help="dicomweb://HOST[:PORT]/ROOT; dicomwebs:// for TLS.")],
    ca: CaOption = None,
    as_json: AsJson = False,
) -> None:
    """Store DICOM files on a DICOMweb server: STOW-RS, a few files in a request.

    The files are printed as they are stored; what is not is told, and the exit code is 1. Credentials come from the
    environment, as for saqm pull.
    """
    from saqm import dicomweb

    server = dicomweb.from_environment(to, ca=ca)
    with closing(dicomweb.push(server, found(paths))) as pushed:
        _tell("stored", ((str(each.path), each.path, each.problem) for each in pushed), as_json)


def _narrowed(asked: Query, **options: str | None) -> Query:
    """What the URL names and the options do. Raises BadParameter where they are not one."""
    for name, value in options.items():
        if value is not None and getattr(asked, name) not in (None, value):
            raise typer.BadParameter(f"--{name} {value}, but the URL names another; say it once")
    return replace(asked, **{name: value for name, value in options.items() if value is not None})


def _tell(done: str, outcomes: Iterable[tuple[str, Path | None, str | None]], as_json: bool) -> int:
    """Print what became of each, and give back how many were done; exit with 1 where something went wrong."""
    told: list[dict[str, str | None]] = []
    failed = count = 0
    for name, path, problem in outcomes:
        count += problem is None
        failed += problem is not None
        if as_json:
            told.append({"name": name, "path": None if path is None else str(path), "problem": problem})
        elif problem is None:
            typer.echo(path)
        if problem is not None:
            say(problem)
    if as_json:
        print_json(told)
    say(f"{count} {done}{f', {failed} not' if failed else ''}")
    if failed:
        raise typer.Exit(1)
    return count
