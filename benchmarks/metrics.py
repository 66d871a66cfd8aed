"""CPU time and memory of the eight metrics beside the other programs that PyPI has for them: `make benchmark-metrics`.

    python benchmarks/metrics.py [--peers peers/bin/python] [--sides 512 2048 4096] [--only METRIC ...] [--out FOLDER]

The others live in an environment of their own, which saqm needs for nothing else:

    python3.11 -m venv peers
    peers/bin/pip install torch==2.13.0
    peers/bin/pip install numpy==2.4.6 scipy==1.17.1 pillow==13.0.0 scikit-image==0.26.0 PyWavelets==1.9.0 requests
    peers/bin/pip install libsvm-official==3.37.0 opencv-contrib-python-headless==5.0.0.93 pyyaml tqdm pandas einops
    peers/bin/pip install --no-deps scikit-video==1.1.11 brisque==0.2.0 piq==0.8.0 pyiqa==0.1.16

(`--no-deps`: piq and pyiqa would fetch torchvision and with it another torch.) What cannot be imported or fails stands
in the table with the reason. Some run only after a small mend, made here at run time and said beside the number.

Each program has a process of its own for each picture, one thread, everything loaded and one call made before the
first that is timed. Then all of one metric take turns, so that what else the machine does hits them alike, until the
least CPU time (user and system, of the whole process) of each no longer falls. Peak memory is the process's, from
Linux's VmHWM; "added" is what it rose by above the loaded program and picture.

Pictures: scikit-image's camera and astronaut, tiled in mirror images, with a little noise, so that nothing is flat; and
the grey one black outside a disc, 40 % of it, as CT slices are. The trained metrics use the authors' parameters below
SAQM_SHARED where they are at hand, else ours. Writes metrics.json, and metrics.md made from it; what stands there of
other sides and metrics is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SHARED = ROOT / os.environ.get("SAQM_SHARED", "../shared")
SIDES = (512, 2048, 4096)  # pixels
LEAST_ROUNDS = 6
STABLE = 0.01  # stop when the last LEAST_ROUNDS calls brought the least time down by less than this share ...
LONGEST = 15.0  # ... or after so many CPU seconds of one program on one picture
OURS = "saqm"
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1"
)

Pixels = NDArray[np.uint8]
Timed = Callable[[Pixels], float]  # the call that is timed; gives the score

# ------------------------------------------------------------------------------------------------ the programs


@dataclass(frozen=True)
class Program:
    """One implementation. load: imports and prepares it, given the folder of parameters; runs in its own process.

    package: its distribution. remark: what has to be known about its number; mend: what was changed to make it run.
    """

    name: str
    metric: str  # the one of ours it is set beside
    load: Callable[[Path], Timed]
    package: str = ""
    remark: str = ""
    mend: str = ""
    pictures: tuple[str, ...] = ("photo",)


def ours(metric: str, **options: object) -> Callable[[Path], Timed]:
    def load(parameters: Path) -> Timed:
        from saqm.metrics import METRICS
        from saqm.metrics.parameters import Parameters

        entry = METRICS[metric]
        trained = []
        if entry.parameters is not None:
            with np.load(parameters / f"{entry.parameters}.npz") as arrays:
                trained = [Parameters(entry.parameters, "benchmark", dict(arrays))]
        return lambda pixels: entry.function(pixels, *trained, **{**entry.options, **options})

    return load


def scikit_video(_: Path) -> Timed:
    measure = import_module("skvideo.measure")
    return lambda pixels: float(measure.niqe(pixels)[0])


def scikit_video_mended(parameters: Path) -> Timed:
    import PIL.Image

    def imresize(pixels: NDArray[Any], share: float, interp: str, mode: str) -> NDArray[Any]:
        assert (interp, mode) == ("bicubic", "F")
        size = tuple((np.array(pixels.shape[::-1]) * share).astype(int))
        return np.array(PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.BICUBIC))  # float32 is mode F

    vars(np)["int"] = int
    vars(import_module("scipy.misc"))["imresize"] = imresize
    return scikit_video(parameters)


def opencv(parameters: Path) -> Timed:
    cv2 = import_module("cv2")

    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        model, ranges = Path(folder, "model.yml"), Path(folder, "range.yml")
        with np.load(parameters / "brisque.npz") as arrays:
            write_opencv_model(arrays, model, ranges)
        brisque = cv2.quality.QualityBRISQUE_create(str(model), str(ranges))
    return lambda pixels: float(brisque.compute(pixels)[0])


def write_opencv_model(arrays: Mapping[str, NDArray[np.float64]], model: Path, ranges: Path) -> None:
    """BRISQUE's parameters in the form that OpenCV's FileStorage reads: its own model is in no wheel."""

    def row(values: NDArray[np.float64]) -> str:
        return "[ " + ", ".join(f"{value:.9e}" for value in values) + " ]"

    coefficients = arrays["coefficients"]
    lines = ["%YAML:1.0", "---", "opencv_ml_svm:", "   format: 3", "   svmType: EPS_SVR"]
    lines += ["   kernel:", "      type: RBF", f"      gamma: {arrays['gamma']:.9e}", "   C: 1024.", "   p: 0.1"]
    lines += ["   term_criteria: { iterations:1000, epsilon:1e-3 }", "   var_count: 36"]
    lines += [f"   sv_total: {len(coefficients)}", "   support_vectors:"]
    lines += [f"      - {row(vector)}" for vector in arrays["support_vectors"]]
    lines += ["   decision_functions:", "      -", f"         sv_count: {len(coefficients)}"]
    lines += [f"         rho: {arrays['rho']:.9e}", f"         alpha: {row(coefficients)}"]
    lines += [f"         index: [ {', '.join(str(at) for at in range(len(coefficients)))} ]"]
    model.write_text("\n".join(lines) + "\n", encoding="ascii")
    lines = ["%YAML:1.0", "---", "range: !!opencv-matrix", "   rows: 2", "   cols: 36", "   dt: f"]
    lines += [f"   data: {row(np.concatenate([arrays['minimum'], arrays['maximum']]))}"]
    ranges.write_text("\n".join(lines) + "\n", encoding="ascii")


def brisque_package(_: Path) -> Timed:
    cv2, package = import_module("cv2"), import_module("brisque")

    cv2.setNumThreads(1)
    model = package.BRISQUE(url=False)
    return lambda pixels: float(model.score(np.broadcast_to(pixels[:, :, None], (*pixels.shape, 3))))


def brisque_package_mended(parameters: Path) -> Timed:
    timed = brisque_package(parameters)
    brisque = import_module("brisque").BRISQUE
    fit = brisque.asymmetric_generalized_gaussian_fit
    brisque.asymmetric_generalized_gaussian_fit = lambda self, x: [np.asarray(value).item() for value in fit(self, x)]
    return timed


def piq_brisque(_: Path) -> Timed:
    torch, piq = import_module("torch"), import_module("piq")
    torch.set_num_threads(1)
    return lambda pixels: float(piq.brisque(torch.from_numpy(pixels)[None, None].float(), data_range=255.0))


class StandIn(types.ModuleType):
    """A module that has every name; they mean nothing."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


