"""`saqm serve`: the HTTP service and its page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from saqm.cli.terminal import AsJson, print_json, say
from saqm.errors import SaqmError

commands = typer.Typer()


@commands.command(
    epilog="Examples: saqm serve · saqm serve --keys keys.json --add-key ward3 · "
    "saqm serve --config saqm.toml --host 0.0.0.0 --keys keys.json"
)
def serve(
    config: Annotated[
        Path | None, typer.Option(help="Settings in TOML, table serve; SAQM_SERVE_* and the flags overrule it.")
    ] = None,
    *,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; any but this machine's own needs keys.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="8787 by default; 0 takes a free one.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Scoring processes.")] = None,
    keys: Annotated[Path | None, typer.Option(help="File of the keys; with it every request needs one.")] = None,
    add_key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Make a key, print it this once, keep its hash in --keys; stop.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve scores over HTTP, with a page to drop images on.

    Only this machine can reach it unless --host says otherwise; then a key is demanded of everybody. A line of JSON on
    stderr tells of each request, without any name. SIGTERM or Ctrl-C lets running work finish; a second one ends it at
    once. With --json stdout gives the address, or the key that was made.
    """
    from saqm.service.keys import add_key as make_key
    from saqm.service.settings import read_settings

    flags = {"host": host, "port": port, "workers": workers, "keys": keys}
    settings = read_settings(config, os.environ, flags)
    if add_key is not None:
        if settings.keys is None:
            raise SaqmError("--add-key needs to know where keys are kept: --keys FILE, or keys in [serve]")
        made = make_key(settings.keys, add_key)
        if as_json:
            print_json({"name": add_key, "key": made})
        else:
            typer.echo(made)
        say(f"the key of {add_key}, shown only now; {settings.keys} holds its hash")
        return
    from saqm.service import service

    def ready(address: str) -> None:
        if as_json:
            print_json({"url": address, "pid": os.getpid()})
        say(f"saqm serves on {address}; Ctrl-C stops")

    service(settings).run(ready)
