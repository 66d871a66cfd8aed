"""`saqm gate`, `saqm threshold` and `saqm compare`: what to do about scores."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from saqm.cli.terminal import (
    AsJson,
    AxisOption,
    FrameOption,
    MaskOption,
    ModelOption,
    ModelsOption,
    WindowOption,
    found,
    frames_of,
    print_rich,
    say,
    window_of,
    with_progress,
)

if TYPE_CHECKING:
    from saqm.batch import Record, Settings
    from saqm.gating import Verdict

commands = typer.Typer()

RESULT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
Jobs = Annotated[int, typer.Option(min=1, help="Processes; the numbers do not depend on it.")]
Seed = Annotated[int, typer.Option(help="Of the bootstrap.")]


class _Reading(NamedTuple):
    """The options that say how images become scores; a result file has been through them already."""

    model: str | None
    frame: str = "all"
    axis: int | None = None
    window: tuple[float, float] | None = None
    mask: Literal["auto", "none"] = "auto"
    jobs: int = 1

    def settings(self) -> Settings:
        from saqm.batch import Settings
        from saqm.scorer import scorer_names

        return Settings(
            model=None if self.model is None else scorer_names(self.model),
            frames=frames_of(self.frame),
            window=window_of(self.window),
            mask=self.mask,
            axis=self.axis,
        )


@commands.command(
    epilog="Examples: saqm gate incoming/ --pass 60 --fail 40 --exclude-list exclude.tsv · "
    "saqm gate scores.csv --pass 60 --sure --json"
)
def gate(
    paths: Annotated[list[str], typer.Argument(help="Images as saqm score takes them, or its result files.")],
    *,
    pass_at: Annotated[
        float | None,
        typer.Option("--pass", help="This score, or a better one, passes; by itself the model's own gate."),
    ] = None,
    fail_below: Annotated[
        float | None, typer.Option("--fail", help="A worse score than this fails; without it none fails by its score.")
    ] = None,
    sure: Annotated[
        bool, typer.Option("--sure", help="Pass or fail only where the whole interval does; else review.")
    ] = False,
    not_scored: Annotated[
        Literal["review", "fail"], typer.Option("--not-scored", help="The verdict of what cannot be scored.")
    ] = "review",
    exclude_list: Annotated[
        Path | None, typer.Option("--exclude-list", help="File for what does not pass, with reasons: .tsv or .csv.")
    ] = None,
    model: ModelOption = None,
    frame: FrameOption = "all",
    axis: AxisOption = None,
    window: WindowOption = None,
    mask: MaskOption = "auto",
    jobs: Jobs = 1,
    as_json: AsJson = False,
) -> None:
    """Let images pass, or hold them back: pass, review or fail, with the reason.

    One JSON line for each image, frame or slice; in a terminal a table. The worst one decides the exit code: 0 pass, 10
    review, 20 fail; 2 is wrong usage or a refusal, and nothing was let through. What cannot be scored, or is unlike the
    images that the model knows, never passes. A metric's thresholds are on its own scale, in its direction.
    """
    from saqm.gating import EXCLUSION_COLUMNS, EXIT_CODES, Thresholds, gate_all
    from saqm.outputs import table

    if pass_at is None:
        pass_at, fail_below = _own_gate(model, fail_below)
    thresholds = Thresholds(pass_at=pass_at, fail_below=fail_below, sure=sure, not_scored=not_scored)
    if exclude_list is not None:
        table.format_of(exclude_list)  # a wrong suffix is told before the work
    tally = _Verdicts()
    with closing(_records(paths, _Reading(model, frame, axis, window, mask, jobs))) as records:
        judged = tally.count(gate_all(records, thresholds))
        if sys.stdout.isatty() and not as_json:
            print_rich(table.table(judged))
        else:
            sys.stdout.reconfigure(errors="surrogateescape", newline="")  # type: ignore[union-attr]
            table.write_records(judged, sys.stdout, "jsonl")
    if exclude_list is not None:
        table.save_records(tally.held_back, exclude_list, EXCLUSION_COLUMNS)
    say(", ".join(f"{tally.counts[verdict]} {verdict}" for verdict in EXIT_CODES))
    raise typer.Exit(max(EXIT_CODES[verdict] for verdict in tally.counts))


def _own_gate(model: str | None, fail_below: float | None) -> tuple[float, float | None]:
    """The cut-offs that the model's file carries. Raises BadParameter where it has none."""
    from saqm.scorer import ModelScorer, load_scorer

    scorer = load_scorer(model)
    known = scorer.header.calibration if isinstance(scorer, ModelScorer) else None
    if known is None or known.gate is None:
        raise typer.BadParameter(
            f"{scorer.name} carries no cut-off of its own: give --pass, which saqm threshold chooses, or a model that "
            "saqm calibrate --bad-below made"
        )
    say(f"the model's own gate: pass at {known.gate.pass_at:g}; {known.gate.promise}")
    return known.gate.pass_at, known.gate.fail_below if fail_below is None else fail_below


