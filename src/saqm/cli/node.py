"""`saqm node`: a DICOM node that scores what it is sent."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saqm.cli.terminal import AsJson, print_json, say

if TYPE_CHECKING:
    from saqm.node import Settings

commands = typer.Typer()


@commands.command(
    epilog="Examples: saqm node --config saqm.toml · saqm node --config saqm.toml --status · "
    "saqm node --config saqm.toml --retry"
)
def node(
    config: Annotated[
        Path | None, typer.Option(help="Settings in TOML, table node; SAQM_NODE_* and the flags overrule it.")
    ] = None,
    *,
    folder: Annotated[Path | None, typer.Option(help="Where the queue is kept, on a local disk.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="11112 by default; 0 takes a free one.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Scoring processes.")] = None,
    model: Annotated[str | None, typer.Option(help="A shipped model, or a model file.")] = None,
    show_status: Annotated[bool, typer.Option("--status", help="Tell what is in the queue; stop.")] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Put back what was set aside, and send without waiting; stop.")
    ] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Give up for good what was set aside, its images included; stop.")
    ] = False,
    echo: Annotated[
        bool, typer.Option("--echo", help="Ask the running node whether it is alive (C-ECHO); stop.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Take images by C-STORE, and send a report on their quality to each destination, by C-STORE or STOW.

    Nothing that was accepted is lost: not by a crash, a full disk, or a destination that is away. A line of JSON on
    stderr tells of each step, without a patient's name. SIGTERM or Ctrl-C finishes what is in hand. --status, --retry
    and --forget work while the node runs. Exit code 1: something is set aside (--status), or no answer (--echo).
    """
    if sum((show_status, retry, forget, echo)) > 1:
        raise typer.BadParameter("--status, --retry, --forget and --echo: one at a time")
    from saqm.node import read_settings

    flags = {"folder": folder, "host": host, "port": port, "workers": workers, "model": model}
    settings = read_settings(config, os.environ, flags)
    if show_status:
        _show(settings, as_json)
    elif retry or forget:
        _change(settings, forgetting=forget)
    elif echo:
        from saqm.node.sending import echo as ask

        if not ask(settings):
            say(f"no answer from {settings.title} on port {settings.port}")
            raise typer.Exit(1)
    else:
        from saqm.node.running import run

        run(settings)


def _show(settings: Settings, as_json: bool) -> None:
    from saqm.node.queue import status

    found = status(settings.folder, now=time.time())
    if as_json:
        print_json(found)
    else:
        typer.echo("\n".join(_lines(found)))
    if found["aside"]:
        raise typer.Exit(1)


def _lines(found: dict[str, Any]) -> list[str]:
    counts = ", ".join(f"{count} {state}" for state, count in found["instances"].items())
    lines = [f"node: {'runs' if found['running'] else 'does not run'}", f"instances: {counts}"]
    if found["oldest_seconds"] is not None:
        lines.append(f"oldest that waits: {found['oldest_seconds']:g} s")
    for name, told in found["destinations"].items():
        away = f"; not reached {told['unreachable']} times: {told['reason']}" if "unreachable" in told else ""
        lines.append(f"destination {name}: {told['pending']} to be sent, {told['aside']} set aside{away}")
    for each in found["aside"]:
        what = f"instance {each['instance']}" if "instance" in each else f"{each['kind']} {each['object']}"
        where = f" for {each['destination']}" if "destination" in each else ""
        lines.append(f"set aside: {what}{where}: {each['reason']}")
    return lines


def _change(settings: Settings, *, forgetting: bool) -> None:
    from saqm.node.queue import forget, retry

    if forgetting:
        typer.echo(f"given up: {forget(settings.folder)}")
    else:
        typer.echo(f"put back: {retry(settings.folder, now=time.time())}")
