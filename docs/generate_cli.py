"""Write docs/cli.md from the commands' own signatures: what `saqm COMMAND --help` says, the same on every terminal.

python docs/generate_cli.py          writes docs/cli.md
python docs/generate_cli.py --check  exit code 1 where docs/cli.md is out of date
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo

from saqm.cli import app

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# The commands

Made by `make docs` from what `saqm COMMAND --help` says; do not edit.

{about}

Exit codes: 0 fine, 1 some inputs were not scored, 2 wrong usage or a refusal, 130 stopped with Ctrl-C. Results go to
stdout, progress and remarks to stderr. Every command has `--help`; `saqm --version` prints the version.
"""
WORDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Parameter:
    """One argument or option. `names` are those on the command line; `takes` is empty for a flag."""

    names: tuple[str, ...]
    takes: str
    text: str
    required: bool
    default: object
    is_argument: bool


@dataclass(frozen=True)
class Command:
    """One command: "saqm data folder", what it does, its examples, its parameters."""

    path: str
    text: str
    examples: tuple[str, ...]
    parameters: tuple[Parameter, ...]

    @property
    def options(self) -> set[str]:
        """Every option, --help included."""
        return {"--help", *(name for p in self.parameters if not p.is_argument for name in p.names)}


def commands(group: typer.Typer = app, path: str = "saqm") -> Iterator[Command]:
    """Every command in the order of the help, those of groups after the others."""
    for registered in group.registered_commands:
        callback = registered.callback
        assert callback is not None
        name = registered.name or callback.__name__
        _, _, examples = (registered.epilog or "").partition(":")
        text = "\n\n".join(" ".join(part.split()) for part in (callback.__doc__ or "").split("\n\n"))
        yield Command(f"{path} {name}", text.strip(), tuple(examples.strip().split(" · ")), tuple(parameters(callback)))
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        named = isinstance(inner.name, str)  # a group without a name is a module's commands, which stand at the top
        yield from commands(inner.typer_instance, f"{path} {inner.name}" if named else path)


def parameters(callback: Callable[..., Any]) -> Iterator[Parameter]:
    """Arguments and options of a command, from its signature."""
    hints = get_type_hints(callback, include_extras=True)
    for name, parameter in inspect.signature(callback).parameters.items():
        kind, info = get_args(hints[name])[:2]
        is_argument, required = isinstance(info, ArgumentInfo), parameter.default is inspect.Parameter.empty
        # inside Annotated typer keeps the first declared name where a default would otherwise stand
        declared = [each for each in (info.default, *(info.param_decls or ())) if str(each).startswith("-")]
        yield Parameter(
            names=(name.upper(),) if is_argument else tuple(declared) or (f"--{name.replace('_', '-')}",),
            takes=info.metavar or taken(kind),
            text=(info.help or "").rstrip("."),
            required=required,
            default=None if required else parameter.default,
            is_argument=is_argument,
        )


def taken(kind: Any) -> str:
    """What an option of this type takes, in a word; nothing for a flag."""
    if get_origin(kind) in (types.UnionType, Union):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) is list:
        return "..."
    return "" if kind is bool else WORDS[kind]


def page() -> str:
    """The whole page, Markdown."""
    return "\n".join([HEAD.format(about=app.info.help), *(section(command) for command in commands())])


def section(command: Command) -> str:
    """One command: what it does, an example, its arguments and options."""
    lines = [f"## {command.path}", "", command.text, "", "```sh", *command.examples, "```", ""]
    lines += ["| | |", "| --- | --- |", *map(row, command.parameters), ""]
    return "\n".join(lines)


def row(parameter: Parameter) -> str:
    """One line of the table: the names, what it takes, what it does, its default."""
    shown = ", ".join(parameter.names)
    if not parameter.is_argument or parameter.takes == "...":
        shown = f"{shown} {parameter.takes}".strip()
    said = parameter.text
    if parameter.required:
        said += "; required"
    elif parameter.default is not None and parameter.default is not False:
        said += f"; default {parameter.default}"
    return f"| <code>{cell(shown)}</code> | {cell(said)} |"


def cell(text: str) -> str:
    """Text that ends no cell of a Markdown table."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")


def main() -> None:
    """Write the page, or check it."""
    made = page()
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text(encoding="utf-8") != made)
    PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
