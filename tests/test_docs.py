"""The documentation: its links lead somewhere, its commands exist, its Python compiles, the reference is up to date."""

from __future__ import annotations

import csv
import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from saqm import __version__
from saqm.image.window import DEFAULT_WINDOWS, PERCENTILES

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src/saqm/models").glob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """The fenced blocks of a page in one of these languages."""
    for language, content in FENCE.findall(page.read_text(encoding="utf-8")):
        if language in languages:
            yield content


@cache
def generator(script: str = "generate_cli") -> ModuleType:
    """A script of docs/: generate_cli knows every command from its signature, generate_metrics every metric."""
    spec = importlib.util.spec_from_file_location(script, ROOT / "docs" / f"{script}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@cache
def options() -> dict[str, set[str]]:
    """The options of each command, by its path."""
    return {command.path: command.options for command in generator().commands()}


def commands_of(text: str) -> Iterator[list[str]]:
    """The saqm commands of a shell block, as words; a line that ends in a backslash goes on."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["saqm"]:
            yield words


def command_path(words: list[str]) -> str | None:
    """The command that some words call: two or three of them."""
    return next((path for size in (3, 2) if (path := " ".join(words[:size])) in options()), None)


def wrong_with(words: list[str]) -> str | None:
    """What a person who types this would be told, if anything."""
    groups = {" ".join(command.split()[:2]) for command in options() if command.count(" ") == 2}
    if words == ["saqm", "--version"] or " ".join(words) in groups:
        return None
    path = command_path(words)
    if path is None:
        return f"no such command: {shlex.join(words)}"
    unknown = {word for word in words if re.match(r"--[a-z]", word)} - options()[path]
    return f"{path} has no {', '.join(sorted(unknown))}" if unknown else None


def test_the_reference_of_the_commands_is_up_to_date() -> None:
    assert generator().PAGE.read_text(encoding="utf-8") == generator().page(), "run `make docs`"


def test_the_cards_of_the_metrics_are_up_to_date() -> None:
    cards = generator("generate_metrics")
    assert cards.PAGE.read_text(encoding="utf-8") == cards.page(), "run `make docs`"


def test_a_sentence_about_the_metrics_that_was_not_measured_is_not_written() -> None:
    cards = generator("generate_metrics")
    laws = cards.read_laws()
    assert len(list(cards.summary(laws))) == len(list(cards.claims(laws)))
    turned = {
        key: replace(row, obeyed=None if row.obeyed is None else 1 - row.obeyed, worst_span=1.0)
        for key, row in laws.items()
    }
    assert not any(holds for _, holds in cards.claims(turned))
    with pytest.raises(ValueError, match=r"laws\.csv does not bear this sentence"):
        list(cards.summary(turned))


def test_every_command_has_its_section_with_an_example_of_itself() -> None:
    for command in generator().commands():
        assert command.text
        assert command.examples
        for example in command.examples:
            (words,) = commands_of(example)
            assert command_path(words) == command.path
            assert wrong_with(words) is None
        assert all(parameter.text for parameter in command.parameters), command.path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_inside_leads_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{name(page)}: {target}"
        assert found.is_relative_to(ROOT)
        if anchor:
            heads = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", head).lower().replace(" ", "-") for head in heads}, target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_shell_line_calls_a_command_and_options_that_exist(page: Path) -> None:
    for block in blocks(page, "sh", "bash", "shell", "console"):
        for words in commands_of(block):
            assert wrong_with(words) is None, name(page)
    for inline in re.findall(r"`(saqm [^`\n]+)`", FENCE.sub("", page.read_text(encoding="utf-8"))):
        words = inline.replace("…", "").split()
        if any(word.isupper() or word in ("FILE", "COMMAND") for word in words[1:2]):
            continue  # `saqm COMMAND --help`: a placeholder
        assert wrong_with(words) is None, name(page)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_blocks_compile_and_import_what_exists(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, name(page), "exec")
        for module, names in re.findall(r"^from (saqm[\w.]*) import (.+)$", block, re.MULTILINE):
            loaded = importlib.import_module(module)
            assert all(hasattr(loaded, each.strip()) for each in names.split(",")), block
        for attribute in re.findall(r"\bsaqm\.(\w+)\(", block):
            assert attribute in importlib.import_module("saqm").__all__


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_toml_and_json_blocks_can_be_read(page: Path) -> None:
    import json

    for block in blocks(page, "toml"):
        tomllib.loads(block)
    for block in blocks(page, "json"):
        json.loads(block)


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        asked = set(re.findall(r"`make ([a-z-]+)`", page.read_text(encoding="utf-8")))
        asked |= {line.split()[1] for block in blocks(page, "sh") for line in block.splitlines() if line[:5] == "make "}
        assert asked <= targets, name(page)


