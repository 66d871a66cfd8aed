"""A taught model brought to somebody's own images, which nobody has scored (or few): `saqm adapt`.

Towers stay as they are, so that everything runs on features that are computed once. Two things are done:

1. Standardisation by domain, where the training images' feature statistics are known (from the model's header, or from
   some of these images): the heads get the target's features at the training images' mean and spread. It supposes that
   both sets of images are about equally good, for it takes a difference in quality away as well. It is undone where
   worse copies of images kept out are then in worse order: a model of several domains needs none of it.
2. Degradation rank: copies of target images made worse by known steps must score lower, step by step, while the images
   themselves are held at what the model said of them (or at the opinions, where there are some).

Neither sees how good the images are. Whether it helped is tried on ladders of images kept out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saqm import watching
from saqm.adaptation import order_concordance
from saqm.errors import ImageError, NotScorable, TrainingError
from saqm.export import export_onnx, load_network, save_network
from saqm.frozen import LADDER_STRIDE, Features, fold_standardisation, mean_and_sd
from saqm.image import Image, read_image
from saqm.loop import LoopConfig
from saqm.manifest import Manifest, normalised, read_manifest
from saqm.modelfile import Domain, FeatureStatistics, ModelHeader, Training, open_model
from saqm.network import SAQM
from saqm.opinions import Ladder, Sample
from saqm.patches import Preparation
from saqm.recipes import TARGET_ONLY, Recipe
from saqm.train import ORDERED_RUNGS, degraded, predict, train
from saqm.writing import replacing

Say = Callable[[str], None]
OnStep = Callable[[str, int, int, Mapping[str, float]], None]

LEAST = 4  # images: three to learn from, and one to try on
ADVISED = 12
MOST = 200  # images that are learnt from; more of the same cost time and change little
LADDERS_OF = 24  # images whose worse copies are learnt from
TRIED_ON = 12  # images kept out, whose worse copies are tried
STEPS = 240
ANCHOR = 0.3  # weight of an image held at what the model said beside one with an opinion, which counts 1
KEPT = 0.8  # SROCC of the scores before and after below which the order has changed too much to be called help
HELPED = 0.01  # by how much the concordance must rise to be called help: a pair in a hundred


@dataclass(frozen=True, eq=False)
class Own:
    """One of somebody's images: its features, the opinion of it on 0..1 if there is one, and its scene."""

    image: Image
    features: Tensor
    score: float | None
    scene: str


