"""The one training loop: any task that gives a loss for a step is taught here, alone, on a GPU, or under torchrun.

A step's randomness comes from (seed, step) alone, so a run that is resumed continues bit for bit. Under torchrun the
processes share the windows of each step (`saqm.together`): the run is the same but for rounding, however many they are.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from saqm.engine_trial import computes_bf16, refusal
from saqm.errors import MissingExtra, TrainingError
from saqm.together import normalised_together

EXPLODED = (
    100.0  # times the median feature norm of the first steps: method note 5, features of a diverging run grow 1e5-fold
)
WARM_UP_STEPS = 20  # steps whose median norm is the measure
LARGEST_NORM_OF_A_SOUND_START = 1e6

# What was done before these fields were there, in LoopConfig, PretrainConfig and recipes; see `described`
YOUNGER: Mapping[str, Any] = {
    "momentum": 0.9, "standardise": "shared", "transductive": False, "labelled": 1.0, "attention": True,
}  # fmt: skip
GONE = ("devices",)  # was in LoopConfig: under torchrun the number of processes decides nothing but the time

Precision = Literal["auto", "32", "bf16"]


@dataclass(frozen=True)
class LoopConfig:
    """How a task is taught.

    schedule: "constant" (paper) or "one-cycle" (up over the first 30 % of the steps, then down, both as cosines).
    clip_norm: largest gradient norm of each group of parameters, None for no clipping (paper).
    precision: "bf16" runs only where a trial in a child process survives it; "auto" falls back to "32" and logs that.
    checkpoint_every: steps between checkpoints.
    momentum: Adam's beta 1; 0.5 is usual where networks are taught against each other.
    """

    learning_rate: float
    optimiser: Literal["adam", "adamw"] = "adam"
    weight_decay: float = 0.0
    schedule: Literal["constant", "one-cycle"] = "constant"
    clip_norm: float | None = None
    precision: Precision = "32"
    accelerator: Literal["cpu", "cuda"] = "cpu"
    checkpoint_every: int = 200
    momentum: float = 0.9


class Step(NamedTuple):
    """What a task gives for one step: the loss, the (B, D) features that the guards watch, and numbers to log."""

    loss: Tensor
    features: Tensor
    logs: Mapping[str, float]


class Group(NamedTuple):
    """Parameters that are taught at `pace` times the learning rate, and clipped together."""

    parameters: list[nn.Parameter]
    pace: float = 1.0


class Task(Protocol):
    """Something to teach. `module` holds all that is trained and saved; `loss` may use no randomness but `rng`."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def steps(self) -> int: ...

    def parameters(self) -> list[Group]: ...

    def loss(self, step: int, rng: np.random.Generator) -> Step: ...


Log = list[dict[str, float]]


