"""From files to a table, beside the scorer alone: `make benchmark-pipeline` (needs the study).

    python benchmarks/pipeline.py [--files 1000] [--jobs 2] [--out benchmarks/results]

The slices of the reader study, linked under as many names as asked for, are scored by `saqm score --out`, a process of
its own, whose memory (with its workers') is looked at all along; once more with SIGKILL half way and `--resume`. Beside
it, the scorer alone: as many processes, each with slices that it has read before. Ratios, in one run.
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

from provenance import RESULTS, ROOT, commit, processor

from saqm.batch import journal_path

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


def command(folder: Path, out: Path, jobs: int, *more: str) -> list[str]:
    return [sys.executable, "-m", "saqm.cli", "score", str(folder), "--out", str(out), "--jobs", str(jobs), *more]


def run(folder: Path, out: Path, jobs: int) -> tuple[float, list[float]]:
    """Seconds of `saqm score`, and the memory of it and its workers in MB, look by look."""
    began, seen = time.perf_counter(), []
    with subprocess.Popen(command(folder, out, jobs), stderr=subprocess.DEVNULL) as process:
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
    return {"kept": kept, "rows": len(rows(out)), "said": done.stderr.strip().splitlines()[-1]}


def lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Measure, and write pipeline.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    shared = Path(os.environ.get("SAQM_SHARED", ROOT.parent / "shared")).resolve()
    found = sorted((shared / "data" / "ct_reader_study" / "images").glob("*.png"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "slices"
        folder.mkdir()
        for number in range(options.files):
            (folder / f"{number:06d}.png").symlink_to(found[number % len(found)])
        own = scorer_rate([str(path) for path in found], options.jobs, options.files)
        seconds, seen = run(folder, Path(name) / "scores.csv", options.jobs)
        resumed = killed_and_resumed(folder, Path(name) / "again.csv", options.jobs, options.files)
        same = rows(Path(name) / "scores.csv") == rows(Path(name) / "again.csv")
    tenth = len(seen) // 10
    record = {
        "command": "make benchmark-pipeline",
        "commit": commit(),
        "machine": f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "made": datetime.now(UTC).isoformat(timespec="minutes"),
        "files": options.files,
        "jobs": options.jobs,
        "scorer_alone_images_second": own,
        "end_to_end_images_second": options.files / seconds,
        "share": options.files / seconds / own,
        "memory_mb": {
            "after a tenth": max(seen[tenth : 2 * tenth], default=0.0), "last tenth": max(seen[-tenth:], default=0.0)
        },
        "killed_half_way": {**resumed, "same_rows_as_a_straight_run": same},
    }  # fmt: skip
    (options.out / "pipeline.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
