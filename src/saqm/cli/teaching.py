"""Commands that only hand their options to the training modules, which need the extra `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from saqm.cli.terminal import (
    AsJson,
    MaskOption,
    found,
    from_training,
    print_made,
    say,
    stages,
)

commands = typer.Typer()


@commands.command(
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
    train_command = from_training("experiments", "train_command")
    with stages() as on_step:
        result = train_command(
            source=source,
            target=target,
            recipe=recipe,
            out=out,
            seed=seed,
            towers=towers,
            resume=resume,
            say=say,
            on_step=on_step,
        )
    print_made(result, as_json)


@commands.command(epilog="Example: saqm pretrain images/ --twins twins.csv --seed 7 --out towers/")
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
    pretrain_command = from_training("experiments", "pretrain_command")
    with stages() as on_step:
        result = pretrain_command(
            names=found(paths),
            twins=twins,
            recipe=recipe,
            out=out,
            seed=seed,
            resume=resume,
            say=say,
            on_step=on_step,
        )
    print_made(result, as_json)


@commands.command(epilog="Example: saqm adapt my-scanner/ --seed 7 --out adapted/")
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
    adapt_command = from_training("adapt", "adapt_command")
    with stages() as on_step:
        result = adapt_command(
            model=model or DEFAULT_MODEL,
            names=found(paths) if paths else (),
            manifest=target,
            source=found(source) if source else (),
            out=out,
            seed=seed,
            say=say,
            on_step=on_step,
        )
    print_made(result, as_json)


@commands.command(
    epilog="Examples: saqm export model/mine.safetensors --to onnx --out mine.onnx · "
    "saqm export mine.onnx --to int8 --calibrate study/"
)
def export(
    model: Annotated[Path, typer.Argument(help="A .safetensors model; for int8 a .onnx model, too.")],
    *,
    to: Annotated[
        Literal["onnx", "int8"], typer.Option(help="The form that scores without torch, in 32 bits or mostly in 8.")
    ] = "onnx",
    calibrate: Annotated[
        list[str] | None,
        typer.Option(help="Images like those to be scored, about 20, for int8: files, folders, globs; several times."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; by itself beside the model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Export a trained model to ONNX, which scores without torch; in int8 faster, by the difference in points told."""
    export_command = from_training("export", "export_command")
    images = found(calibrate) if calibrate else []
    print_made(export_command(model, to=to, out=out, calibrate=images), as_json)


@commands.command(
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
    fit_command = from_training("fitting", "fit_command")
    names = None if pristine is None else found(pristine)
    with stages() as on_step:
        result = fit_command(
            metric,
            pristine=names,
            manifest=manifest,
            import_file=import_file,
            mask=mask,
            out=out,
            say=say,
            on_step=on_step,
        )
    print_made(result, as_json)
