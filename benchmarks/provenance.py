"""Where results go, and what stands beside each: commit and machine."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


# The widest of these that a processor lists decides how fast it is, most of all in 8 bits.
UNITS = {"amx_int8": "AMX", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI", "avx512f": "AVX-512", "avx2": "AVX2"}


def processor() -> str:
    """Its name, and the widest vector unit that it lists."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    listed = said.get("flags", "").split()
    unit = next((words for flag, words in UNITS.items() if flag in listed), None)
    name = said.get("model name") or platform.processor() or platform.machine()
    return name if unit is None else f"{name} ({unit})"
