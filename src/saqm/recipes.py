"""Recipes: which labels are read, which network, how it is taught. Rows of a table; TOML files change a row."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from saqm.errors import TrainingError
from saqm.loop import LoopConfig
from saqm.network import Architecture
from saqm.patches import Preparation

Side = Literal["source", "target"]


@dataclass(frozen=True)
class Teaching:
    """How opinion scores are taught.

    loss: "bce" on the scores as soft labels (paper), or "smooth-l1".
    level: the loss is taken on each window, which gets its image's score (paper), or on the image's mean.
    order: weight of a loss on pairs of images of one domain, which should be in the order of their scores.
    ladders: weight of a loss on degraded copies of the reference images, which should be in the order of their making.
    trains: "all", or "heads" on frozen towers, whose features are computed once.
    features: precision in which frozen towers are run for that; "bf16" where a trial of it survives, which is faster.
    """

    loss: Literal["bce", "smooth-l1"]
    level: Literal["window", "image"]
    order: float
    ladders: float
    trains: Literal["all", "heads"]
    features: Literal["32", "bf16"]
    epochs: int
    images_per_step: int
    windows_per_image: int
    loop: LoopConfig


@dataclass(frozen=True)
class Recipe:
    """One configuration. `aligned` is the place of domain adaptation: its loss joins this loop when it is on."""

    name: str
    scored_on: tuple[Side, ...]  # domains whose opinion scores may be read
    aligned: bool
    architecture: Architecture
    preparation: Preparation
    teaching: Teaching


# Table 1 and section 3 of the paper: Adam 5e-4, BCE, no schedule, 100 epochs; what it leaves open is in docs/paper.md
PAPER = Recipe(
    name="paper",
    scored_on=("target",),
    aligned=False,
    architecture=Architecture(),
    preparation=Preparation(channels="rgb", mean=(0.45,) * 3, sd=(0.25,) * 3, min_coverage=0.5),
    teaching=Teaching(
        loss="bce", level="window", order=0.0, ladders=0.0, trains="all", features="32",
        epochs=100, images_per_step=16, windows_per_image=4, loop=LoopConfig(learning_rate=5e-4),
    ),
)  # fmt: skip

# The network that ships: narrow, one trunk, and taught in two stages (docs/method.md)
SLIM = Architecture(
    width=3 / 16, trunks="shared", norm="batch", pool="mean-max", hidden=(64, 64), members=3, weighted=True
)
TARGET_ONLY = Recipe(
    name="target-only",
    scored_on=("target",),
    aligned=False,
    architecture=SLIM,
    preparation=Preparation(),
    teaching=Teaching(
        loss="smooth-l1", level="image", order=1.0, ladders=0.3, trains="heads", features="bf16",
        epochs=60, images_per_step=32, windows_per_image=96,
        loop=LoopConfig(learning_rate=3e-3, optimiser="adamw", weight_decay=1e-2, schedule="one-cycle"),
    ),
)  # fmt: skip

RECIPES: Mapping[str, Recipe] = {
    "paper": PAPER,
    "target-only": TARGET_ONLY,
    "source-only": replace(TARGET_ONLY, name="source-only", scored_on=("source",)),
    "pooled": replace(TARGET_ONLY, name="pooled", scored_on=("source", "target")),
}


def read_recipe(name_or_file: str | Path) -> Recipe:
    """A recipe of the table, or one of them changed by a TOML file: `base = "paper"` and the fields that differ.

    Raises TrainingError for an unknown name or field, with the nearest known one.
    """
    text = str(name_or_file)
    if text in RECIPES:
        return RECIPES[text]
    path = Path(text)
    if path.suffix != ".toml":
        raise TrainingError(f"no recipe {text!r}; known are {', '.join(RECIPES)}, or give a .toml file")
    try:
        changes = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: cannot be read as a recipe: {error}") from error
    base = changes.pop("base", None)
    if not isinstance(base, str) or base not in RECIPES:
        raise TrainingError(f"{path}: base is {base!r}; write base = one of {', '.join(RECIPES)}")
    changed: Recipe = changed_by(RECIPES[base], {"name": path.stem, **changes}, str(path))
    return changed


def changed_by(base: Any, changes: Mapping[str, Any], where: str) -> Any:
    """A frozen dataclass with some fields changed, nested tables into nested dataclasses. Raises TrainingError."""
    known = {f.name: getattr(base, f.name) for f in fields(base)}
    kinds = get_type_hints(type(base))
    new: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
            raise TrainingError(f"{where}: unknown field {name!r}{hint}")
        old = known[name]
        if is_dataclass(old):
            if not isinstance(value, Mapping):
                raise TrainingError(f"{where}: {name} is a table, not {value!r}")
            new[name] = changed_by(old, value, f"{where}: {name}")
            continue
        new[name] = tuple(value) if isinstance(value, list) else value
        if not _fits(new[name], kinds[name]):
            raise TrainingError(f"{where}: {name} is {value!r}; wanted {_in_words(kinds[name])}, such as {old!r}")
    return replace(base, **new)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value of TOML is of a field's type; an integer does for a float."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = (inner[0],) * len(value) if inner[-1] is Ellipsis else inner
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if origin is UnionType:
        return any(_fits(value, one) for one in inner)
    return type(value) is kind or (kind is float and type(value) is int)


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")