def piq_mended(parameters: Path) -> Timed:
    torchvision, models = StandIn("torchvision"), StandIn("torchvision.models")
    vars(torchvision)["models"], vars(models)["inception"] = models, StandIn("torchvision.models.inception")
    sys.modules |= {"torchvision": torchvision, "torchvision.models": models}
    timed, torch = piq_brisque(parameters), import_module("torch")
    with np.load(parameters / "brisque.npz") as arrays:
        coefficients = torch.from_numpy(arrays["coefficients"][:, None]).float()
        vectors = torch.from_numpy(arrays["support_vectors"]).float()
    vars(sys.modules["piq.brisque"])["load_url"] = lambda *_, **__: (coefficients, vectors.clone())
    return timed


def pyiqa_metric(name: str) -> Callable[[Path], Timed]:
    def load(_: Path) -> Timed:
        torch, pyiqa = import_module("torch"), import_module("pyiqa")
        torch.set_num_threads(1)
        model = pyiqa.create_metric(name)
        return lambda pixels: float(model(torch.from_numpy(pixels)[None, None].float() / 255))

    return load


def scikit_image_sigma(_: Path) -> Timed:
    from skimage.restoration import estimate_sigma

    return lambda pixels: float(estimate_sigma(pixels))


def scikit_image_blur(_: Path) -> Timed:
    from skimage.measure import blur_effect

    return lambda pixels: float(blur_effect(pixels))