def adapt_command(
    *,
    model: str | Path,
    names: Iterable[str | Path],
    manifest: Path | None,
    out: Path,
    seed: int,
    say: Say,
    source: Iterable[str | Path] = (),
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Adapt a model to images; OUT/model.safetensors, OUT/model.onnx, OUT/model.md, and what was found.

    names: image files; or those of `manifest`, which may hold scores of some and scenes. model: a shipped name or a
    .safetensors file. source: some of the images that the model was trained on, for whoever has them: their statistics
    are taken where the header has none, and the distance of the domains is measured against them.
    Raises TrainingError for fewer than LEAST images or an OUT that holds a model, ModelFileError as `load_network`.
    """
    if (out / "model.safetensors").exists():
        raise TrainingError(f"{out} holds a model already; choose another --out")
    network, header = load_network(open_model(model, "safetensors"))
    recipe = _recipe(network, header)
    features = Features(network, recipe)
    own = _read_own(features, names, manifest, seed=seed, say=say)
    learnt, kept_out = _divide(own, seed)
    theirs = [one.features for one in _read_own(features, source, None, seed=seed, say=say)]
    ladders = [_ladders(features, one.image, (seed, n)) for n, one in enumerate(learnt[:LADDERS_OF])]
    tried = [_ladders(features, one.image, (seed, MOST + n)) for n, one in enumerate(kept_out)]

    before = _judged(network, recipe, own, tried)
    mine = mean_and_sd([one.features for one in learnt])
    trained_on = _statistics(header, theirs)
    distances = _distances(own, theirs, trained_on, mine, seed)
    between, standardised = before, False
    if trained_on is None:
        say("the model's file does not say which features it was trained on: they are not standardised")
    else:
        heads = {name: value.clone() for name, value in network.heads.state_dict().items()}
        mean, sd = trained_on
        fold_standardisation(network, -mean / sd, 1 / sd)
        fold_standardisation(network, *mine)
        between = _judged(network, recipe, own, tried)
        standardised = between[0] >= before[0]
        if not standardised:
            network.heads.load_state_dict(heads)
            say(f"not standardised: {between[0]:.0%} of worse copies would score lower, and {before[0]:.0%} do without")
    samples = [
        Sample(one.features, score, "own", 1.0 if one.score is not None else ANCHOR)
        for one, score in zip(learnt, _held_at(network, recipe, learnt), strict=True)
    ]
    steps_an_epoch = -(-len(samples) // recipe.teaching.images_per_step)
    recipe = replace(recipe, teaching=replace(recipe.teaching, epochs=max(1, STEPS // steps_an_epoch)))
    told = None if on_step is None else lambda step, steps, logs: on_step("own images", step, steps, logs)
    log = train(
        network, samples, [one for made in ladders for one in made], recipe, seed=seed, taught=True, on_step=told
    )
    after = _judged(network, recipe, own, tried)

    moved = 100 * np.abs(np.array(after[1]) - np.array(before[1]))
    found: dict[str, Any] = {
        "images": len(own), "learnt_from": len(learnt), "tried_on": len(kept_out),
        "scores_read": sum(one.score is not None for one in learnt), "standardised": standardised,
        "concordance_before": before[0], "concordance_standardised": between[0], "concordance_after": after[0],
        "moved_mean": float(moved.mean()), "moved_max": float(moved.max()),
        "order_kept": watching.rank_correlation(before[1], after[1]), **distances,
    }  # fmt: skip
    turned = found["order_kept"] is None or found["order_kept"] < KEPT
    found["helped"] = after[0] >= before[0] + HELPED and not turned
    if turned:
        say(
            f"the order of the images themselves changed much (SROCC to before: {_shown(found['order_kept'])}), which "
            f"nothing but opinions could justify: go on with {header.name}, or have some images scored by people"
        )
    elif not found["helped"]:
        say(
            f"adaptation did not help: on images kept out, {after[0]:.0%} of worse copies score lower, and "
            f"{before[0]:.0%} did before; go on with {header.name}"
        )
    made = _header(header, own, learnt, mine, found, name=out.resolve().name, seed=seed, steps=len(log), recipe=recipe)
    out.mkdir(parents=True, exist_ok=True)
    save_network(network, made, out / "model.safetensors")
    export_onnx(network, made, out / "model.onnx")
    with replacing(out / "model.md") as beside:
        beside.write_text(card(header, found), encoding="utf-8")
    return {"model": str(out / "model.onnx"), "weights": str(out / "model.safetensors"), **found}


def window_statistics(network: SAQM, images: Sequence[Image], recipe: Recipe) -> FeatureStatistics:
    """What a header keeps of training images, so that others can be brought to them; of at most MOST, evenly chosen."""
    chosen = [images[int(place)] for place in watching.spread(len(images), MOST)]
    features = Features(network, recipe)
    mean, sd = mean_and_sd([features(image, recipe.preparation.stride) for image in chosen])
    return _as_header(mean, sd, len(chosen))


def card(original: ModelHeader, found: Mapping[str, Any]) -> str:
    """What was done and found, as Markdown."""
    rows = {
        "worse copies that score lower, before": f"{found['concordance_before']:.1%}",
        "the same after standardisation": f"{found['concordance_standardised']:.1%}",
        "the same after all": f"{found['concordance_after']:.1%}",
        "scores (0 to 100) moved, mean": f"{found['moved_mean']:.1f}",
        "scores moved, most": f"{found['moved_max']:.1f}",
        "order of the images kept (SROCC)": "undefined"
        if found["order_kept"] is None
        else f"{found['order_kept']:.2f}",
    }
    names = {
        "shift": "features shifted (rms, in training sd)",
        "proxy_a_distance": "proxy A-distance (2: told apart, 0: alike)",
        "mmd": "MMD",
    }
    for key, name in names.items():
        if f"{key}_before" in found:
            rows[name] = f"{found[f'{key}_before']:.3g} before, {found[f'{key}_after']:.3g} after"
    advice = "On images kept out, worse copies are in better order than before, and the images' own order is kept."
    if not found["helped"]:
        advice = (
            "**It did not help**: on images kept out, worse copies are in no better order, or the order of the images "
            f"themselves was changed, which nothing here can justify. Keep {original.name}."
        )
    standardised = "Features were not standardised: the training images' are not known, or it made the order worse.\n"
    if found["standardised"]:
        standardised = (
            "Features were brought to the mean and spread of the training images', which supposes that both sets are "
            "about equally good.\n"
        )
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"# Adapted from {original.name} {original.version}\n\n{advice}\n\n"
        f"{found['images']} images, {found['scores_read']} opinion scores read. Heads were taught with worse copies of "
        f"{found['learnt_from']} of them (at most {LADDERS_OF} copied), held at what the model said of the images "
        f"themselves; {found['tried_on']} were kept out and tried on.\n{standardised}\n"
        f"| | |\n| --- | --- |\n{table}\n\n"
        "None of this measures agreement with people: that takes opinion scores (`saqm evaluate`). "
        f"The original's intervals and thresholds do not hold for this file.\n\nLicence: {original.licence}\n"
    )


def _shown(correlation: float | None) -> str:
    return "undefined" if correlation is None else f"{correlation:.2f}"


def _recipe(network: SAQM, header: ModelHeader) -> Recipe:
    prepared = header.preparation.model_dump()
    # the order loss holds the images among each other where the model had them; without it the ladders turn it round
    teaching = replace(
        TARGET_ONLY.teaching, features="32", images_per_step=32, windows_per_image=64,
        loop=LoopConfig(learning_rate=1e-3, optimiser="adamw", schedule="one-cycle"),
    )  # fmt: skip
    preparation = Preparation(**{name: prepared[name] for name in Preparation.__dataclass_fields__})
    return replace(
        TARGET_ONLY, name="adapt", architecture=network.architecture, preparation=preparation, teaching=teaching
    )


def _read_own(
    features: Features, names: Iterable[str | Path], manifest: Path | None, *, seed: int, say: Say
) -> list[Own]:
    """Images with their features, those of a manifest with opinions where it has some; at most MOST, by chance."""
    read: Manifest | None = None if manifest is None else read_manifest(manifest)
    rows = {row.path: row for row in read.rows} if read is not None else {}
    paths = [*map(Path, names), *rows]
    if len(paths) > MOST:
        order = np.random.default_rng(seed).permutation(len(paths))[:MOST]
        say(f"{MOST} of {len(paths)} images are learnt from, chosen by chance")
        paths = [paths[place] for place in sorted(order)]
    found = []
    for path in paths:
        try:
            image = read_image(path)
            made = features(image, features.preparation.stride)
        except (ImageError, NotScorable) as error:
            say(f"left out: {path.name}: {error}")
            continue
        row = rows.get(path)
        score = None if row is None or read is None or row.score is None else normalised(row.score, read.scale)
        found.append(Own(image, made, score, str(path) if row is None else row.scene))
    return found


def _divide(own: Sequence[Own], seed: int) -> tuple[list[Own], list[Own]]:
    """Images to learn from and images to try on, no scene in both. Raises TrainingError for too few."""
    if len(own) < LEAST:
        raise TrainingError(f"{len(own)} images can be scored; adapting needs {LEAST}, and {ADVISED} are advised")
    scenes = sorted({one.scene for one in own})
    if len(scenes) < 2:
        raise TrainingError("all images are of one scene: none can be kept out to try on; add another")
    order = np.random.default_rng([seed, len(scenes)]).permutation(len(scenes))
    apart = {scenes[place] for place in order[: max(1, min(TRIED_ON, len(scenes) // 4))]}
    learnt, tried = ([one for one in own if (one.scene in apart) == out] for out in (False, True))
    if len(learnt) < 2:
        raise TrainingError(f"{len(learnt)} image is left to learn from; add images of other scenes")
    mixed = np.random.default_rng([seed, len(learnt), 1]).permutation(len(learnt))
    return [learnt[place] for place in mixed], tried[:TRIED_ON]


def _ladders(features: Features, image: Image, seed: tuple[int, int]) -> list[Ladder]:
    first = features(image, LADDER_STRIDE)
    return [
        Ladder(
            (first, *(features(one, LADDER_STRIDE) for one in degraded(image, kind, strengths, seed=(*seed, place))))
        )
        for place, (kind, strengths) in enumerate(ORDERED_RUNGS.items())
    ]


def _judged(
    network: SAQM, recipe: Recipe, own: Sequence[Own], tried: Sequence[Sequence[Ladder]]
) -> tuple[float, list[float]]:
    """Concordance of the ladders kept out, and the score of every image, 0..1."""
    scores = [[predict(network, rung, recipe.preparation) for rung in one.rungs] for made in tried for one in made]
    return order_concordance(scores), [predict(network, one.features, recipe.preparation) for one in own]


def _held_at(network: SAQM, recipe: Recipe, own: Sequence[Own]) -> list[float]:
    return [predict(network, one.features, recipe.preparation) if one.score is None else one.score for one in own]


def _statistics(header: ModelHeader, theirs: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Mean and sd of the training images' features: of those at hand, or as the header says; None without either."""
    if theirs:
        return mean_and_sd(theirs)
    known = header.domain.features
    return None if known is None else (torch.tensor(known.mean), torch.tensor(known.sd))


def _distances(
    own: Sequence[Own],
    theirs: Sequence[Tensor],
    trained_on: tuple[Tensor, Tensor] | None,
    mine: tuple[Tensor, Tensor],
    seed: int,
) -> dict[str, float]:
    """How far the domains are apart before and after standardisation; what can be known of it."""
    if trained_on is None:
        return {}
    shift = ((mine[0] - trained_on[0]) / trained_on[1]).square().mean().sqrt()
    found = {"shift_before": float(shift), "shift_after": 0.0}  # none is left, by construction
    if len(theirs) < 2:
        return found
    source = watching.gather([(features, number) for number, features in enumerate(theirs)])
    for when, brought in (("before", None), ("after", mine)):
        target = watching.gather([(_brought(one.features, brought, trained_on), one.scene) for one in own])
        apart = watching.apart(source, target, seed=seed)
        found |= {f"{key}_{when}": apart[key] for key in ("mmd", "proxy_a_distance") if key in apart}
    return found


def _brought(features: Tensor, mine: tuple[Tensor, Tensor] | None, trained_on: tuple[Tensor, Tensor]) -> Tensor:
    return features if mine is None else (features - mine[0]) / mine[1] * trained_on[1] + trained_on[0]


def _as_header(mean: Tensor, sd: Tensor, images: int) -> FeatureStatistics:
    return FeatureStatistics(
        mean=tuple(float(f"{value:.6g}") for value in mean),
        sd=tuple(float(f"{value:.6g}") for value in sd),
        images=images,
    )


def _header(
    original: ModelHeader,
    own: Sequence[Own],
    learnt: Sequence[Own],
    mine: tuple[Tensor, Tensor],
    found: Mapping[str, Any],
    *,
    name: str,
    seed: int,
    steps: int,
    recipe: Recipe,
) -> ModelHeader:
    modalities = {one.image.modality for one in own if one.image.modality is not None} or original.domain.modalities
    met = {*original.training.images_sha256, *(one.image.source.sha256 for one in own)}
    return ModelHeader(
        name=name,
        version="1",
        architecture=original.architecture,
        preparation=original.preparation,
        score_scale=original.score_scale,
        domain=Domain(
            modalities=tuple(sorted(modalities)),
            description=f"{len(own)} images of a user, from {original.name} ({original.domain.description})",
            features=_as_header(*mine, len(learnt)),
        ),
        calibration=None,  # the original's was measured on the original
        training=Training(
            recipe=recipe.name, manifests=original.training.manifests, seed=seed, epochs=recipe.teaching.epochs,
            steps=steps, commit=original.training.commit, results=dict(found), images_sha256=tuple(sorted(met)),
        ),
        licence=original.licence,
        card=f"{original.name} {original.version} adapted to {len(own)} images, {found['scores_read']} of them scored; "
        f"worse copies of images kept out in order: {found['concordance_before']:.1%} before, "
        f"{found['concordance_after']:.1%} after. Agreement with people was not measured.",
    )  # fmt: skip
