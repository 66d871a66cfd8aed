"""From files to a table, beside the scorer alone: `make benchmark-pipeline` (needs the study).

    python benchmarks/pipeline.py [--files 1000] [--jobs 2] [--out benchmarks/results] [--part slices|metrics|memory]

Three parts, each a block of pipeline.json for each kind of processor; all of them without --part.

slices: the slices of the reader study, linked under as many names as asked for, are scored by `saqm score --out`, a
process of its own, whose memory (with its workers') is looked at all along; once more with SIGKILL half way and
`--resume`. Beside it, the scorer alone: as many processes, each with slices that it has read before.
metrics: the same slices by metrics, which are processor time and nothing else: `saqm score --jobs` beside one process
that reads and scores, times the cores.
memory: 100 to 100,000 small pictures by the quickest metric: what grows with the number of files, if anything does.
Ratios, each of one run.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from evidence import fill
from PIL import Image as pillow
from provenance import RESULTS, ROOT, commit, processor

from saqm.batch import journal_path

METRICS = ("niqe", "brisque")
MANY = (100, 1_000, 10_000, 100_000)
SMALL, QUICKEST = 64, "marziliano"  # pixels a side of the many pictures, and what they are scored by
HELD = 60  # slices that a process of the scorer alone has in memory
LOOK = 0.25  # seconds between looks at the memory


def alone(paths: list[str], calls: int, ready: Any, go: Any) -> None:
    """A process that scores what it has read: `calls` times in all, from the moment `go` is set."""
    from saqm.image import read_image
    from saqm.scorer import load_scorer, score

    scorer = load_scorer(threads=1)
    images = [read_image(path) for path in paths]
    score(images[0], scorer)
    ready.release()
    go.wait()
    for number in range(calls):
        score(images[number % len(images)], scorer)


def scorer_rate(paths: list[str], jobs: int, calls: int) -> float:
    """Images a second of `jobs` processes that only score."""
    spawn = multiprocessing.get_context("spawn")
    ready, go = spawn.Semaphore(0), spawn.Event()
    each = calls // jobs
    workers = [spawn.Process(target=alone, args=(paths[n::jobs][:HELD], each, ready, go)) for n in range(jobs)]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.acquire()
    began = time.perf_counter()
    go.set()
    for worker in workers:
        worker.join()
    return each * jobs / (time.perf_counter() - began)


def reader(paths: list[str], model: str) -> float:
    """Images a second of one process that reads and scores, its start not counted."""
    from saqm.batch import Settings, score_many

    rows = score_many([paths[0], *paths], Settings(model=model))
    next(rows)
    began = time.perf_counter()
    scored = sum(1 for _ in rows)
    return scored / (time.perf_counter() - began)


def command(folder: Path, out: Path, jobs: int, *more: str) -> list[str]:
    return [sys.executable, "-m", "saqm.cli", "score", str(folder), "--out", str(out), "--jobs", str(jobs), *more]


def run(folder: Path, out: Path, jobs: int, *more: str) -> tuple[float, list[float]]:
    """Seconds of `saqm score`, and the memory of it and its workers in MB, look by look."""
    began, seen = time.perf_counter(), []
    with subprocess.Popen(command(folder, out, jobs, *more), stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            seen.append(memory(process.pid))
            time.sleep(LOOK)
    return time.perf_counter() - began, seen


def memory(pid: int) -> float:
    """Resident MB of a process and its children; pages that they share count once a process."""
    total = 0.0
    for one in (pid, *children(pid)):
        try:
            status = Path(f"/proc/{one}/status").read_text(encoding="ascii")
        except OSError:
            continue
        total += sum(int(line.split()[1]) / 1000 for line in status.splitlines() if line.startswith("VmRSS"))
    return total


def children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []


def killed_and_resumed(folder: Path, out: Path, jobs: int, files: int) -> dict[str, Any]:
    """SIGKILL once half of the files stand in the journal, then --resume; what was scored twice."""
    journal = journal_path(out)
    with subprocess.Popen(command(folder, out, jobs), stderr=subprocess.DEVNULL, start_new_session=True) as process:
        while process.poll() is None and (not journal.exists() or lines(journal) < files // 2):
            time.sleep(LOOK)
        os.killpg(process.pid, signal.SIGKILL)
    kept = lines(journal) - 1  # its first line is the header
    done = subprocess.run([*command(folder, out, jobs, "--resume")], capture_output=True, text=True, check=True)
    said = done.stderr.strip().splitlines()[-1]
    return {"kept": kept, "rows": len(rows(out)), "said": said.removesuffix(f": {out}")}


def lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def slices(found: list[Path], files: int, jobs: int) -> dict[str, Any]:
    """Files to a table by the default model, beside the scorer alone; killed half way and resumed."""
    with tempfile.TemporaryDirectory() as name:
        folder = linked(found, files, Path(name) / "slices")
        own = scorer_rate([str(path) for path in found], jobs, files)
        seconds, seen = run(folder, Path(name) / "scores.csv", jobs)
        resumed = killed_and_resumed(folder, Path(name) / "again.csv", jobs, files)
        same = rows(Path(name) / "scores.csv") == rows(Path(name) / "again.csv")
    tenth = len(seen) // 10
    return {
        "scorer_alone_images_second": own,
        "end_to_end_images_second": files / seconds,
        "share": files / seconds / own,
        "memory_mb": {
            "after a tenth": max(seen[tenth : 2 * tenth], default=0.0), "last tenth": max(seen[-tenth:], default=0.0)
        },
        "killed_half_way": {**resumed, "same_rows_as_a_straight_run": same},
    }  # fmt: skip


def metrics(found: list[Path], files: int, jobs: int) -> dict[str, Any]:
    """Each metric's share of the rate that one process would have on as many cores."""
    made = {}
    with tempfile.TemporaryDirectory() as name:
        folder = linked(found, files, Path(name) / "slices")
        for metric in METRICS:
            own = reader([str(path) for path in found], metric)
            seconds, _ = run(folder, Path(name) / f"{metric}.csv", jobs, "--model", metric)
            made[metric] = {
                "one_process_images_second": own,
                "end_to_end_images_second": files / seconds,
                "share_of_cores": files / seconds / (own * jobs),
            }
    return made


