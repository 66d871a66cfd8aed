"""`saqm report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saqm.cli.terminal import AsJson, now, print_json, say, stages

if TYPE_CHECKING:
    from saqm.batch import Record
    from saqm.scorer import ModelScorer

commands = typer.Typer()


@commands.command(
    epilog="Examples: saqm report scores.jsonl --out report.html · "
    "saqm report march.tsv april.tsv --out report.html --title 'CT, spring' --pictures 200 --maps --group group.tsv"
)
def report(
    scores: Annotated[list[Path], typer.Argument(help="Result files of saqm score: .jsonl, .json, .csv, .tsv.")],
    *,
    out: Annotated[Path, typer.Option(help="The report: one HTML file that needs nothing else.")],
    title: Annotated[str, typer.Option(help="What stands at its top.")] = "Image quality",
    pictures: Annotated[int, typer.Option(min=0, help="How many of the worst images get a larger picture.")] = 60,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="Put no picture at all into the file.")] = False,
    maps: Annotated[bool, typer.Option("--maps", help="Draw the quality map over each larger picture.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Model file that draws the maps; by itself the shipped one that scored.")
    ] = None,
    no_dates: Annotated[bool, typer.Option("--no-dates", help="Leave out on which day an image was taken.")] = False,
    group: Annotated[
        Path | None, typer.Option(help="Group table as MRIQC has it, with a .json beside: .tsv, .csv, .parquet.")
    ] = None,
    timestamp: Annotated[bool, typer.Option("--timestamp", help="Note the time in the report.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a report of scores: one HTML file to look through, search, filter, print and mail.

    It has the distribution, a table to sort and search, a page for each image, and each device's course over time.
    Pictures, devices and days come from the scored files, as far as they are still there. It holds file paths, devices
    and days, but no patient names; look through the paths and pictures before you mail it.
    """
    from saqm.outputs.report import with_acquisition, write_report
    from saqm.outputs.report.group import save_group
    from saqm.outputs.table import read_records

    if no_pictures and (maps or model is not None):
        raise typer.BadParameter("a map is drawn over a picture: leave --no-pictures out, or --maps and --model")
    if model is not None and not maps:
        raise typer.BadParameter(f"--model {model} draws the maps: ask for them with --maps")
    records = [record for path in scores for record in read_records(path)]
    with stages() as on_step:

        def on_header(done: int, of: int) -> None:
            if on_step is not None:
                on_step("headers", done, of, {})

        def on_picture(done: int, of: int) -> None:
            if on_step is not None:
                on_step("pictures", done, of, {})

        rows = with_acquisition(records, dates=not no_dates, on_image=on_header)
        write_report(
            rows,
            out,
            title=title,
            pictures=None if no_pictures else pictures,
            scorer=_drawer(rows, model) if maps else None,
            created=now() if timestamp else None,
            on_image=on_picture,
        )
    sidecar = None if group is None else save_group(rows, group)
    if as_json:
        files = {"report": out, "group": group, "sidecar": sidecar}
        print_json({"rows": len(rows), **{name: None if file is None else str(file) for name, file in files.items()}})
        return
    if group is not None:
        say(f"{group}, {sidecar}")
    say(f"{len(rows)} rows: {out}, {out.stat().st_size / 1e6:.1f} MB")


def _drawer(rows: list[Record], model: str | None) -> ModelScorer:
    """What draws the maps: the model asked for, or the one that scored the first row that has a score."""
    from saqm.errors import SaqmError
    from saqm.scorer import ModelScorer, load_scorer

    if model is None:
        scored = next((row["model"] for row in rows if row.get("score") is not None), None)
        if not isinstance(scored, dict):
            raise SaqmError("no row has a score of a model, so there is no map to draw: leave --maps out")
        model = str(scored["name"])
    scorer = load_scorer(model)
    if not isinstance(scorer, ModelScorer):
        raise SaqmError(f"{scorer.name} judges the picture as a whole: it has no quality map; leave --maps out")
    return scorer
