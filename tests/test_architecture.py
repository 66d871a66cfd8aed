"""The house: storeys, who may import what, who may touch files. Read from the source, without importing it.

A new module gets its line in STOREYS, or these tests fail.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "saqm"

# Room -> storey. Imports go downward or stay on their storey; rooms of storey 1 do not know each other.
STOREYS = {
    # 0 ground
    "errors": 0,
    "writing": 0,
    # 1 knowledge
    "image": 1,
    "network": 1,
    "adaptation": 1,
    "manifest": 1,
    "statistics": 1,
    "degradations": 1,
    "metrics": 1,
    # 2 preparation
    "patches": 2,
    "modelfile": 2,
    "datasets": 2,
    # 3 the hinge
    "findings": 3,
    "sampling": 3,
    "engine_trial": 3,
    "engine": 3,
    "lending": 3,
    "calibration": 3,
    "maps": 3,
    "scorer": 3,
    # 4 what is done with scores
    "evaluate": 4,
    "recalibrate": 4,
    "batch": 4,
    "workers": 4,
    "outputs": 4,
    "gating": 4,
    "threshold": 4,
    "comparison": 4,
    "rating": 4,
    "agreement": 4,
    "dicomweb": 4,
    # 5 engines of training
    "loop": 5,
    "recipes": 5,
    "pretrain": 5,
    "fitting": 5,
    "frozen": 5,
    "opinions": 5,
    "watching": 5,
    "together": 5,
    "train": 5,
    "texture": 5,
    "quantise": 5,
    "export": 5,
    "scale": 5,
    "service": 5,
    "node": 5,
    # 6 roof
    "experiments": 6,
    "table2": 6,
    "table2_report": 6,
    "table3": 6,
    "adapt": 6,
    "cli": 6,
}

# Package -> the modules that import it, and no others. An empty line: somebody else's plug-in, which we never name.
IMPORTED_IN = {
    "torch": {
        "adapt",
        "adaptation",
        "engine",
        "export",
        "frozen",
        "loop",
        "network",
        "opinions",
        "pretrain",
        "table2",
        "texture",
        "together",
        "train",
        "watching",
    },
    "lightning": {"loop"},
    "jaxtyping": {"network"},
    "onnxscript": {"export"},
    "onnx": {"quantise"},
    "matplotlib": {
        "outputs.curves",
        "outputs.differences",
        "outputs.feature_map",
        "outputs.forest",
        "outputs.scatter",
        "loop",
    },
    "polars": {"outputs.table", "scale"},
    "ray": {"scale"},
    "fsspec": {"scale"},
    "imagecodecs": {"image.jpeg"},
    "sklearn": {"fitting"},
    "skimage": {"datasets.surrogate"},
    "fastapi": {"service.app"},
    "starlette": {"service.app"},
    "uvicorn": {"service.server"},
    "python_multipart": {"service.uploads"},
    "prometheus_client": {"service.telemetry"},
    "pynetdicom": {"node.guarded", "node.listener", "node.sending"},
    "highdicom": {
        "node.running",
        "outputs.dicom.building",
        "outputs.dicom.maps",
        "outputs.dicom.notes",
        "outputs.dicom.report",
    },
    # not optional, but each has its room
    "onnxruntime": {"engine", "quantise"},
    "openvino": {"engine"},
    "pydantic": {"modelfile", "node.settings", "service.schemas", "service.settings"},
    "typer": {
        "cli",
        "cli.acting",
        "cli.data",
        "cli.evaluating",
        "cli.experiment",
        "cli.models",
        "cli.node",
        "cli.pulling",
        "cli.rating",
        "cli.reporting",
        "cli.scaling",
        "cli.scoring",
        "cli.serving",
        "cli.teaching",
        "cli.terminal",
    },
    "nibabel": {"image.volume", "image.volume_header", "outputs.map_files"},
    "nrrd": {"image.volume", "image.volume_header"},
    "tifffile": {"image.raster"},
}
OPTIONAL = {
    "torch",
    "lightning",
    "jaxtyping",
    "onnxscript",
    "onnx",
    "openvino",
    "matplotlib",
    "polars",
    "imagecodecs",
    "sklearn",
    "ray",
    "fsspec",
    "fastapi",
    "starlette",
    "uvicorn",
    "python_multipart",
    "prometheus_client",
    "pynetdicom",
    "highdicom",
}

# House rule 2: the only modules that open, read or write files, and what.
TOUCHES_FILES = {
    "writing": "puts what others write in its place",
    "image": "pictures",
    "manifest": "manifests and their sidecars",
    "datasets": "the table that a downloaded folder brings, and a surrogate set",
    "modelfile": "model files and their cards",
    "engine_trial": "verdicts in the platform's cache folder",
    "batch": "its journal",
    "outputs": "results",
    "rating": "its journal and its page",
    "workers": "what Linux tells of its processes' memory",
    "scale": "the folder of its parts, and what stands beside it",
    "service": "uploads, records of jobs, keys",
    "node": "its queue, its settings",
    "dicomweb": "instances it fetches, and objects it sends",
    "metrics": "their parameter files",
    "recipes": "recipes in TOML",
    "loop": "the folder of a run: checkpoint, log, curve",
    "experiments": "the folder of an experiment: what is finished in it",
    "table2": "the neck that a run kept",
    "table2_report": "the folder of its tables, and the logs of its runs",
    "table3": "the folder of its tables",
    "adapt": "the card beside an adapted model",
    "degradations": "no file: JPEG in memory, by Pillow's open",
    "cli": "the folder and the texts of evaluate --out",
}
OPENERS = {
    "open", "fdopen", "read_text", "write_text", "read_bytes", "write_bytes", "mkdir", "imread", "dcmread", "memmap",
    "safe_open", "save_file", "load_file", "fromfile", "tofile",
}  # fmt: skip

# House rules 5 and 9, and no pickles: these are imported nowhere.
FORBIDDEN = {"urllib", "http", "socket", "requests", "httpx", "pickle", "random", "dill", "joblib"}
# The page of a reader study listens on this machine; it calls nobody.
LISTENS = {
    "rating.server": {"http"},
    "dicomweb.server": {"urllib"},
    "dicomweb.wire": {"http", "urllib"},
    "dicomweb.pulling": {"http", "urllib"},
    "dicomweb.storing": {"http"},
    "service.problems": {"http"},
    "node.guarded": {"socket"},
}
# House rule 9: who may read clock or environment.
TELLS_TIME = {
    "cli.terminal": "--timestamp",
    "engine_trial": "environment: the cap of oneDNN, and where caches lie",
    "loop": "seconds of a step, for its log only",
    "scale": "environment: Ray",
    "service.desk": "of records and reports",
    "service.door": "seconds of a request",
    "service.jobs": "their expiry",
    "service.lanes": "seconds of work",
    "service.reports": "as an argument",
    "service.telemetry": "of log lines",
    "cli.serving": "environment: settings",
    "cli.node": "environment: settings; and how long something waits",
    "node.guarded": "deadlines of a connection",
    "node.listener": "how long a stop may take",
    "node.logs": "of log lines",
    "node.running": "of the queue and of reports, as an argument to them",
    "node.work": "of reports, from what it is given; and how long a stop may take",
    "dicomweb.server": "environment: credentials, which must not stand in a URL",
    "dicomweb.wire": "how long an answer takes, and pauses between attempts",
}


@dataclass(frozen=True)
class Import:
    """`target` is imported by a module; `lazily` inside a function."""

    target: str
    lazily: bool


def modules() -> dict[str, ast.Module]:
    """Every module by its dotted name below saqm ("" is the face)."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = modules()


