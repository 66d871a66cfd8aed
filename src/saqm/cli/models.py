"""`saqm models`: what comes with saqm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from saqm.cli.terminal import (
    AsJson,
    ModelArgument,
    print_json,
)

if TYPE_CHECKING:
    from saqm.metrics import Metric

commands = typer.Typer(help="The models and metrics that come with saqm.", no_args_is_help=True)


@commands.command("list", epilog="Example: saqm models list")
def models_list(as_json: AsJson = False) -> None:
    """The shipped models, and the metrics with the parameters that come with them."""
    from saqm.metrics import METRICS
    from saqm.modelfile import DEFAULT_MODEL, open_model, read_header, shipped
    from saqm.scorer import parameters_for

    headers = {name: read_header(open_model(name)) for name in shipped()}
    if as_json:
        print_json(
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


@commands.command("show", epilog="Examples: saqm models show saqm-ct · saqm models show niqe:ct")
def models_show(name: ModelArgument, as_json: AsJson = False) -> None:
    """A model's card, or a metric's line with the card of its parameters; with --json a model's whole header."""
    from saqm.metrics.parameters import read_parameters_card
    from saqm.modelfile import open_model, read_card, read_header
    from saqm.scorer import metric_named

    found = metric_named(name)
    if found is None:
        if as_json:
            print_json(read_header(open_model(name)).model_dump(mode="json"))
        else:
            typer.echo(read_card(name))
        return
    metric, parameters = found
    described = _described(metric)
    if as_json:
        print_json(described)
        return
    card = None if parameters is None else read_parameters_card(parameters)
    for key, value in described.items():
        if value:
            typer.echo(f"{key}: {', '.join(value) if isinstance(value, list) else value}")
    if card is not None:
        typer.echo(f"\n{card}")


@commands.command("verify", epilog="Examples: saqm models verify mine.onnx · saqm models verify niqe:mine.safetensors")
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
        print_json(hashes)
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
