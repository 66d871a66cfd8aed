"""Kernels below 32 bits are tried in a child process before they run in ours, and the verdict is remembered.

Some virtual machines list AMX and then kill the process (SIGILL) at the first tile instruction. No flag tells; only a
trial does. A verdict holds for one machine, kernel, interpreter, library version and script; it lies in the platform's
cache folder. Where that cannot be written, the trial is made again by each process.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from saqm.errors import OutputError
from saqm.writing import replacing

CAP = "ONEDNN_MAX_CPU_ISA"  # what oneDNN reads, once, when its first kernel is made
BELOW_AMX = "AVX512_CORE_BF16"  # https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html
BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # as Linux lists them, the last on Arm
PATIENCE = 120.0  # seconds; a trial takes about one
ILLEGAL = (
    -signal.SIGILL,
    128 + signal.SIGILL,
    0xC000001D,
)  # as Python, a shell and Windows tell an illegal instruction

# The child finds what its parent finds, and leaves no core file where it dies.
_BEFORE = """
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError, OSError):
    pass
"""


class _Verdict(NamedTuple):
    """cap: under which limit of the instruction set it runs ("": none needed; None: under none). ended: how it died."""

    cap: str | None
    ended: str = ""


def refusal(script: str, *arguments: str, package: str, about: str = "") -> str | None:
    """Why a Python script must not be run in this process; None where it may, for a child came through it.

    `package` is whose kernels are tried: its version belongs to the verdict, and it is not imported here. `about` is
    what else the verdict is for (the hash of a file among the arguments). Where the child comes through only with the
    instruction set capped, so is this process if the package is not loaded yet; if it is, the cap would come too late.
    """
    verdict = _remembered(script, arguments, package, about)
    if verdict.cap == "":
        return None
    if verdict.cap is None:
        return verdict.ended
    if package in sys.modules:
        return f"{verdict.ended}; it runs where {CAP}={verdict.cap} is set before Python starts"
    os.environ[CAP] = verdict.cap
    return None


def computes_bf16() -> bool | None:
    """Whether the processor lists instructions for bfloat16; None where the system does not say what it lists.

    Without them its kernels come through a trial and are of no use: torch emulates them, eight times slower than in 32
    bits, and OpenVINO computes in 32 bits without a word.
    """
    listed = " ".join(_machine()[-2:]).split()
    return any(name in listed for name in BF16) if listed else None


def cache_folder() -> Path:
    """Where the platform keeps what a program can make again."""
    if sys.platform == "win32":
        kept = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        kept = Path.home() / "Library" / "Caches"
    else:
        kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return kept / "saqm" / "trials"


def _remembered(script: str, arguments: tuple[str, ...], package: str, about: str) -> _Verdict:
    facts = [*_machine(), package, _version(package), about, os.environ.get(CAP, ""), script]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32] + ".json"
    if (kept := _kept(name)) is not None:
        return kept
    verdict, lasting = _tried(script, arguments)
    if lasting:
        with suppress(OSError, RuntimeError, OutputError):
            folder = cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / name) as beside:
                beside.write_text(json.dumps({"verdict": verdict._asdict(), "of": facts}, indent=1), encoding="utf-8")
    return verdict


def _kept(name: str) -> _Verdict | None:
    with suppress(OSError, RuntimeError, ValueError, TypeError, LookupError):  # no file, no home, or a damaged one
        verdict = _Verdict(**json.loads((cache_folder() / name).read_text(encoding="utf-8"))["verdict"])
        if verdict.cap in ("", None, BELOW_AMX):
            return verdict
    return None


def _tried(script: str, arguments: tuple[str, ...]) -> tuple[_Verdict, bool]:
    """The verdict, and whether it will be the same tomorrow: lack of memory or time may not."""
    code, ended = _child(script, arguments, {})
    if code == 0:
        return _Verdict(""), True
    if code not in ILLEGAL:
        return _Verdict(None, ended), False
    capped, _ = _child(script, arguments, {CAP: BELOW_AMX})
    return _Verdict(BELOW_AMX if capped == 0 else None, ended), True


def _child(script: str, arguments: tuple[str, ...], more: dict[str, str]) -> tuple[int | None, str]:
    """Exit status (None: it did not end) and how it ended, in words."""
    command = [sys.executable or "python", "-c", _BEFORE + script, json.dumps(sys.path), *arguments]
    try:
        child = subprocess.run(
            command, env={**os.environ, **more}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=PATIENCE, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, f"a trial of it took longer than {PATIENCE:g} s"
    except OSError as error:
        return None, f"a trial of it could not be started: {error.strerror or error}"
    if child.returncode in ILLEGAL:
        return child.returncode, "a trial of it died of an illegal instruction"
    said = child.stderr.strip().splitlines()
    return child.returncode, f"a trial of it failed: {said[-1] if said else f'exit status {child.returncode}'}"


def _machine() -> tuple[str, ...]:
    """What tells this processor, kernel and interpreter from others."""
    lines: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    told = [next((line for line in lines if line.startswith(what)), "") for what in ("model name", "flags", "Features")]
    return (platform.machine(), platform.processor(), platform.release(), sys.executable, *told)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
