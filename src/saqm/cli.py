"""The command line: parse, call, print. Errors of the library end here: one line on stderr, exit code 2.

Exit codes: 0 fine, 1 some inputs were not scored, 2 wrong usage or a refusal, 130 stopped with Ctrl-C.
Results go to stdout, progress and remarks to stderr. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from saqm import __version__
from saqm.errors import ImageError, MissingExtra, OutputError, SaqmError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from saqm.batch import Record, Settings
    from saqm.metrics import Metric
    from saqm.outputs.summary import Summariser

Engine = Literal["auto", "onnx", "torch"]
Mask = Literal["auto", "none"]
Shown = Literal["table", "json", "jsonl", "csv", "tsv"]

app = typer.Typer(
    name="saqm",
    help="How good a medical image looks, with no reference image: 0 to 100, higher is better. Not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(help="Turn a folder of images into a manifest.", no_args_is_help=True)
models = typer.Typer(help="The models and metrics that come with saqm.", no_args_is_help=True)
experiment = typer.Typer(help="The paper's tables, on a study of one's own.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(models, name="models")
app.add_typer(experiment, name="experiment")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="A shipped model, a model file, or a metric: niqe, niqe:ct, niqe:FILE."),
]
ModelsOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME[,NAME...]",
        help="Shipped models, model files, metrics (niqe, niqe:ct, niqe:FILE), or all; see saqm models list.",
    ),
]
ModelArgument = Annotated[str, typer.Argument(help="A shipped model, a model file, or a metric: niqe, niqe:ct.")]
FrameOption = Annotated[str, typer.Option("--frame", metavar="N|all", help="One frame or slice, from 0; or all.")]
AxisOption = Annotated[int | None, typer.Option("--axis", min=0, max=2, help="The axis a volume is sliced along.")]
WindowOption = Annotated[
    tuple[float, float] | None,
    typer.Option("--window", metavar="CENTRE WIDTH", help="Instead of the file's own (HU in CT)."),
]
MaskOption = Annotated[Mask, typer.Option("--mask", help="Leave out air, borders and text, or judge everything.")]
MaxPixels = Annotated[
    int | None, typer.Option("--max-pixels", min=1, help="Refuse frames larger than this before decoding them.")
]


def main() -> None:
    """Entry point of the `saqm` command."""
    try:
        app()
    except SaqmError as error:
        _say(f"error: {error}")
        sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"saqm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    del version  # its callback has done it


@app.command(
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
    out: Annotated[Path | None, typer.Option(help="Result file: .csv, .tsv, .jsonl, .json or .parquet.")] = None,
    form: Annotated[
        Shown | None, typer.Option("--format", help="On stdout; by itself a table in a terminal, else tsv.")
    ] = None,
    as_json: AsJson = False,
    summary: Annotated[
        Path | None, typer.Option(help="File for median, quartiles and worst frame of each file: .csv, .tsv, .json(l).")
    ] = None,
    maps: Annotated[
        Path | None, typer.Option("--map", help="Folder for a quality map (PNG) of each image; of models only.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes; the numbers do not depend on it.")] = 1,
    engine: Annotated[Engine, typer.Option(help="What runs the model.")] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out where it stopped; skip what is in it.")
    ] = False,
    max_pixels: MaxPixels = None,
    timestamp: Annotated[bool, typer.Option("--timestamp", help="Note the time in each record.")] = False,
) -> None:
    """Score images: one row for each image, frame or slice and model, 0 to 100, higher is better.

    A metric keeps its own scale: its value is the raw score, and the row says which direction is better. A file that
    cannot be scored is a row with the reason, and the exit code is 1.
    """
    from saqm.batch import Settings
    from saqm.image import DEFAULT_MAX_PIXELS
    from saqm.outputs.summary import Summariser, save_summaries
    from saqm.outputs.table import format_of
    from saqm.scorer import scorer_names

    if as_json and form not in (None, "json"):
        raise typer.BadParameter(f"--json and --format {form} are two formats; choose one")
    if out is not None and (form is not None or as_json):
        raise typer.BadParameter(f"the suffix of --out decides its format; leave --format out, or --out {out}")
    if resume and out is None:
        raise typer.BadParameter("--resume goes on with a result file: name it with --out")
    if summary is not None:
        format_of(summary)  # a wrong suffix is told before the work
    settings = Settings(
        model=None if model is None else scorer_names(model),
        engine=engine,
        frames=_frames(frame),
        window=_window(window),
        mask=mask,
        axis=axis,
        stride=stride,
        max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
        map_folder=_made(maps),
        created=_now() if timestamp else None,
    )
    names = _found(paths)
    tally = _Tally(None if summary is None else Summariser())
    if out is None:
        _score_to_stdout(names, settings, jobs, form or ("json" if as_json else None), tally)
    else:
        _score_to_file(names, settings, jobs, out, tally, resume=resume)
    if summary is not None and tally.summariser is not None:
        save_summaries(tally.summariser.summaries(), summary)
    if out is not None or tally.not_scored:
        _say(f"{tally.scored} scored, {tally.not_scored} not scored{'' if out is None else f': {out}'}")
    if tally.not_scored:
        raise typer.Exit(1)


def _score_to_stdout(names: list[str], settings: Settings, jobs: int, form: Shown | None, tally: _Tally) -> None:
    from saqm.batch import score_many
    from saqm.outputs import table

    with closing(score_many(names, settings, jobs=jobs)) as scores:
        records = tally.count(_with_progress((score.to_record() for score in scores), len(names)))
        if form is None:
            form = "table" if sys.stdout.isatty() else "tsv"
        if form == "table":
            _print_rich(table.table(records))
        else:
            sys.stdout.reconfigure(errors="surrogateescape", newline="")  # type: ignore[union-attr]
            table.write_records(records, sys.stdout, form)


def _score_to_file(names: list[str], settings: Settings, jobs: int, out: Path, tally: _Tally, *, resume: bool) -> None:
    from saqm.batch import Journal, journal_path, score_journaled
    from saqm.outputs import table

    table.format_of(out)  # a wrong suffix is told before the work
    if not resume and journal_path(out).exists():
        _say(f"note: an earlier run stopped here ({journal_path(out)}); starting afresh, as --resume was not given")
    with Journal(out, settings, resume=resume) as journal:
        if resume and out.exists():
            journal.adopt(table.read_records(out))
        with closing(score_journaled(names, settings, journal, jobs=jobs)) as records:
            table.save_records(tally.count(_with_progress(records, len(names))), out)


@app.command(epilog="Example: saqm inspect scan.dcm --png scan.png")
def inspect(
    path: Annotated[str, typer.Argument(help="One image file.")],
    *,
    frame: Annotated[int | None, typer.Option(min=0, help="Frame or slice, from 0.")] = None,
    axis: AxisOption = None,
    window: WindowOption = None,
    mask: MaskOption = "auto",
    png: Annotated[Path | None, typer.Option(help="Save the picture with the outline of its mask.")] = None,
    as_json: AsJson = False,
    max_pixels: MaxPixels = None,
) -> None:
    """Show what was read from a file: each step with its numbers, the share judged, a histogram."""
    from saqm.image import DEFAULT_MAX_PIXELS, read_image
    from saqm.outputs.inspection import describe, report

    image = read_image(path, frame, _window(window), mask=mask, axis=axis, max_pixels=max_pixels or DEFAULT_MAX_PIXELS)
    description = describe(image)
    if png is not None:
        from saqm.outputs.heatmap import save_mask_picture

        save_mask_picture(image, png)
    if as_json:
        _print_json(description)
    else:
        for line in report(description):
            typer.echo(line)


@app.command(
    epilog="Examples: saqm evaluate --manifest study.csv --out results/ · "
    "saqm evaluate --manifest study.csv --predictions out_of_fold.csv"
)
def evaluate(
    manifest: Annotated[Path, typer.Option(help="Images with opinion scores.")],
    *,
    model: ModelOption = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Evaluate a table of out-of-fold predictions instead of a model.")
    ] = None,
    folds: Annotated[int | None, typer.Option(min=2, help="Train and test in this many folds; needs --recipe.")] = None,
    recipe: Annotated[str | None, typer.Option(help="How to train in each fold: a name, or a .toml file.")] = None,
    by_method: Annotated[bool, typer.Option("--by-method", help="In the folds, keep methods apart as well.")] = False,
    anchors: Annotated[bool, typer.Option("--anchors", help="Count scores that nobody judged, too.")] = False,
    as_trained: Annotated[
        bool, typer.Option("--as-trained", help="Score images that the model was trained on, too: no test of it.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the bootstrap, and of the folds.")] = 0,
    scatter: Annotated[Path | None, typer.Option(help="Draw opinion against prediction (PNG).")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for predictions, tables and the scatter plot.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare scores with opinion scores: correlations with intervals, beside a constant, the oracle and the readers.

    A metric keeps its own scale: it is turned into the direction of the opinions, and has no RMSE and MAE. An image
    that the model was trained on gets the prediction recorded beside the model file, made by a model that never saw its
    scene; without one it is listed as a failure. Exit code 1 where some images could not be scored.
    """
    from saqm.evaluate import evaluate as evaluate_scorer
    from saqm.evaluate import evaluate_predictions
    from saqm.manifest import read_manifest
    from saqm.outputs.predictions import mean_of_seeds, predictions_of, read_predictions, write_predictions
    from saqm.outputs.scatter import scatter as draw_scatter

    if sum(choice is not None for choice in (model, predictions, folds)) > 1:
        raise typer.BadParameter("--model, --predictions and --folds exclude each other")
    if as_trained and (predictions is not None or folds is not None):
        raise typer.BadParameter("--as-trained is about a model; leave --predictions and --folds out")
    if (folds is None) != (recipe is None):
        raise typer.BadParameter("--folds and --recipe belong together: what to train, and how often")
    checked = read_manifest(manifest)
    if folds is not None:
        cross_validate = _training("experiments", "cross_validate_command")
        with _teaching() as on_step:
            result = cross_validate(
                checked,
                recipe=recipe,
                folds=folds,
                by_method=by_method,
                judged_only=not anchors,
                seed=seed,
                out=out,
                on_step=on_step,
            )
    elif predictions is not None:
        by_seed = predictions_of(checked.rows, read_predictions(predictions))
        result = evaluate_predictions(
            checked.rows,
            mean_of_seeds(by_seed),
            seed=seed,
            by=("scene", "method") if by_method else ("scene",),
            judged_only=not anchors,
            by_seed=by_seed if len(by_seed) > 1 else (),
            manifest_sha256=checked.sha256,
        )
    else:
        from saqm.scorer import load_scorer

        result = evaluate_scorer(load_scorer(model), checked, seed=seed, judged_only=not anchors, as_trained=as_trained)
        if as_trained:
            _say(f"note: {result.protocol}")
    if out is not None:
        _made(out)
        _save_text(out / "evaluation.json", result.to_json())
        _save_text(out / "evaluation.md", result.to_markdown())
        if folds is None:  # the folds have written their own, with the fold of each image
            # a metric's own values are no predictions of opinions, and must not be taken for such by --predictions
            name = "predictions.csv" if result.orientation is None else "values.csv"
            write_predictions(out / name, result.rows, result.predictions, [None] * len(result.rows))
    if scatter is not None:
        draw_scatter(result, scatter)
    typer.echo(result.to_json() if as_json else result.to_text(), nl=False)
    if result.failures:
        raise typer.Exit(1)