def growing(jobs: int) -> list[dict[str, Any]]:
    """The largest memory of the calling process and its workers, by number of files."""
    made = []
    with tempfile.TemporaryDirectory() as name:
        found = [Path(name) / f"{number}.png" for number in range(100)]
        for number, path in enumerate(found):
            noise = np.random.default_rng(number).integers(0, 256, (SMALL, SMALL), np.uint8)
            pillow.fromarray(noise).save(path)
        for files in MANY:
            folder = linked(found, files, Path(name) / f"many-{files}")
            out = Path(name) / f"{files}.csv"
            seconds, seen = run(folder, out, jobs, "--model", QUICKEST)
            made.append({"files": files, "rows": len(rows(out)), "seconds": seconds, "memory_mb": max(seen)})
            print(made[-1], flush=True)
    return made


def linked(found: list[Path], files: int, folder: Path) -> Path:
    """A folder with as many names, in turns for the same pictures."""
    folder.mkdir()
    for number in range(files):
        (folder / f"{number:06d}.png").symlink_to(found[number % len(found)])
    return folder


def markdown(record: dict[str, Any]) -> str:
    """What was found, block by block."""
    lines = []
    for key, block in record["parts"].items():
        name, made = key.partition(" on ")[0], block["made"]
        if name == "slices":
            lines += [
                "| files to a table | images/s | beside |",
                "| --- | ---: | --- |",
                f"| {block['files']} slices, saqm-ct | {made['end_to_end_images_second']:.2f} | {made['share']:.2f} of "
                f"the scorer alone ({made['scorer_alone_images_second']:.2f}) |",
            ]
            kept, killed = made["memory_mb"], made["killed_half_way"]
            said = (
                f"Memory after a tenth {kept['after a tenth']:.0f} MB, in the last tenth {kept['last tenth']:.0f} MB. "
                f"Killed with {killed['kept']} files in the journal and resumed: {killed['rows']} rows, "
                f"{'the same as' if killed['same_rows_as_a_straight_run'] else 'OTHERS THAN'} those of a straight run."
            )
        elif name == "metrics":
            lines += ["| metric | images/s | of one process, times the cores |", "| --- | ---: | ---: |"]
            lines += [
                f"| {metric} | {one['end_to_end_images_second']:.1f} | {one['share_of_cores']:.2f} |"
                for metric, one in made.items()
            ]
            said = f"{block['files']} slices, {block['jobs']} processes; start-up counted."
        else:
            lines += ["| files | rows | s | MB, all processes |", "| ---: | ---: | ---: | ---: |"]
            lines += [f"| {o['files']:,} | {o['rows']:,} | {o['seconds']:.0f} | {o['memory_mb']:.0f} |" for o in made]
            said = f"Pictures of {SMALL}x{SMALL} pixels by {QUICKEST}, {block['jobs']} processes."
        lines += ["", f"{said} {block['machine']}, commit {block['commit'][:10]}, {block['made_at'][:10]}.", ""]
    return "\n".join(lines)


def main() -> None:
    """Measure what is asked for, and write it beside what was measured before."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--part", choices=("slices", "metrics", "memory"), action="append")
    options = parser.parse_args()
    shared = Path(os.environ.get("SAQM_SHARED", ROOT.parent / "shared")).resolve()
    found = sorted((shared / "data" / "ct_reader_study" / "images").glob("*.png"))
    parts = {
        "slices": lambda: slices(found, options.files, options.jobs),
        "metrics": lambda: metrics(found, options.files, options.jobs),
        "memory": lambda: growing(options.jobs),
    }
    path = options.out / "pipeline.json"
    record: dict[str, Any] = {"command": "make benchmark-pipeline", "parts": {}}
    if path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
    for name in options.part or parts:
        block = {
            "commit": commit(),
            "machine": f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            "made_at": datetime.now(UTC).isoformat(timespec="minutes"),
            "files": options.files,
            "jobs": options.jobs,
        }
        record["parts"][f"{name} on {processor()}"] = {**block, "made": parts[name]()}
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (options.out / "pipeline.md").write_text(markdown(record), encoding="utf-8")
    if options.out == RESULTS:
        fill(ROOT / "docs" / "scale.md", "pipeline", markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
