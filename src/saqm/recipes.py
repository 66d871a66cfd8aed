"""Recipes: which labels are read, which network, how it is taught. Rows of a table; TOML files change a row."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from saqm.adaptation import ALIGNMENTS, Alignment
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
    standardise: frozen features by one "shared" mean and sd, those of the scored images; or "by-domain", each side by
        those of its own images, scored or not. A model file gets the target's, for the target is what it serves.
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
    standardise: Literal["shared", "by-domain"] = "shared"


@dataclass(frozen=True)
class Recipe:
    """One configuration.

    scored_on: the sides whose opinion scores may be read; of the other, no code path sees one (`train.readable`).
    aligned: whether images of both sides are drawn in every step and their features aligned, as `alignment` says.
    transductive: whether unscored test images may be met in training (their pixels, never their scores).
    labelled: share (0..1) of the target's scored images whose scores are read, where scores of the target are.
    """

    name: str
    scored_on: tuple[Side, ...]
    aligned: bool
    architecture: Architecture
    preparation: Preparation
    teaching: Teaching
    alignment: Alignment = ALIGNMENTS["coral"]
    transductive: bool = False
    labelled: float = 1.0

    @property
    def meets(self) -> tuple[Side, ...]:
        """The sides whose images are looked at: both where domains are aligned or standardised each by its own."""
        both = self.aligned or self.teaching.standardise == "by-domain"
        return ("source", "target") if both else self.scored_on


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

UNSUPERVISED = replace(
    TARGET_ONLY,
    name="unsupervised",
    scored_on=("source",),
    aligned=True,
    teaching=replace(TARGET_ONLY.teaching, standardise="by-domain"),
)

RECIPES: Mapping[str, Recipe] = {
    "paper": PAPER,
    "target-only": TARGET_ONLY,
    "source-only": replace(TARGET_ONLY, name="source-only", scored_on=("source",)),
    "pooled": replace(TARGET_ONLY, name="pooled", scored_on=("source", "target")),
    "unsupervised": UNSUPERVISED,
    "semi-supervised": replace(UNSUPERVISED, name="semi-supervised", scored_on=("source", "target")),
    "paper-unsupervised": replace(
        PAPER, name="paper-unsupervised", scored_on=("source",), aligned=True, alignment=ALIGNMENTS["paper"]
    ),
    "paper-semi-supervised": replace(
        PAPER, name="paper-semi-supervised", scored_on=("source", "target"), aligned=True,
        alignment=ALIGNMENTS["paper"],
    ),
}  # fmt: skip


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
        if isinstance(old, Alignment):
            new[name] = _alignment(old, value, f"{where}: {name}")
            continue
        if is_dataclass(old):
            if not isinstance(value, Mapping):
                raise TrainingError(f"{where}: {name} is a table, not {value!r}")
            new[name] = changed_by(old, value, f"{where}: {name}")
            continue
        new[name] = tuple(value) if isinstance(value, list) else value
        if not _fits(new[name], kinds[name]):
            raise TrainingError(f"{where}: {name} is {value!r}; wanted {_in_words(kinds[name])}, such as {old!r}")
    return replace(base, **new)


def _alignment(old: Alignment, value: Any, where: str) -> Alignment:
    """`alignment = "mmd"`, or a table: `base = "mmd"` and what differs. A `kind` alone would keep another's weight."""
    if isinstance(value, str):
        value = {"base": value}
    if not isinstance(value, Mapping):
        raise TrainingError(f"{where} is a name or a table, not {value!r}")
    changes = dict(value)
    base = changes.pop("base", None)
    if base is not None and base not in ALIGNMENTS:
        raise TrainingError(f"{where}: base is {base!r}; known are {', '.join(ALIGNMENTS)}")
    if base is None and "kind" in changes:
        raise TrainingError(f"{where}: write base = one of {', '.join(ALIGNMENTS)}, whose weight suits its kind")
    changed: Alignment = changed_by(old if base is None else ALIGNMENTS[base], changes, where)
    return changed


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
