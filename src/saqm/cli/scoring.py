"""`saqm score` and `saqm inspect`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from saqm.cli.scaling import found_everywhere, score_on_ray
from saqm.cli.terminal import (
    AsJson,
    AxisOption,
    Engine,
    FrameOption,
    MaskOption,
    MaxPixels,
    ModelsOption,
    Shown,
    WindowOption,
    found,
    frames_of,
    made_folder,
    map_formats_of,
    moment,
    now,
    print_json,
    print_rich,
    say,
    this_maker,
    window_of,
    with_progress,
)

if TYPE_CHECKING:
    from saqm.batch import Record, Settings
    from saqm.gating import Thresholds
    from saqm.image import Image
    from saqm.outputs.dicom import SeriesReports

    Watched = Callable[[Iterable[Record]], Iterator[Record]]

commands = typer.Typer()


@commands.command(
    epilog="Examples: saqm score study/ scan.dcm slides.zip --out scores.csv --jobs 4 · "
    "saqm score volume.nii --axis 2 --model saqm-ct,niqe --out scores.csv --summary summary.csv"
)
def score(
    paths: Annotated[list[str], typer.Argument(help="Files, folders, globs, DICOMDIR, .zip of images.")],
    *,
    model: ModelsOption = None,
    frame: FrameOption = "all",
    axis: AxisOption = None,
    window: WindowOption = None,
    mask: MaskOption = "auto",
    stride: Annotated[int | None, typer.Option(min=1, help="Pixels from window to window; less is finer.")] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS", help="Look at windows only until the standard error is so small; maps need all."
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Result file: .csv, .tsv, .jsonl, .json or .parquet; with --on ray also a folder, here or s3://bucket/folder",
        ),
    ] = None,
    form: Annotated[
        Shown | None, typer.Option("--format", help="On stdout; by itself a table in a terminal, else tsv.")
    ] = None,
    as_json: AsJson = False,
    summary: Annotated[
        Path | None, typer.Option(help="File for median, quartiles and worst frame of each file: .csv, .tsv, .json(l).")
    ] = None,
    maps: Annotated[
        Path | None, typer.Option("--map", help="Folder for a quality map of each image; of models only.")
    ] = None,
    map_format: Annotated[
        str,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="Of the map: png, npy (numbers), nii (numbers, a volume's in one file), dcm (an object of the study).",
        ),
    ] = "png",
    map_stride: Annotated[
        int | None, typer.Option(min=1, help="Pixels from window to window of the map alone; less is finer.")
    ] = None,
    pass_at: Annotated[
        float | None, typer.Option("--pass", help="Give each image a verdict, as saqm gate does: this score passes.")
    ] = None,
    fail_below: Annotated[
        float | None, typer.Option("--fail", help="A worse score than this fails; with --pass.")
    ] = None,
    dicom_sr: Annotated[
        Path | None, typer.Option("--dicom-sr", help="Folder for a DICOM structured report of each series.")
    ] = None,
    quality_note: Annotated[
        bool,
        typer.Option("--quality-note", help="Beside the reports, key object notes of what does not pass: advice only."),
    ] = False,
    rejection_note: Annotated[
        str | None,
        typer.Option(
            "--rejection-note",
            metavar="REASON",
            help="DANGER: also an order to archives (IHE IOCM) to hide or delete what fails; with --confirmed-by. "
            "Reasons: see docs/sr.md.",
        ),
    ] = None,
    confirmed_by: Annotated[
        str | None,
        typer.Option("--confirmed-by", metavar="TEXT", help="Who looked at each image that is rejected; for the note."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Withhold the score of an image unlike those the model was trained on.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes; the numbers do not depend on it.")] = 1,
    on: Annotated[
        Literal["local", "ray"],
        typer.Option(help="This machine, or Ray: --jobs workers here or where RAY_ADDRESS says; see docs/scale.md."),
    ] = "local",
    engine: Annotated[Engine, typer.Option(help="What runs the model.")] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out where it stopped; skip what is in it.")
    ] = False,
    once: Annotated[
        bool,
        typer.Option("--once", help="Of files with the same bytes, score the first and copy its rows; with --out."),
    ] = False,
    max_pixels: MaxPixels = None,
    timestamp: Annotated[bool, typer.Option("--timestamp", help="Note the time in each record.")] = False,
) -> None:
    """Score images: one row for each image, frame or slice and model, 0 to 100, higher is better.

    A metric keeps its own scale: its value is the raw score, and the row says which direction is better. A file that
    cannot be scored is a row with the reason, and the exit code is 1.
    """
    from saqm.batch import Settings
    from saqm.gating import gate_all
    from saqm.image import DEFAULT_MAX_PIXELS
    from saqm.outputs.summary import Summariser, save_summaries
    from saqm.outputs.table import format_of
    from saqm.outputs.tally import Tally
    from saqm.scorer import scorer_names

    if as_json and form not in (None, "json"):
        raise typer.BadParameter(f"--json and --format {form} are two formats; choose one")
    if out is not None and (form is not None or as_json):
        raise typer.BadParameter(f"the suffix of --out decides its format; leave --format out, or --out {out}")
    if resume and out is None:
        raise typer.BadParameter("--resume goes on with a result file: name it with --out")
    if once and (out is None or on == "ray"):
        raise typer.BadParameter("--once looks rows up in the journal of a result file: name it with --out, on local")
    if maps is None and (map_stride is not None or map_format != "png"):
        raise typer.BadParameter("--map-format and --map-stride are of a map: name its folder with --map")
    if summary is not None:
        format_of(summary)  # a wrong suffix is told before the work
    thresholds = _thresholds(pass_at, fail_below)
    reports = _reports(
        dicom_sr, note=quality_note, rejection=rejection_note, confirmed=confirmed_by, thresholds=thresholds
    )
    maker = this_maker() if "dcm" in map_formats_of(map_format) else None
    settings = Settings(
        model=None if model is None else scorer_names(model),
        engine=engine,
        frames=frames_of(frame),
        window=window_of(window),
        mask=mask,
        axis=axis,
        stride=stride,
        tolerance=tolerance,
        max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
        map_formats=map_formats_of(map_format),
        map_folder=made_folder(maps),
        map_maker=None if maker is None else (maker, moment()),
        map_stride=map_stride,
        strict=strict,
        created=now() if timestamp else None,
    )
    if on == "local" and out is not None and "://" in out:
        raise typer.BadParameter(f"--out {out}: only --on ray writes to an object store; name a file here")
    if on == "ray" and dicom_sr is not None:
        raise typer.BadParameter("--dicom-sr reads the files again, here: leave it out, or --on local")
    names = found(paths) if on == "local" else found_everywhere(paths)
    tally, summariser = Tally(), None if summary is None else Summariser()

    def watched(records: Iterable[Record]) -> Iterator[Record]:
        if thresholds is not None:
            records = gate_all(records, thresholds)
        shown = with_progress(records if reports is None else reports.watch(records), len(names), tally)
        return shown if summariser is None else summariser.watch(shown)

    if on == "ray":
        score_on_ray(names, settings, jobs, out, watched, resume=resume)
    elif out is None:
        _score_to_stdout(names, settings, jobs, form or ("json" if as_json else None), watched)
    else:
        _score_to_file(names, settings, jobs, Path(out), watched, resume=resume, once=once)
    if reports is not None:
        _write_reports(reports)
    if summary is not None and summariser is not None:
        save_summaries(summariser.summaries(), summary)
    if out is not None or tally.not_scored or sys.stderr.isatty():
        say(f"{tally.line()}{'' if out is None else f': {out}'}")
    if tally.not_scored:
        raise typer.Exit(1)


def _thresholds(pass_at: float | None, fail_below: float | None) -> Thresholds | None:
    """What --pass and --fail say. Raises BadParameter for --fail alone."""
    from saqm.gating import Thresholds

    if pass_at is None:
        if fail_below is not None:
            raise typer.BadParameter("--fail goes with --pass: a verdict needs to know what passes")
        return None
    return Thresholds(pass_at=pass_at, fail_below=fail_below)


def _reports(
    folder: Path | None, *, note: bool, rejection: str | None, confirmed: str | None, thresholds: Thresholds | None
) -> SeriesReports | None:
    """What makes the reports. Raises BadParameter for options that lack others."""
    if folder is None:
        if note or rejection or confirmed:
            raise typer.BadParameter("notes go beside the reports: name their folder with --dicom-sr")
        return None
    if (note or rejection) and thresholds is None:
        raise typer.BadParameter("a note names what does not pass: say with --pass, and --fail, what does")
    if (rejection is None) != (confirmed is None):
        raise typer.BadParameter(
            "--rejection-note REASON and --confirmed-by TEXT go together: archives may hide or delete what is "
            "rejected, so a person has to have looked at it, and to say so"
        )
    from saqm.outputs.dicom import Rejection, SeriesReports

    decided = None if rejection is None or confirmed is None else Rejection(rejection, confirmed)
    made = made_folder(folder)
    return None if made is None else SeriesReports(made, this_maker(), note=note, rejection=decided)


def _write_reports(reports: SeriesReports) -> None:
    with reports:
        written = len(list(reports.write(now=moment())))
    say(f"{written} DICOM objects: {reports.folder}")
    if reports.left_out:
        say(f"no DICOM report of {reports.left_out} files; of the first: {reports.why_left_out}")


def _score_to_stdout(names: list[str], settings: Settings, jobs: int, form: Shown | None, watched: Watched) -> None:
    from saqm.batch import score_many
    from saqm.outputs import table

    with closing(score_many(names, settings, jobs=jobs)) as scores:
        records = watched(score.to_record() for score in scores)
        if form is None:
            form = "table" if sys.stdout.isatty() else "tsv"
        if form == "table":
            print_rich(table.table(records))
        else:
            sys.stdout.reconfigure(errors="surrogateescape", newline="")  # type: ignore[union-attr]
            table.write_records(records, sys.stdout, form)


def _score_to_file(
    names: list[str], settings: Settings, jobs: int, out: Path, watched: Watched, *, resume: bool, once: bool
) -> None:
    from saqm.batch import Journal, journal_path, score_journaled
    from saqm.outputs import table

    table.format_of(out)  # a wrong suffix is told before the work
    if not resume and journal_path(out).exists():
        say(f"note: an earlier run stopped here ({journal_path(out)}); starting afresh, as --resume was not given")
    with Journal(out, settings, resume=resume) as journal:
        if resume and out.exists():
            journal.adopt(table.read_records(out))
        with closing(score_journaled(names, settings, journal, jobs=jobs, once=once)) as records:
            table.save_records(watched(records), out)


@commands.command(
    epilog="Examples: saqm inspect scan.dcm --png scan.png · "
    "saqm inspect scan.dcm --attention 250 280 --png attention.png"
)
def inspect(
    path: Annotated[str, typer.Argument(help="One image file.")],
    *,
    frame: Annotated[int | None, typer.Option(min=0, help="Frame or slice, from 0.")] = None,
    axis: AxisOption = None,
    window: WindowOption = None,
    mask: MaskOption = "auto",
    png: Annotated[
        Path | None, typer.Option(help="Save the picture with the outline of its mask, or with --attention.")
    ] = None,
    attention: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="ROW COLUMN", help="What the model attends to from that pixel, into --png; needs torch."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Whose attention: a shipped model, or a model file.")] = None,
    as_json: AsJson = False,
    max_pixels: MaxPixels = None,
) -> None:
    """Show what was read from a file: each step with its numbers, the share judged, a histogram."""
    from saqm.image import DEFAULT_MAX_PIXELS, read_image
    from saqm.outputs.inspection import describe, report

    if (attention is not None and png is None) or (attention is None and model is not None):
        raise typer.BadParameter("--attention ROW COLUMN, the picture it goes into with --png, and --model go together")
    image = read_image(
        path, frame, window_of(window), mask=mask, axis=axis, max_pixels=max_pixels or DEFAULT_MAX_PIXELS
    )
    description = describe(image)
    if png is not None and attention is not None:
        _draw_attention(image, model, attention, png)
    elif png is not None:
        from saqm.outputs.heatmap import save_mask_picture

        save_mask_picture(image, png)
    if as_json:
        print_json(description)
    else:
        for line in report(description):
            typer.echo(line)


def _draw_attention(image: Image, model: str | None, at: tuple[int, int], png: Path) -> None:
    from saqm.maps import attention
    from saqm.outputs.heatmap import save_attention
    from saqm.scorer import load_scorer

    save_attention(image, attention(image, load_scorer(model), at), png)
