"""`saqm experiment`: the paper's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saqm.cli.terminal import (
    AsJson,
    ModelOption,
    from_training,
    stages,
)

commands = typer.Typer(help="The paper's tables, on a study of one's own.", no_args_is_help=True)


@commands.command("table2", epilog="Example: saqm experiment table2 --source abdomen.csv --target brain.csv --out t2/")
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
    table2_command, to_markdown, to_json = (
        from_training("table2_report", name) for name in ("table2_command", "to_markdown", "to_json")
    )
    with stages() as on_step:
        result = table2_command(
            source,
            target,
            both=both,
            k=folds,
            seeds=seeds,
            quick=quick,
            jobs=jobs,
            out=out,
            on_step=on_step,
        )
    if as_json:
        typer.echo(to_json(result), nl=False)
    else:
        typer.echo(to_markdown(result, quick=quick), nl=False)


@commands.command("table3", epilog="Example: saqm experiment table3 --manifest study.csv --out table3/")
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

    table3_command = from_training("table3", "table3_command")
    with stages() as on_step:
        result = table3_command(read_manifest(manifest), k=folds, seed=seed, model=model, out=out, on_step=on_step)
    typer.echo(result.to_json() if as_json else result.to_markdown(), nl=False)