@data.command("folder", epilog="Example: saqm data folder images/ --out manifest.csv --scene '(patient[0-9]+)'")
def data_folder(
    root: Annotated[Path, typer.Argument(help="Folder of images.")],
    *,
    out: Annotated[Path, typer.Option(help="Manifest to write, .csv or .jsonl.")],
    pattern: Annotated[str, typer.Option(help="Which files, by their path below the folder.")] = "*",
    scene: Annotated[
        str | None, typer.Option(help="Regular expression whose first group is the scene; else the file's stem.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Regular expression whose first group is the method.")] = None,
    domain: Annotated[str | None, typer.Option(help="One word for the whole folder: ct-abdomen.")] = None,
    as_json: AsJson = False,
) -> None:
    """List a folder's images as a manifest with empty scores, to be filled in."""
    from saqm.datasets import folder
    from saqm.manifest import DEFAULT_DOMAIN

    _write_manifest(
        folder(root, pattern, scene_from=scene, method_from=method, domain=domain or DEFAULT_DOMAIN), out, as_json
    )


@data.command("ct-reader-study", epilog="Example: saqm data ct-reader-study ct_reader_study/ --out study.csv")
def data_ct_reader_study(
    root: Annotated[Path, typer.Argument(help="The study's folder: scores.csv and images/.")],
    out: Annotated[Path, typer.Option(help="Manifest to write, .csv or .jsonl.")],
    organ: Annotated[Literal["abdomen", "brain"] | None, typer.Option(help="One of the two alone.")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn the CT reader study (denoised CT, three radiologists) into a manifest."""
    from dataclasses import replace

    from saqm.datasets import ct_reader_study

    study = ct_reader_study(root)
    if organ is not None:
        study = replace(study, rows=tuple(row for row in study.rows if row.domain == f"ct-{organ}"))
    _write_manifest(study, out, as_json)


Root = Annotated[Path, typer.Argument(help="The set's folder, as its authors give it.")]
ManifestOut = Annotated[Path, typer.Option("--out", help="Manifest to write, .csv or .jsonl.")]
Partial = Annotated[bool, typer.Option("--partial", help="Take a part of the set; the manifest says so.")]
References = Annotated[
    bool, typer.Option("--references", help="List the undegraded photographs too, without scores: twins for pretrain.")
]


@data.command("tid2013", epilog="Example: saqm data tid2013 tid2013/ --distortions denoised --out tid.csv")
def data_tid2013(
    root: Root,
    *,
    out: ManifestOut,
    distortions: Annotated[
        str | None, typer.Option(help="Numbers 1 to 24 by commas, or denoised: the 125 images of the paper.")
    ] = None,
    references: References = False,
    partial: Partial = False,
    as_json: AsJson = False,
) -> None:
    """Turn TID2013 into a manifest: photographs with 24 distortions at 5 levels."""
    from saqm.datasets import tid2013

    chosen: Sequence[int] | Literal["denoised"] | None = "denoised" if distortions == "denoised" else None
    if distortions is not None and chosen is None:
        chosen = _numbers(distortions)
    _write_manifest(tid2013(root, distortions=chosen, references=references, partial=partial), out, as_json)


@data.command("kadid10k", epilog="Example: saqm data kadid10k kadid10k/ --out kadid.csv")
def data_kadid10k(
    root: Root, out: ManifestOut, references: References = False, partial: Partial = False, as_json: AsJson = False
) -> None:
    """Turn KADID-10k into a manifest: photographs with 25 distortions at 5 levels."""
    from saqm.datasets import kadid10k

    _write_manifest(kadid10k(root, references=references, partial=partial), out, as_json)


@data.command("koniq10k", epilog="Example: saqm data koniq10k koniq10k/ --size 512x384 --out koniq.csv")
def data_koniq10k(
    root: Root,
    out: ManifestOut,
    size: Annotated[str, typer.Option(help="Which of the set's folders of pictures.")] = "1024x768",
    partial: Partial = False,
    as_json: AsJson = False,
) -> None:
    """Turn KonIQ-10k into a manifest: photographs as people took them."""
    from saqm.datasets import koniq10k

    _write_manifest(koniq10k(root, size=size, partial=partial), out, as_json)


@data.command("live", epilog="Example: saqm data live databaserelease2/ --out live.csv")
def data_live(
    root: Root, out: ManifestOut, references: References = False, partial: Partial = False, as_json: AsJson = False
) -> None:
    """Turn the LIVE database, release 2, into a manifest: photographs with 5 distortions."""
    from saqm.datasets import live

    _write_manifest(live(root, references=references, partial=partial), out, as_json)


@data.command("csiq", epilog="Example: saqm data csiq csiq/ --out csiq.csv")
def data_csiq(
    root: Root, out: ManifestOut, references: References = False, partial: Partial = False, as_json: AsJson = False
) -> None:
    """Turn CSIQ into a manifest: photographs with 6 distortions."""
    from saqm.datasets import csiq

    _write_manifest(csiq(root, references=references, partial=partial), out, as_json)


@data.command("ldctiqac2023", epilog="Example: saqm data ldctiqac2023 train/ --scenes patients.csv --out ldct.csv")
def data_ldctiqac2023(
    root: Root,
    out: ManifestOut,
    scenes: Annotated[
        str,
        typer.Option(help="A CSV with the columns image and scene, or image: each one a scene, which leaks content."),
    ],
    partial: Partial = False,
    as_json: AsJson = False,
) -> None:
    """Turn the low-dose CT challenge of 2023 into a manifest: abdominal slices, scored by radiologists."""
    from saqm.datasets import ldctiqac2023

    _write_manifest(ldctiqac2023(root, scenes=scenes, partial=partial), out, as_json)


@data.command("md72", epilog="Example: saqm data md72 md72/ --out md72.csv")
def data_md72(root: Root, out: ManifestOut, partial: Partial = False, as_json: AsJson = False) -> None:
    """Turn the paper's liver ultrasound set into a manifest: 12 scenes, each with 5 versions."""
    from saqm.datasets import md72

    _write_manifest(md72(root, partial=partial), out, as_json)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--distortions {text}: numbers by commas, such as 8,9, or denoised") from None


def _write_manifest(manifest: Any, out: Path, as_json: bool) -> None:
    from saqm.manifest import write_manifest

    write_manifest(manifest, out)
    scenes = len({row.scene for row in manifest.rows})
    if as_json:
        _print_json({"manifest": str(out), "images": len(manifest.rows), "scenes": scenes})
    else:
        typer.echo(f"{out}: {len(manifest.rows)} images of {scenes} scenes")


@models.command("list", epilog="Example: saqm models list")
def models_list(as_json: AsJson = False) -> None:
    """The shipped models, and the metrics with the parameters that come with them."""
    from saqm.metrics import METRICS
    from saqm.modelfile import DEFAULT_MODEL, open_model, read_header, shipped
    from saqm.scorer import parameters_for

    headers = {name: read_header(open_model(name)) for name in shipped()}
    if as_json:
        _print_json(
            [
                {"name": name, "kind": "model", "version": header.version, "licence": header.licence,
                 "default": name == DEFAULT_MODEL, "modalities": list(header.domain.modalities)}
                for name, header in headers.items()
            ]
            + [_described(metric) for metric in METRICS.values()]
        )  # fmt: skip
        return
    for name, header in headers.items():
        default = " (default)" if name == DEFAULT_MODEL else ""
        typer.echo(f"{name}{default}  {header.version}  {', '.join(header.domain.modalities)}  {header.licence}")
    for metric in METRICS.values():
        sets = parameters_for(metric)
        parameters = ", ".join(f"{each} (default)" if each == metric.default else each for each in sets)
        typer.echo(f"{metric.name}  metric  {metric.direction}  {metric.exact}  {parameters}".rstrip())


@models.command("show", epilog="Examples: saqm models show saqm-ct · saqm models show niqe:ct")
def models_show(name: ModelArgument, as_json: AsJson = False) -> None:
    """A model's card, or a metric's line with the card of its parameters; with --json a model's whole header."""
    from saqm.metrics.parameters import read_parameters_card
    from saqm.modelfile import open_model, read_card, read_header
    from saqm.scorer import metric_named

    found = metric_named(name)
    if found is None:
        if as_json:
            _print_json(read_header(open_model(name)).model_dump(mode="json"))
        else:
            typer.echo(read_card(name))
        return
    metric, parameters = found
    described = _described(metric)
    if as_json:
        _print_json(described)
        return
    card = None if parameters is None else read_parameters_card(parameters)
    for key, value in described.items():
        if value:
            typer.echo(f"{key}: {', '.join(value) if isinstance(value, list) else value}")
    if card is not None:
        typer.echo(f"\n{card}")


@models.command("verify", epilog="Examples: saqm models verify mine.onnx · saqm models verify niqe:mine.safetensors")
def models_verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Models, or metrics for their parameters; all shipped files by themselves."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the hashes of model and parameter files: a changed or damaged one is refused with exit code 2."""
    from saqm.scorer import file_sha256, shipped_files

    hashes = {name: file_sha256(name) for name in names or shipped_files()}
    if as_json:
        _print_json(hashes)
        return
    for name, sha256 in hashes.items():
        typer.echo(f"{name}: as it was written, sha256 {sha256}")


def _described(metric: Metric) -> dict[str, Any]:
    """A metric as JSON has it."""
    from saqm.scorer import parameters_for

    return {
        "name": metric.name,
        "kind": "metric",
        "title": metric.title,
        "direction": metric.direction,
        "range": metric.range,
        "definition": metric.exact,
        "remark": metric.remark,
        "source": metric.source,
        "smallest": metric.smallest,
        "parameters": list(parameters_for(metric)),
        "default": metric.default,
    }


# The commands below only hand their options to the training modules, which need the extra `train`.


@app.command(
    epilog="Example: saqm train --target study.csv --recipe target-only --towers towers/ --seed 7 --out model/"
)
def train(
    *,
    target: Annotated[Path | None, typer.Option(help="Manifest of the domain that is to be scored.")] = None,
    source: Annotated[Path | None, typer.Option(help="Manifest of another domain to learn from.")] = None,
    recipe: Annotated[str, typer.Option(help="A recipe's name, or a .toml file.")],
    out: Annotated[Path, typer.Option(help="Folder for the model, its checkpoints and its log.")],
    seed: Annotated[int, typer.Option(help="Same seed, same machine: same model.")],
    towers: Annotated[Path | None, typer.Option(help="Start from these pre-trained towers (saqm pretrain).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model from images with opinion scores."""
    train_command = _training("experiments", "train_command")
    with _teaching() as on_step:
        made = train_command(
            source=source,
            target=target,
            recipe=recipe,
            out=out,
            seed=seed,
            towers=towers,
            resume=resume,
            say=_say,
            on_step=on_step,
        )
    _print_made(made, as_json)


@app.command(epilog="Example: saqm pretrain images/ --twins twins.csv --seed 7 --out towers/")
def pretrain(
    paths: Annotated[list[str], typer.Argument(help="Files, folders, globs of images; no scores are needed.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder for the towers, their checkpoints and their log.")],
    seed: Annotated[int, typer.Option(help="Same seed, same machine: same towers.")],
    twins: Annotated[Path | None, typer.Option(help="Manifest whose scenes have a reference version each.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe's name, or a .toml file.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Teach a network about windows of images, from labels that need no opinions: a start for `saqm train`."""
    pretrain_command = _training("experiments", "pretrain_command")
    with _teaching() as on_step:
        made = pretrain_command(
            names=_found(paths),
            twins=twins,
            recipe=recipe,
            out=out,
            seed=seed,
            resume=resume,
            say=_say,
            on_step=on_step,
        )
    _print_made(made, as_json)


@app.command(epilog="Example: saqm adapt my-scanner/ --seed 7 --out adapted/")
def adapt(
    paths: Annotated[list[str] | None, typer.Argument(help="Files, folders, globs of one's own images.")] = None,
    *,
    target: Annotated[Path | None, typer.Option(help="A manifest of them instead, with scores of a few.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="A shipped model, or a .safetensors file.")] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="Images that the model was trained on, for whoever has some of them.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same machine: same model.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the adapted model and its card.")],
    as_json: AsJson = False,
) -> None:
    """Adapt a model to one's own images, without scores or with a few, and say whether it helped.

    What helped means here: whether copies of images made worse on purpose score lower. No opinion stands behind that.
    """
    from saqm.modelfile import DEFAULT_MODEL

    if (paths is None) == (target is None):
        raise typer.BadParameter("give images, or --target with a manifest of them")
    adapt_command = _training("adapt", "adapt_command")
    with _teaching() as on_step:
        made = adapt_command(
            model=model or DEFAULT_MODEL,
            names=_found(paths) if paths else (),
            manifest=target,
            source=_found(source) if source else (),
            out=_made(out),
            seed=seed,
            say=_say,
            on_step=on_step,
        )
    _print_made(made, as_json)


@app.command(epilog="Example: saqm export model/mine.safetensors --to onnx --out mine.onnx")
def export(
    model: Annotated[Path, typer.Argument(help="A .safetensors model.")],
    *,
    to: Annotated[Literal["onnx"], typer.Option(help="The form that scores without torch.")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="File to write; by itself beside the model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Export a trained model to ONNX, which scores without torch."""
    export_command = _training("export", "export_command")
    _print_made(export_command(model, to=to, out=out), as_json)


@app.command(
    epilog="Examples: saqm fit niqe --pristine images/ --out niqe-mine.safetensors · "
    "saqm fit brisque --manifest study.csv --out brisque-mine.safetensors · "
    "saqm fit niqe --import modelparameters.mat --out niqe-official.safetensors"
)
def fit(
    metric: Annotated[
        str | None, typer.Argument(help="niqe, niqe-k, brisque or bliinds; --import can do without.")
    ] = None,
    *,
    pristine: Annotated[
        list[str] | None, typer.Option(help="Files, folders, globs of pristine images; may be given several times.")
    ] = None,
    manifest: Annotated[Path | None, typer.Option(help="Images with opinion scores.")] = None,
    import_file: Annotated[
        Path | None, typer.Option("--import", help="The authors' own parameter file, or the folder it is in.")
    ] = None,
    mask: MaskOption = "auto",
    out: Annotated[Path, typer.Option(help="Parameter file to write, .safetensors.")],
    as_json: AsJson = False,
) -> None:
    """Fit a metric's parameters to one's own images, or import the authors'. Then: saqm score --model METRIC:FILE.

    niqe and niqe-k learn from pristine images, brisque and bliinds from opinion scores.
    """
    fit_command = _training("fitting", "fit_command")
    names = None if pristine is None else _found(pristine)
    with _teaching() as on_step:
        made = fit_command(
            metric,
            pristine=names,
            manifest=manifest,
            import_file=import_file,
            mask=mask,
            out=out,
            say=_say,
            on_step=on_step,
        )
    _print_made(made, as_json)


@experiment.command(
    "table2", epilog="Example: saqm experiment table2 --source abdomen.csv --target brain.csv --out t2/"
)
def experiment_table2(
    *,
    source: Annotated[Path, typer.Option(help="Images with opinion scores, of one domain.")],
    target: Annotated[Path, typer.Option(help="Images with opinion scores, of another domain.")],
    out: Annotated[Path, typer.Option(help="Folder for table2.*, and for the runs, which are gone on from.")],
    both: Annotated[bool, typer.Option("--both", help="Also the other way round.")] = False,
    folds: Annotated[int, typer.Option(min=2, help="Of the target, apart in scenes.")] = 4,
    seeds: Annotated[int, typer.Option(min=1, help="How often each configuration is taught.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="Only see it run: the numbers mean nothing.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, a fold each.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Measure the paper's four configurations, and controls, from one domain to another on scene-disjoint folds."""
    table2_command, to_markdown = _training("table2", "table2_command"), _training("table2", "to_markdown")
    with _teaching() as on_step:
        made = table2_command(
            source, target, both=both, k=folds, seeds=seeds, quick=quick, jobs=jobs, out=_made(out), on_step=on_step
        )
    if as_json:
        _print_json([json.loads(table.evaluation.to_json()) for table in made])
    else:
        typer.echo(to_markdown(made, quick=quick), nl=False)


@experiment.command("table3", epilog="Example: saqm experiment table3 --manifest study.csv --out table3/")
def experiment_table3(
    *,
    manifest: Annotated[Path, typer.Option(help="Images with opinion scores, and a reference for some scenes.")],
    out: Annotated[Path, typer.Option(help="Folder for table3.md, .csv, .json and the plot.")],
    model: ModelOption = None,
    folds: Annotated[int, typer.Option(min=2, help="In how many, apart in scenes, metrics are refitted.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Compare the eight classical metrics, as they come and refitted, with a model on the same scored images."""
    from saqm.manifest import read_manifest

    table3_command = _training("table3", "table3_command")
    with _teaching() as on_step:
        made = table3_command(read_manifest(manifest), k=folds, seed=seed, model=model, out=_made(out), on_step=on_step)
    typer.echo(made.to_json() if as_json else made.to_markdown(), nl=False)


def _training(module: str, function: str) -> Any:
    """A function of the training modules, some of which import torch at their top."""
    from importlib import import_module

    try:
        return getattr(import_module(f"saqm.{module}"), function)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "saqm":
            raise
        raise MissingExtra(error.name, "train", "training") from error


@contextmanager
def _teaching() -> Iterator[Callable[[str, int, int, Mapping[str, float]], None] | None]:
    """A bar on stderr for every stage of a training, where that is a terminal: steps done, loss, rate, time left."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[shown]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        stages: dict[str, TaskID] = {}

        def on_step(what: str, step: int, steps: int, logs: Mapping[str, float]) -> None:
            if what not in stages or step < bar.tasks[stages[what]].completed:  # a new stage, or the next fold's
                stages[what] = bar.add_task(what, total=steps, shown="")
            speed = bar.tasks[stages[what]].speed
            rate = "" if speed is None else f"{speed:.1f} steps/s"
            bar.update(
                stages[what], completed=step, shown=f"loss {logs['loss']:.4f} {rate}" if "loss" in logs else rate
            )

        yield on_step


def _print_made(made: dict[str, Any], as_json: bool) -> None:
    """What a training command gives back: what it wrote and how it went, by name."""
    if as_json:
        _print_json(made)
        return
    for name, value in made.items():
        typer.echo(f"{name}: {value}")


class _Tally:
    """Counts rows as they pass, and shows them to a summariser."""

    def __init__(self, summariser: Summariser | None) -> None:
        self.scored = self.not_scored = 0
        self.summariser = summariser

    def count(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            if self.summariser is not None:
                self.summariser.note(record)
            if record["status"] == "scored":
                self.scored += 1
            else:
                self.not_scored += 1
            yield record


def _found(paths: Sequence[str]) -> list[str]:
    from saqm.image import find_images

    names = list(find_images(paths))
    if not names:
        raise ImageError(f"no image found in {', '.join(paths)}")
    return names


def _with_progress(records: Iterable[Record], files: int) -> Iterator[Record]:
    """The records, with a bar on stderr where that is a terminal: files done, rate, time left."""
    if not sys.stderr.isatty():
        yield from records
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=files, rate="")
        path: object = None
        for record in records:
            if record["path"] != path:
                path = record["path"]
                speed = bar.tasks[task].speed
                bar.update(task, advance=1, rate="" if speed is None else f"{speed:.1f} files/s")
            yield record


def _frames(text: str) -> int | Literal["all"]:
    if text == "all":
        return "all"
    if text.isdecimal():
        return int(text)
    raise typer.BadParameter(f"--frame {text}: a number from 0, or all")


def _window(window: tuple[float, float] | None) -> tuple[float, float] | None:
    if window is not None and not window[1] > 0:
        raise typer.BadParameter(f"--window {window[0]:g} {window[1]:g}: the width must be above 0")
    return window


def _made(folder: Path | None) -> Path | None:
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made: {error.strerror}") from error
    return folder


def _save_text(path: Path, text: str) -> None:
    from saqm.writing import replacing

    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="seconds")


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def _print_rich(what: object) -> None:
    from rich.console import Console

    Console().print(what)


def _say(text: str) -> None:
    """A remark for the person at the terminal, on stderr; nothing in it can move the cursor."""
    typer.echo("\n".join(_plain(line) for line in text.split("\n")), err=True)


def _plain(line: str) -> str:
    from saqm.outputs.table import printable

    return printable(line)


if __name__ == "__main__":
    main()