GREY = ("photo", "disc")
EACH = ("photo", "disc", "colour")
TORCHVISION = "an empty stand-in for torchvision, which its BRISQUE does not use, and the weights at hand"
NUMPY_AND_SCIPY = "np.int and scipy.misc.imresize put back, which NumPy 1.24 and SciPy 1.3 took away"
PROGRAMS = (
    Program(OURS, "niqe", ours("niqe"), pictures=EACH),
    Program(f"{OURS}, snap=True", "niqe", ours("niqe", snap=True), pictures=GREY),
    Program("scikit-video", "niqe", scikit_video, "scikit-video"),
    Program(
        "scikit-video, mended",
        "niqe",
        scikit_video_mended,
        "scikit-video",
        "not conformant: another model, float32",
        NUMPY_AND_SCIPY,
    ),
    Program("pyiqa", "niqe", pyiqa_metric("niqe"), "pyiqa"),
    Program(OURS, "brisque", ours("brisque"), pictures=EACH),
    Program(f"{OURS}, snap=True", "brisque", ours("brisque", snap=True), pictures=GREY),
    Program(
        "OpenCV (C++)",
        "brisque",
        opencv,
        "opencv-contrib-python-headless",
        "not conformant: other features, float32, clamped; its own model is in no wheel, so it gets the one we use",
    ),
    Program("brisque", "brisque", brisque_package, "brisque"),
    Program(
        "brisque, mended",
        "brisque",
        brisque_package_mended,
        "brisque",
        "not conformant: other features; takes RGB only, so its conversion to grey is in",
        "its fits' arrays of one element made numbers, as NumPy 2.4 wants them",
    ),
    Program("piq", "brisque", piq_brisque, "piq"),
    Program("piq, mended", "brisque", piq_mended, "piq", "float32", TORCHVISION),
    Program("pyiqa", "brisque", pyiqa_metric("brisque"), "pyiqa"),
    Program(OURS, "niqe-k", ours("niqe-k"), pictures=EACH),
    Program(f"{OURS}, snap=True", "niqe-k", ours("niqe-k", snap=True), pictures=GREY),
    Program(OURS, "bliinds", ours("bliinds"), pictures=EACH),
    Program(OURS, "biqaa", ours("biqaa"), pictures=EACH),
    Program(OURS, "sure-noise", ours("sure-noise"), pictures=EACH),
    Program(
        "scikit-image estimate_sigma",
        "sure-noise",
        scikit_image_sigma,
        "scikit-image",
        "another measure: the noise level by wavelets",
    ),
    Program(OURS, "marziliano", ours("marziliano"), pictures=EACH),
    Program(
        "scikit-image blur_effect",
        "marziliano",
        scikit_image_blur,
        "scikit-image",
        "another measure: Crete's re-blur, 0..1",
    ),
    Program(OURS, "radial-index", ours("radial-index"), pictures=EACH),
)

# ------------------------------------------------------------------------------------------------ one process


@dataclass(frozen=True)
class Result:
    """One program on one picture; what is None was not measured, and `failed` says why.

    cpu_seconds: the least of `rounds` calls. stable: whether it had stopped falling. load: of the machine over the last
    minute, when they were done. Memory in MB of 10^6 bytes.
    """

    metric: str
    program: str
    picture: str
    side: int  # pixels
    version: str | None = None
    score: float | None = None
    cpu_seconds: float | None = None
    rounds: int = 0
    stable: bool = False
    load: float | None = None
    loaded_mb: float | None = None
    peak_mb: float | None = None
    failed: str | None = None