class _Taught(nn.Module):
    """A task as the module that Fabric wraps, so that precision and many devices reach every call."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.module = task, task.module

    def forward(self, number: int, rng: np.random.Generator) -> Step:
        return self.task.loss(number, rng)


def fit(
    task: Task,
    config: LoopConfig,
    *,
    seed: int,
    folder: Path | None = None,
    on_step: Callable[[int, int, Mapping[str, float]], None] | None = None,
    also: Mapping[str, Any] | None = None,
) -> Log:
    """Teach a task; returns the log, one entry a step.

    With `folder`, checkpoint.safetensors and log.jsonl are kept there, and a run found there is continued where it
    stopped; a checkpoint of another configuration is refused, `also` (what else marks the run) included.
    `on_step(step, steps, logs)` is called after each step.
    Raises TrainingError on a loss that is not finite and on exploding features, with what to change.
    """
    if task.steps < 1:
        raise TrainingError(f"{task.steps} steps teach nothing; raise the recipe's epochs or steps")
    fabric = _fabric(config)
    torch.manual_seed(seed)
    groups = task.parameters()
    parameters = [parameter for group in groups for parameter in group.parameters]
    kind = torch.optim.AdamW if config.optimiser == "adamw" else torch.optim.Adam
    optimiser: Any = kind(
        [{"params": group.parameters} for group in groups],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=(config.momentum, 0.999),
    )
    taught, optimiser = fabric.setup(_Taught(task), optimiser)
    asked = {**described(config), "devices": 1, "seed": seed, "steps": task.steps}  # "devices" was once a choice
    fingerprint = json.dumps({**asked, **(also or {})}, sort_keys=True)
    log: Log = []
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        log = _resume(folder, task, optimiser, parameters, fingerprint)
        fabric.barrier()  # all have read before one writes
        if log and fabric.is_global_zero:
            _cut_journal(folder, len(log))
    started = len(log)
    norms: list[float] = [entry["feature_norm"] for entry in log[:WARM_UP_STEPS]]
    journal = None
    if folder is not None and fabric.is_global_zero:  # of many processes, one keeps the run
        journal = (folder / "log.jsonl").open("a" if started else "w", encoding="utf-8")
    try:
        for number in range(started, task.steps):
            began = time.perf_counter()
            rate = config.learning_rate * _factor(config.schedule, number, task.steps)
            for options, group in zip(optimiser.param_groups, groups, strict=True):
                options["lr"] = rate * group.pace
            with normalised_together(task.module):
                step = taught(number, np.random.default_rng([seed, number, 0]))  # 0: what one process alone drew with
            loss, norm = float(step.loss.detach()), float(step.features.detach().float().norm(dim=-1).mean())
            _guard(number, loss, norm, norms)
            optimiser.zero_grad()
            fabric.backward(step.loss)
            if config.clip_norm is not None:
                for group in groups:
                    nn.utils.clip_grad_norm_(group.parameters, config.clip_norm)
            optimiser.step()
            dead = float((step.features.detach() <= 0).all(0).float().mean())
            entry = {"step": number, "loss": loss, "feature_norm": norm, "dead_units": dead, "learning_rate": rate}
            entry |= step.logs
            log.append(entry)
            if journal is not None:
                journal.write(json.dumps({**entry, "seconds": round(time.perf_counter() - began, 4)}) + "\n")
            due = (number + 1) % config.checkpoint_every == 0 or number + 1 == task.steps
            if folder is not None and journal is not None and due:
                journal.flush()
                _save(folder, task, optimiser, fingerprint, number + 1)
            if on_step is not None:
                on_step(number + 1, task.steps, entry)
    finally:
        if journal is not None:
            journal.close()
        task.module.to("cpu")  # scoring and writing are done there
    return log


def described(configuration: Any) -> dict[str, Any]:
    """A configuration as a run's folder keeps it, so that a run from before a field was there can go on.

    The YOUNGER fields are left out where they say what was always done, and an alignment where nothing is aligned.
    """
    return cast("dict[str, Any]", _without_unchanged(asdict(configuration)))


def without_gone(value: Any) -> Any:
    """What an earlier version kept in a run's folder, less the fields that there are no more."""
    if isinstance(value, dict):
        return {name: without_gone(inner) for name, inner in value.items() if name not in GONE}
    return [without_gone(inner) for inner in value] if isinstance(value, list) else value