class _Verdicts:
    """Counts verdicts as they pass, and keeps what is held back."""

    def __init__(self) -> None:
        self.counts: Counter[Verdict] = Counter()
        self.held_back: list[Record] = []

    def count(self, records: Iterable[dict[str, object]]) -> Iterator[Record]:
        for record in records:
            verdict: Verdict = record["verdict"]  # type: ignore[assignment]
            self.counts[verdict] += 1
            if verdict != "pass":
                self.held_back.append({key: record[key] for key in ("path", "frame", "verdict", "reasons")})
            yield record


@commands.command(
    epilog="Examples: saqm threshold --manifest study.csv --bad-below 3 --miss-at-most 0.05 · "
    "saqm threshold --manifest study.csv --bad-below 3 --model niqe --false-fail-at-most 0.05"
)
def threshold(
    manifest: Annotated[Path, typer.Option(help="Images with opinion scores.")],
    *,
    bad_below: Annotated[
        float, typer.Option(help="A worse opinion than this is bad; on the manifest's scale, in its direction.")
    ],
    miss_at_most: Annotated[float, typer.Option(help="Share of the bad images that may pass.")] = 0.05,
    false_fail_at_most: Annotated[
        float | None, typer.Option(help="Share of the good images that may fail; chooses --fail, too.")
    ] = None,
    unit: Annotated[
        Literal["scene", "image"],
        typer.Option(help="What the promise counts; image: only where no two images are of one scene."),
    ] = "scene",
    model: ModelOption = None,
    predictions: Annotated[
        Path | None, typer.Option(help="A table of out-of-fold predictions instead of a model.")
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Choose the thresholds of a gate from images with opinions: so few bad ones missed, for so much work.

    The lowest score to pass at for which, in the mean, no more than --miss-at-most of the bad images of a new scene
    pass (conformal risk control); with the workload, sensitivity, specificity and their intervals. Where there are too
    few bad images to promise that, it says how many are wanted. Images that the model was trained on take part with
    their out-of-fold predictions, as in saqm evaluate. Exit code 1 where some images could not be scored.
    """
    from saqm.evaluate import Evaluation, evaluate, evaluate_predictions
    from saqm.manifest import read_manifest
    from saqm.outputs.predictions import mean_of_seeds, predictions_of, read_predictions
    from saqm.scorer import load_scorer
    from saqm.threshold import choose_thresholds

    if model is not None and predictions is not None:
        raise typer.BadParameter("--model and --predictions exclude each other")
    checked = read_manifest(manifest)
    evaluation: Evaluation
    name: str | None = None
    if predictions is not None:
        by_seed = predictions_of(checked.rows, read_predictions(predictions))
        evaluation = evaluate_predictions(checked.rows, mean_of_seeds(by_seed), seed=seed, replicates=_FEW)
    else:
        scorer = load_scorer(model)
        name = model or scorer.name
        evaluation = evaluate(scorer, checked, seed=seed, replicates=_FEW)
    choice = choose_thresholds(
        evaluation,
        checked.scale,
        scorer=name,
        bad_below=bad_below,
        miss_at_most=miss_at_most,
        false_fail_at_most=false_fail_at_most,
        unit=unit,
        seed=seed,
    )
    typer.echo(choice.to_json() if as_json else choice.to_text(), nl=False)
    if choice.failures:
        raise typer.Exit(1)


_FEW = 2  # replicates of the evaluation, whose correlations are not shown


@commands.command(
    epilog="Examples: saqm compare bm3d/ unet/ --out pairs.csv --picture pairs.png · "
    "saqm compare a.jsonl b.jsonl --by scene --manifest study.csv"
)
def compare(
    first: Annotated[str, typer.Argument(help="A: a folder, file or glob of images, or a result file of saqm score.")],
    second: Annotated[str, typer.Argument(help="B: the same for the other side; its gain is told.")],
    *,
    by: Annotated[
        Literal["name", "scene"], typer.Option(help="Pair files of one name, or the scenes' means.")
    ] = "name",
    manifest: Annotated[
        Path | None, typer.Option(help="Says which scene an image is of; then whole scenes are counted, not pairs.")
    ] = None,
    model: ModelsOption = None,
    frame: FrameOption = "all",
    axis: AxisOption = None,
    window: WindowOption = None,
    mask: MaskOption = "auto",
    jobs: Jobs = 1,
    out: Annotated[
        Path | None, typer.Option(help="File for every pair: .csv, .tsv, .jsonl, .json or .parquet.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the pairs and the gain with its interval (PNG).")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two sets of the same images, two denoisers say: the gain of B, its interval, exact tests.

    Images are paired by file name without suffix, frame by frame, or by scene. What has no partner, or no score, is
    listed, and the exit code is 1. A p-value says that there is a difference, not that a radiologist would mind.
    """
    from saqm.comparison import PAIR_COLUMNS
    from saqm.comparison import compare as compare_sides
    from saqm.manifest import read_manifest
    from saqm.outputs.differences import differences
    from saqm.outputs.table import format_of, save_records

    if out is not None:
        format_of(out)  # a wrong suffix is told before the work
    checked = None if manifest is None else read_manifest(manifest, check_files=False)
    reading = _Reading(model, frame, axis, window, mask, jobs)
    sides = [list(_records([side], reading)) for side in (first, second)]
    made = compare_sides(sides[0], sides[1], by=by, manifest=checked, labels=_labels(first, second))
    if out is not None:
        save_records(made.to_rows(), out, PAIR_COLUMNS)
    if picture is not None:
        differences(made, picture)
    typer.echo(made.to_json() if as_json else made.to_text(), nl=False)
    if any(result.unpaired for result in made.results):
        raise typer.Exit(1)


def _labels(first: str, second: str) -> tuple[str, str]:
    """What the sides are called: the last part of their paths where these differ, else the paths."""
    short = Path(first).name, Path(second).name
    return short if all(short) and short[0] != short[1] else (first, second)


def _records(paths: Sequence[str], reading: _Reading) -> Generator[Record]:
    """The records of images, scored now, or of result files of `saqm score`, of whose rows --model chooses."""
    results = [path for path in paths if path.lower().endswith(RESULT_SUFFIXES)]
    if not results:
        yield from _scored(paths, reading)
        return
    if len(results) < len(paths):
        other = next(path for path in paths if path not in results)
        raise typer.BadParameter(f"{results[0]} is a result file and {other} is not; give one kind or the other")
    if reading != _Reading(reading.model, jobs=reading.jobs):
        raise typer.BadParameter(f"{results[0]} holds scores: how images are read was decided when they were made")
    from saqm.gating import of_models
    from saqm.outputs.table import read_records
    from saqm.scorer import scorer_names

    records = (record for path in results for record in read_records(path))
    yield from records if reading.model is None else of_models(records, scorer_names(reading.model))


def _scored(paths: Sequence[str], reading: _Reading) -> Generator[Record]:
    from saqm.batch import score_many

    names = found(paths)
    with closing(score_many(names, reading.settings(), jobs=reading.jobs)) as scores:
        yield from with_progress((score.to_record() for score in scores), len(names))