def serve(number: int, picture: Path, parameters: Path) -> None:
    """The process of a program: loads it, warms up, and makes one timed call for each line that comes in."""
    # whatever the program prints goes to stderr
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def answer(**values: object) -> None:
        answers.write(json.dumps(values) + "\n")

    program = PROGRAMS[number]
    try:
        timed = program.load(parameters)
        pixels = np.load(picture)
        loaded = memory("VmRSS")
        score = timed(pixels)
        answer(score=score, loaded_mb=loaded, version=version(program.package) if program.package else None)
        for _ in sys.stdin:
            began = time.process_time()
            timed(pixels)
            took = time.process_time() - began
            answer(seconds=took, peak_mb=memory("VmHWM"))
    except Exception as error:  # whatever a program dies of is its result
        lines = str(error).strip().splitlines() or [""]
        answer(failed=f"{type(error).__name__}: {lines[0]}")


def memory(which: str) -> float:
    """MB that the process has now (VmRSS), or had at most (VmHWM); not getrusage, which begins with the parent's."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{which}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"no {which} in /proc/self/status: memory is measured on Linux only")


@dataclass
class Run:
    """A program's process, and what it has answered."""

    process: subprocess.Popen[str]
    result: dict[str, Any]
    seconds: list[float] = field(default_factory=list)

    def ask(self) -> None:
        """One timed call."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("again\n")
            self.process.stdin.flush()
        self.read()

    def read(self) -> None:
        line = stream(self.process).readline()
        if not line:
            self.result["failed"] = f"its process ended with {self.process.wait()}"
            return
        values = json.loads(line)
        if (seconds := values.pop("seconds", None)) is not None:
            self.seconds.append(seconds)
        self.result |= values

    def stable(self) -> bool:
        return len(self.seconds) > LEAST_ROUNDS and min(self.seconds) >= (1 - STABLE) * min(
            self.seconds[:-LEAST_ROUNDS]
        )

    def done(self) -> bool:
        return "failed" in self.result or self.stable() or sum(self.seconds) > LONGEST

    def finish(self) -> Result:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        stream(self.process).close()
        measured: dict[str, Any] = {"rounds": len(self.seconds), "stable": self.stable(), "load": os.getloadavg()[0]}
        if self.seconds and "failed" not in self.result:
            measured["cpu_seconds"] = min(self.seconds)
        return Result(**self.result, **measured)


def stream(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def take_turns(
    metric: str, name: str, side: int, *, picture: Path, parameters: Path, peers: Path | None
) -> list[Result]:
    """All programs of a metric on one picture, one call each in turn."""
    runs, missing = [], []
    for number, program in enumerate(PROGRAMS):
        if program.metric != metric or name not in program.pictures:
            continue
        said: dict[str, Any] = {"metric": metric, "program": program.name, "picture": name, "side": side}
        python = peers if program.package else Path(sys.executable)
        if python is None:
            missing.append(Result(**said, failed="not tried: no environment given with --peers"))
            continue
        command = [str(python), __file__, "--serve", str(number), str(picture), str(parameters)]
        runs.append(
            Run(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    env={**os.environ, **ONE_THREAD},
                ),
                said,
            )
        )
        runs[-1].read()
    while waiting := [run for run in runs if not run.done()]:
        for run in waiting:
            run.ask()
    return [run.finish() for run in runs] + missing


# ------------------------------------------------------------------------------------------------ the pictures


def draw(name: str, side: int) -> Pixels:
    """A picture of that side: photo, disc, (H, W); colour, (H, W, 3)."""
    from skimage import data

    tile = data.astronaut() if name == "colour" else data.camera()
    repeats = -(-side // len(tile))
    row = np.concatenate([tile[:, :: (-1) ** at] for at in range(repeats)], 1)
    whole = np.concatenate([row[:: (-1) ** at] for at in range(repeats)])[:side, :side]
    noise = np.random.default_rng(0).normal(0, 2, whole.shape)
    pixels = np.clip(np.rint(whole + noise), 0, 255).astype(np.uint8)
    if name == "disc":
        across = (np.arange(side) + 0.5) / side - 0.5
        pixels[np.add.outer(across**2, across**2) > 0.6 / math.pi] = 0
    return pixels


def write_parameters(folder: Path) -> dict[str, str]:
    """The parameters of the trained metrics, as arrays; says which they are."""
    from saqm.metrics.parameters import import_official, load_parameters

    which = {}
    for metric, official in (("niqe", "niqe"), ("brisque", "brisque"), ("bliinds", "bliinds2")):
        path = SHARED / "data" / "official_params" / official
        parameters = import_official(path) if path.is_dir() else load_parameters(f"{metric}-natural")
        arrays: dict[str, Any] = dict(parameters.arrays)
        np.savez(folder / f"{metric}.npz", **arrays)
        which[metric] = parameters.name
    return which


# ------------------------------------------------------------------------------------------------ what it says

Value = Callable[["Table"], float | None]


class Table:
    """Results by metric, program, picture and side."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.results = {(r.metric, r.program, r.picture, r.side): r for r in results}

    def seconds(self, metric: str, side: int, program: str = OURS, picture: str = "photo") -> float | None:
        found = self.results.get((metric, program, picture, side))
        return None if found is None else found.cpu_seconds

    def ratio(self, metric: str, side: int, program: str, picture: str = "photo") -> float | None:
        """A program's CPU time over ours on the same picture."""
        own, its = self.seconds(metric, side, OURS, picture), self.seconds(metric, side, program, picture)
        return None if own is None or its is None else its / own

    def peak(self, metric: str, side: int) -> float | None:
        """The most that any of ours took of a metric at that size, in MB."""
        found = [r for r in self.results.values() if (r.metric, r.side) == (metric, side)]
        peaks = [r.peak_mb for r in found if r.program.startswith(OURS)]
        known = [peak for peak in peaks if peak is not None]
        return max(known) if known and len(known) == len(peaks) else None