def executed(node: ast.AST, lazily: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes but what stands under `if TYPE_CHECKING`, and whether they are inside a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        inside = lazily or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield child, inside
        yield from executed(child, inside)


def imports(tree: ast.Module) -> list[Import]:
    """What a module imports, its own package's modules as saqm.NAME."""
    found = []
    for node, lazily in executed(tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, lazily) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = inner.removeprefix("saqm.") in MODULES
                found.append(Import(inner if is_module or node.module == "saqm" else node.module, lazily))
    return found


def own_imports(module: str) -> list[Import]:
    """The modules of saqm that a module imports, by their name below saqm."""
    own = [found for found in imports(MODULES[module]) if found.target.split(".")[0] == "saqm"]
    assert {f.target for f in own if f.target.count(".") == 0} == set()
    kept = [found for found in own if found.target != "saqm.__version__"]  # the one thing that the face holds
    return [Import(found.target.removeprefix("saqm."), found.lazily) for found in kept]


def room(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


BELOW_THE_FACE = [name for name in MODULES if name]


def test_every_room_has_its_storey() -> None:
    assert {room(name) for name in BELOW_THE_FACE} == set(STOREYS)


@pytest.mark.parametrize("module", BELOW_THE_FACE)
def test_imports_go_only_downward(module: str) -> None:
    here = room(module)
    for found in own_imports(module):
        there = room(found.target)
        assert there in STOREYS, f"{module} imports {found.target}, which is no room"
        if there == here:
            continue
        assert STOREYS[there] <= STOREYS[here], f"{module} looks up to {found.target}"
        if STOREYS[here] == 1:
            assert STOREYS[there] == 0, f"{module} knows {found.target}: rooms of storey 1 do not know each other"


def test_there_are_no_circles() -> None:
    """Between rooms not even lazily; within a room (image, outputs) not at import."""
    rooms: dict[str, set[str]] = {name: set() for name in STOREYS}
    at_import: dict[str, set[str]] = {name: set() for name in BELOW_THE_FACE}
    for module in BELOW_THE_FACE:
        for found in own_imports(module):
            if room(found.target) != room(module):
                rooms[room(module)].add(room(found.target))
            if not found.lazily:
                at_import[module].add(found.target)
    for graph in (rooms, at_import):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            pytest.fail("a circle: " + " -> ".join(reversed(error.args[1])))


def test_the_face_holds_nothing_but_names() -> None:
    assert own_imports("") == []
    assert {found.target.split(".")[0] for found in imports(MODULES[""])} <= sys.stdlib_module_names


@pytest.mark.parametrize("package", IMPORTED_IN)
def test_a_package_is_imported_in_its_place_only(package: str) -> None:
    users = {name for name, tree in MODULES.items() for i in imports(tree) if i.target.split(".")[0] == package}
    assert users == IMPORTED_IN[package]


def test_pydicom_stays_where_dicom_comes_in_and_goes_out() -> None:
    users = {room(name) for name, tree in MODULES.items() for i in imports(tree) if i.target.startswith("pydicom")}
    assert users <= {"image", "outputs", "node", "dicomweb"}


def test_the_network_and_pickles_are_not_reached_for() -> None:
    for name, tree in MODULES.items():
        reached = {found.target.split(".")[0] for found in imports(tree)}
        assert FORBIDDEN & reached == LISTENS.get(name, set()), name


def test_only_the_allowed_rooms_touch_files() -> None:
    touching = {}
    for name, tree in MODULES.items():
        for node, _ in executed(tree):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and called.attr in OPENERS:
                touching[room(name)] = f"{name}, line {called.lineno}: {called.attr}"
            elif isinstance(called, ast.Name) and called.id in OPENERS:
                touching[room(name)] = f"{name}, line {called.lineno}: {called.id}"
    assert {where: what for where, what in touching.items() if where not in TOUCHES_FILES} == {}
    assert set(TOUCHES_FILES) == set(touching) | {"writing"}  # an exception that nobody needs any more goes


def test_only_the_allowed_modules_read_clock_or_environment() -> None:
    telling = {
        name
        for name, tree in MODULES.items()
        if {"time", "datetime"} & {found.target.split(".")[0] for found in imports(tree)}
        or any(isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") for node, _ in executed(tree))
    }
    assert telling == set(TELLS_TIME)


def test_everything_public_says_what_it_is() -> None:
    silent = []
    for name, tree in MODULES.items():
        if not ast.get_docstring(tree):
            silent.append(name or "saqm")
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            overload = isinstance(node, ast.FunctionDef) and "overload" in map(ast.unparse, node.decorator_list)
            if public and not overload and not ast.get_docstring(node):
                silent.append(f"{name}.{node.name}")
    assert silent == []


def test_the_library_does_not_print() -> None:
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{name}, line {node.lineno}"


# What is loaded when


def loaded_by(script: str, *arguments: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after a script."""
    script += "\nimport sys\nprint('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


def test_importing_saqm_loads_no_dependency() -> None:
    heavy = {"numpy", "scipy", "PIL", "pydicom", "nibabel", "onnxruntime", "pydantic", "typer", "rich", "safetensors"}
    assert not (heavy | OPTIONAL) & loaded_by("import saqm; saqm.SaqmError; dir(saqm)")


def test_scoring_loads_no_optional_package(toy_model: Path) -> None:
    script = """
import sys, numpy, saqm
from saqm.image import from_array
pixels = numpy.random.default_rng(0).random((64, 64), numpy.float32)
assert saqm.score(from_array(pixels), saqm.load_scorer(sys.argv[1])).score is not None
"""
    assert not OPTIONAL & loaded_by(script, str(toy_model))


def test_the_table_is_in_order() -> None:
    assert all(before <= after for before, after in pairwise(STOREYS.values()))