def _without_unchanged(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    unread = {name for name in YOUNGER if name in value and value[name] == YOUNGER[name]}
    unread |= {"alignment"} if value.get("aligned") is False else set()
    return {name: _without_unchanged(inner) for name, inner in value.items() if name not in unread}


@cache
def bf16_pays() -> bool:
    """Whether to teach in bfloat16 here: the processor has instructions for it, and does not die of them (SIGILL).

    The latter is tried in a child process. Where the system does not say what the processor has, the trial decides.
    """
    if computes_bf16() is False:
        return False
    trial = (
        "import torch;"
        "m = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.Flatten(), torch.nn.Linear(32 * 900, 64));"
        "c = torch.autocast('cpu', torch.bfloat16); c.__enter__();"
        "m(torch.randn(8, 3, 32, 32)).float().sum().backward()"
    )
    return refusal(trial, package="torch") is None


def save_curve(log: Log, path: Path, *, keys: tuple[str, ...] = ("loss",), smooth: int = 25) -> None:
    """Learning curves as a PNG: each key over the steps, with a running mean of `smooth` steps."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot", "a learning-curve picture") from error
    figure = Figure(figsize=(7, 2.6 * len(keys)), layout="constrained")
    FigureCanvasAgg(figure)
    for row, key in enumerate(keys):
        axes = figure.add_subplot(len(keys), 1, row + 1)
        steps = [entry["step"] for entry in log if key in entry]
        values = np.array([entry[key] for entry in log if key in entry])
        axes.plot(steps, values, color="0.8", linewidth=0.8)
        window = min(smooth, len(values))
        if window > 1:
            running = np.convolve(values, np.ones(window) / window, mode="valid")
            axes.plot(steps[window - 1 :], running, color="#1b6ca8", linewidth=1.6)
        axes.set_ylabel(key)
    axes.set_xlabel("step")
    figure.savefig(path, dpi=110)


def _cut_journal(folder: Path, steps: int) -> None:
    """Take from the log what came after the checkpoint."""
    journal = folder / "log.jsonl"
    lines = journal.read_text(encoding="utf-8").splitlines()[:steps]
    journal.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _fabric(config: LoopConfig) -> Any:
    """Fabric as the configuration wants it; under torchrun with its processes, one a device."""
    try:
        from lightning.fabric import Fabric
        from lightning.fabric.plugins.environments import TorchElasticEnvironment
    except ImportError as error:
        raise MissingExtra("lightning", "train", "training") from error
    precision = config.precision
    if config.accelerator == "cuda" and not torch.cuda.is_available():
        raise TrainingError("accelerator='cuda' was asked for and there is none here; use accelerator='cpu'")
    if config.accelerator == "cpu" and precision != "32" and not bf16_pays():
        if precision == "bf16":
            raise TrainingError(
                "precision='bf16': this processor has no instructions for it, or a trial of them failed; use "
                "precision='32'"
            )
        precision = "32"
    name = "32-true" if precision == "32" else "bf16-mixed"
    for package in ("fabric", "pytorch"):  # they announce the precision on stderr
        logging.getLogger(f"lightning.{package}.utilities.rank_zero").setLevel(logging.WARNING)
    spread: dict[str, Any] = {"devices": 1}
    if TorchElasticEnvironment.detect() and (all_processes := TorchElasticEnvironment().world_size()) > 1:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        # parameters may stay unused in a step: no maker is known, no ladder drawn
        spread = {"devices": here, "num_nodes": all_processes // here, "strategy": "ddp_find_unused_parameters_true"}
    fabric = Fabric(accelerator=config.accelerator, precision=name, **spread)
    try:
        fabric.launch()
    except RuntimeError as error:
        # pytorch issue 135712: torchrun's store still has the addresses of the processes before the restart
        raise TrainingError(
            f"the processes of torchrun do not reach each other ({str(error).splitlines()[0]}); if that is after a "
            "restart, set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun"
        ) from error
    return fabric


def _factor(schedule: str, step: int, steps: int) -> float:
    """Share of the learning rate at a step."""
    if schedule == "constant":
        return 1.0
    rise = max(1, round(0.3 * steps))
    if step < rise:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * step / rise)) / 2
    return max(1e-4, (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2)


def _guard(step: int, loss: float, norm: float, norms: list[float]) -> None:
    """Stop a run that has blown up, at the step where it did. `norms` gathers the first feature norms."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"step {step}: the loss is {loss}; lower the learning rate, set clip_norm, or use norm='batch'"
        )
    if len(norms) < WARM_UP_STEPS:
        norms.append(norm)
    usual = float(np.median(norms))
    if norm > max(EXPLODED * usual, LARGEST_NORM_OF_A_SOUND_START if step == 0 else 0):
        times = norm / usual if usual else math.inf
        raise TrainingError(
            f"step {step}: features explode (mean norm {norm:.3g}, {times:.0f} times that of the first steps); "
            "lower the learning rate, set clip_norm, or use norm='batch'"
        )


def _save(folder: Path, task: Task, optimiser: Any, mark: str, steps: int) -> None:
    """Weights and optimiser state in one safetensors file, written beside and renamed."""
    parameters = [parameter for group in task.parameters() for parameter in group.parameters]
    tensors = {f"module.{name}": value for name, value in task.module.state_dict().items()}
    for index, parameter in enumerate(parameters):
        for name, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser.{index}.{name}"] = value
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    beside = folder / "checkpoint.safetensors.part"
    safetensors.torch.save_file(tensors, beside, metadata={"configuration": mark, "steps": str(steps)})
    beside.replace(folder / "checkpoint.safetensors")


def _resume(folder: Path, task: Task, optimiser: Any, parameters: list[nn.Parameter], mark: str) -> Log:
    """Put the run found in `folder` back in place; the log up to its checkpoint, empty for a new run."""
    path = folder / "checkpoint.safetensors"
    if not path.is_file():
        return []
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    except safetensors.SafetensorError as error:
        raise TrainingError(f"{path}: is no whole checkpoint ({error}); remove it to start anew") from error
    if metadata.get("configuration") != mark:
        raise TrainingError(f"{path} is of a run with another configuration; choose an empty folder or remove it")
    state = {name.removeprefix("module."): value for name, value in tensors.items() if name.startswith("module.")}
    steps, journal = int(metadata["steps"]), folder / "log.jsonl"
    lines = journal.read_text(encoding="utf-8").splitlines()[:steps] if journal.is_file() else []
    if len(lines) < steps:
        raise TrainingError(
            f"{journal} has {len(lines)} of the {steps} steps of {path.name}; remove both to start anew"
        )
    try:
        task.module.load_state_dict(state)
    except RuntimeError as error:
        raise TrainingError(f"{path} is of a run with another network; choose an empty folder or remove it") from error
    for index, parameter in enumerate(parameters):
        prefix = f"optimiser.{index}."
        found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if found:
            optimiser.state[parameter] = {
                name: value if name == "step" else value.to(parameter.device) for name, value in found.items()
            }
    log = [json.loads(line) for line in lines]
    for entry in log:
        entry.pop("seconds", None)
    return log