@dataclass(frozen=True)
class Target:
    """What was set before measuring. at_most: whether `limit` is an upper bound."""

    text: str
    limit: float
    value: Value
    at_most: bool = True

    def verdict(self, table: Table) -> str:
        found = self.value(table)
        if found is None:
            return "not measured | not measured"
        met = found <= self.limit if self.at_most else found >= self.limit
        return f"{shown(found)} | {'met' if met else '**missed**'}"


def within(metric: str, limit: float) -> Target:
    return Target(f"{metric}: at most {limit:g} CPU s at 512²", limit, lambda table: table.seconds(metric, 512))


METRICS = tuple(dict.fromkeys(program.metric for program in PROGRAMS))
TARGETS = (
    within("niqe", 0.07),
    Target(
        "niqe: at least 1.5 times as fast as scikit-video at 2048²",
        1.5,
        lambda table: table.ratio("niqe", 2048, "scikit-video, mended"),
        at_most=False,
    ),
    Target(
        "brisque: at least as fast as OpenCV's C++ at 2048²",
        1.0,
        lambda table: table.ratio("brisque", 2048, "OpenCV (C++)"),
        at_most=False,
    ),
    within("bliinds", 0.1),
    within("biqaa", 0.15),
    within("sure-noise", 1.0),
    *(within(metric, 0.02) for metric in ("brisque", "niqe-k", "marziliano", "radial-index")),
    *(
        Target(
            f"{metric}: under 1000 MB at 4096², grey and colour, Python included",
            1000.0,
            lambda table, metric=metric: table.peak(metric, 4096),  # type: ignore[misc]
        )
        for metric in METRICS
    ),
)


