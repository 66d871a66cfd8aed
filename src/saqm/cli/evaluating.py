"""`saqm evaluate` and `saqm calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from saqm.cli.terminal import (
    AsJson,
    ModelOption,
    from_training,
    made_folder,
    print_json,
    save_text,
    say,
    stages,
)

commands = typer.Typer()


@commands.command(
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
        cross_validate = from_training("experiments", "cross_validate_command")
        with stages() as on_step:
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
            say(f"note: {result.protocol}")
    if out is not None:
        made_folder(out)
        save_text(out / "evaluation.json", result.to_json())
        save_text(out / "evaluation.md", result.to_markdown())
        if folds is None:  # the folds have written their own, with the fold of each image
            # a metric's own values are no predictions of opinions, and must not be taken for such by --predictions
            name = "predictions.csv" if result.orientation is None else "values.csv"
            write_predictions(out / name, result.rows, result.predictions, [None] * len(result.rows))
    if scatter is not None:
        draw_scatter(result, scatter)
    typer.echo(result.to_json() if as_json else result.to_text(), nl=False)
    if result.failures:
        raise typer.Exit(1)


@commands.command(
    epilog="Examples: saqm calibrate --manifest mine.csv --out ours.onnx · "
    "saqm calibrate --manifest mine.csv --bad-below 3 --miss-at-most 0.05 --out ours.onnx"
)
def calibrate(
    manifest: Annotated[Path, typer.Option(help="Images with the opinion scores of one's own readers.")],
    out: Annotated[Path, typer.Option(help="The model file under its new calibration: .onnx or .safetensors.")],
    *,
    model: ModelOption = None,
    bad_below: Annotated[
        float | None, typer.Option("--bad-below", help="Opinion below which an image is bad: chooses the gate as well.")
    ] = None,
    miss_at_most: Annotated[
        float, typer.Option("--miss-at-most", min=0, max=1, help="Share of the bad that the gate may let pass.")
    ] = 0.1,
    as_json: AsJson = False,
) -> None:
    """Bring a model's scores and intervals to one's own readers, from a few dozen images that they scored.

    The weights stay as they are. Every number that is printed is of scenes that the new calibration had not met.
    """
    from saqm.errors import SaqmError
    from saqm.manifest import read_manifest
    from saqm.modelfile import open_model
    from saqm.recalibrate import recalibrate, save_recalibrated
    from saqm.scorer import ModelScorer, load_scorer

    form: Literal["onnx", "safetensors"] = "safetensors" if out.suffix == ".safetensors" else "onnx"
    scorer = load_scorer(model)
    if not isinstance(scorer, ModelScorer):
        raise SaqmError(f"{scorer.name} is a metric and keeps its own scale; a calibration is for models")
    path = open_model(model or scorer.header.name, form)
    with stages() as on_step:
        told = None if on_step is None else lambda done, images: on_step("images", done, images, {})
        found = recalibrate(
            scorer, read_manifest(manifest), bad_below=bad_below, miss_at_most=miss_at_most, on_image=told
        )
    written = save_recalibrated(found, path, out)
    if as_json:
        print_json({"model": str(out), **found.to_dict()})
    else:
        typer.echo(found.to_text())
        typer.echo(f"{out}: {written.name} {written.version}")
    if found.failures:
        raise typer.Exit(1)