def test_the_recipe_of_the_tutorial_can_be_read(tmp_path: Path) -> None:
    from saqm.recipes import read_recipe

    for number, block in enumerate(blocks(ROOT / "docs" / "tutorial.md", "toml")):
        path = tmp_path / f"recipe{number}.toml"
        path.write_text(block, encoding="utf-8")
        assert read_recipe(path).name == f"recipe{number}"


def test_the_numbers_of_the_documentation_are_those_of_the_code() -> None:
    from saqm.network import SAQM, Architecture, multiply_accumulates
    from saqm.recipes import SLIM

    paper, models, images = (
        (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in ("paper", "models", "images")
    )
    per_window = multiply_accumulates(Architecture())
    for text in (
        f"{per_window / 1e9:.3f} G",
        f"{2 * per_window / 1e9:.1f} GFLOP",
        f"{512 * per_window / 1e12:.1f} TFLOP",
    ):
        assert text in paper
    for arch in (Architecture(), Architecture(trunks="shared"), SLIM):
        parameters = sum(parameter.numel() for parameter in SAQM(arch, seed=0).parameters())
        assert f"{parameters:,}" in models
        assert f"{multiply_accumulates(arch) / 1e9:.3f} G" in models
    assert DEFAULT_WINDOWS == {"CT": (40, 400)}
    assert "centre 40, width 400" in images
    assert PERCENTILES == (0.5, 99.5)
    assert "percentiles 0.5–99.5" in images


def test_changelog_and_citation_know_the_version() -> None:
    assert f"[{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {__version__}" in citation
    assert "2210.10533" in citation


def test_no_page_knows_this_machine() -> None:
    for page in PAGES:
        assert not re.search(r"/(home|work|root|Users|tmp)/", page.read_text(encoding="utf-8")), name(page)


def test_every_dependency_is_pinned_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    wanted = {re.split(r"[\[<>=!~ ]", each)[0] for each in named} - {"saqm"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert sorted(pin[0] for pin in pins) == sorted(wanted)
    assert all(len(pin) == 2 for pin in pins)


def test_the_readme_quotes_the_committed_table_of_metrics() -> None:
    """README's table 3 is benchmarks/results/table3.csv, number by number."""
    with (ROOT / "benchmarks" / "results" / "table3.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["domain"], row["predictor"]): row for row in csv.DictReader(file)}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split("<!-- table3:begin -->")[1].split("<!-- table3:end -->")[0]
    lines = [line.strip("| ").split(" | ") for line in block.splitlines() if line.startswith("| ")][2:]
    assert len(lines) > 10
    for name, abdomen, brain, *_ in lines:
        for domain, cell in (("ct-abdomen", abdomen), ("ct-brain", brain)):
            row = rows[domain, name.strip()]
            quoted = [float(number) for number in re.findall(r"-?[0-9.]+", cell)]
            wanted = [row["srocc"], row["srocc_low"], row["srocc_high"]]
            assert quoted == [pytest.approx(float(value), abs=0.0051) for value in wanted if value]


@pytest.mark.parametrize(
    ("page", "mark", "result"),
    [
        ("README.md", "peers", "peers.md"),
        ("docs/engines.md", "engines", "engines.md"),
        ("docs/engines.md", "full-width", "full_width.md"),
        ("docs/models.md", "front", "front.md"),
        ("docs/models.md", "compress", "compress.md"),
        ("docs/scale.md", "pipeline", "pipeline.md"),
    ],
)
def test_what_a_page_quotes_of_a_measurement_is_its_result(page: str, mark: str, result: str) -> None:
    quoted = (
        (ROOT / page).read_text(encoding="utf-8").split(f"<!-- {mark}:begin -->")[1].split(f"<!-- {mark}:end -->")[0]
    )
    assert quoted.strip() == (ROOT / "benchmarks" / "results" / result).read_text(encoding="utf-8").strip()