def shown(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(made: Mapping[str, Any]) -> str:
    """metrics.md from what stands in metrics.json."""
    results = [Result(**row) for row in made["results"]]
    table = Table(results)
    lines = [
        "# What the metrics cost",
        "",
        "Made by `make benchmark-metrics`; benchmarks/metrics.py says how. CPU s: the least of several calls on one",
        "thread. Ratio: CPU time over ours in the same run; above 1 is slower than ours. MB: peak of the process, and",
        "what of it the calls added. Not every program measures the same: see the scores and remarks.",
        "",
        *(["| target | measured | |", "| --- | ---: | --- |"]),
        *(f"| {target.text} | {target.verdict(table)} |" for target in TARGETS),
    ]
    for metric in METRICS:
        rows = [row for row in results if row.metric == metric]
        if rows:
            lines += ["", f"## {metric}", "", "| picture | program | CPU s | ratio | peak MB | added MB | score |"]
            lines += ["| --- | --- | ---: | ---: | ---: | ---: | ---: |", *(line(row, table) for row in rows), ""]
            lines += remarks(rows)
    loads = [row.load for row in results if row.load is not None] or [math.nan]
    versions = sorted({f"{row.program.partition(',')[0]} {row.version}" for row in results if row.version})
    lines += [
        "",
        f"{made['cpu']}, Python {made['python']}, NumPy {made['numpy']}, SciPy {made['scipy']}, {made['made']}. "
        f"Load of the machine {min(loads):.1f} to {max(loads):.1f} on {made['cores']} cores; what else it does slows "
        "all of them, large pictures most.",
        f"Parameters: {', '.join(made['parameters'].values())}. Others: {', '.join(versions) or 'none'}.",
    ]
    return "\n".join(lines) + "\n"


def line(row: Result, table: Table) -> str:
    place = f"{row.picture} {row.side}²"
    if row.failed:
        return f"| {place} | {row.program} | failed: {row.failed} | | | | |"
    added = None if row.peak_mb is None or row.loaded_mb is None else row.peak_mb - row.loaded_mb
    ratio = None if row.program == OURS else table.ratio(row.metric, row.side, row.program, row.picture)
    seconds = shown(row.cpu_seconds) + ("" if row.stable else " (not settled)")
    score = "" if row.score is None else f"{row.score:.4g}"
    return f"| {place} | {row.program} | {seconds} | {shown(ratio)} | {shown(row.peak_mb)} | {shown(added)} | {score} |"


def remarks(rows: Sequence[Result]) -> Iterator[str]:
    listed = {(row.metric, row.program) for row in rows}
    for program in PROGRAMS:
        if (program.metric, program.name) in listed and (program.remark or program.mend):
            said = [part for part in (program.remark, program.mend and f"mended: {program.mend}") if part]
            yield f"* {program.name}: {'; '.join(said)}."


def cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def main() -> None:
    """Measure, and write metrics.json and metrics.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", type=Path, help="the Python of the environment that has the others")
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, metavar="PIXELS")
    parser.add_argument("--only", nargs="+", default=METRICS, choices=METRICS, metavar="METRIC")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    path = options.out / "metrics.json"
    anew = {(metric, side) for metric in options.only for side in options.sides}
    kept = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else []
    results = [Result(**row) for row in kept if (row["metric"], row["side"]) not in anew]
    with tempfile.TemporaryDirectory() as folder:
        parameters = write_parameters(Path(folder))
        for side in options.sides:
            for name in EACH:
                picture = Path(folder, f"{name}.npy")
                np.save(picture, draw(name, side))
                for metric in options.only:
                    found = take_turns(
                        metric, name, side, picture=picture, parameters=Path(folder), peers=options.peers
                    )
                    results += found
                    for row in found:
                        print(line(row, Table(found)), flush=True)
    results.sort(key=lambda row: (METRICS.index(row.metric), EACH.index(row.picture), row.side))
    made = {
        "made": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "scipy": version("scipy"),
        "parameters": parameters,
        "results": [asdict(row) for row in results],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    (options.out / "metrics.md").write_text(markdown(made), encoding="utf-8")
    print(markdown(made))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()
