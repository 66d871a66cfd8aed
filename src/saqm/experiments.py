"""Whole experiments: train a model, cross-validate a recipe, and what the commands `train`, `pretrain`, `evaluate` do.

Every run keeps what it has finished in its folder and goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from saqm.adapt import window_statistics
from saqm.errors import ImageError, TrainingError
from saqm.evaluate import Evaluation, evaluate_predictions
from saqm.export import export_onnx, load_network, save_network
from saqm.frozen import Picture
from saqm.image import Image, read_image
from saqm.loop import Log, described, save_curve, without_gone
from saqm.manifest import Fold, Manifest, Row, Scale, check_disjoint, folds, read_manifest
from saqm.modelfile import Architecture as HeaderArchitecture
from saqm.modelfile import Domain, FeatureStatistics, ModelHeader, PreparationPolicy, ScoreScale, Training
from saqm.network import SAQM
from saqm.outputs.predictions import mean_of_seeds, write_predictions
from saqm.pretrain import TWO_STAGES, PretrainConfig, Version, pretrain
from saqm.recipes import Recipe, Side, changed_by, read_recipe
from saqm.train import (
    Cache,
    Material,
    adopt_towers,
    blinded,
    make_ladders,
    predict,
    read_material,
    read_samples,
    read_versions,
    train,
)
from saqm.writing import replacing

OnStep = Callable[[str, int, int, Mapping[str, float]], None]  # what is taught, step, steps, numbers
Say = Callable[[str], None]

# DICOM's words, with which a manifest's domain may begin: ct-abdomen
MODALITIES = ("CT", "MR", "US", "CR", "DX", "MG", "XA", "NM", "PT")
WINDOW_POLICY = "as the file displays it: the caller's window, else the file's first, else the modality's default"
MASK_POLICY = "auto: anatomy, without air, borders, text"
CURVES = ("loss", "opinion", "order", "ladders", "alignment", "domain_accuracy")
LOOKED_AT = ("mmd", "coral", "proxy_a_distance", "effective_rank", "source_srocc", "order_concordance")
_ASKED = "asked.json"  # beside a run's checkpoint


@dataclass(frozen=True)
class OutOfFold:
    """Predictions (0..1) of rows that the model of their fold never saw: fold and value by row index, for one seed."""

    seed: int
    fold: Mapping[int, int]
    value: Mapping[int, float]


def cross_validate(
    manifest: Manifest,
    folds: Sequence[Fold],
    recipe: Recipe,
    pretraining: PretrainConfig | None,
    *,
    seeds: Sequence[int],
    folder: Path,
    on_step: OnStep | None = None,
) -> Iterator[OutOfFold]:
    """Train without each fold and predict it: nothing of a test scene is seen, not even by pre-training.

    Where a fold keeps methods apart as well, no image of its test methods is seen either. What is finished in `folder`
    is not done again. Yields one OutOfFold a seed.
    """
    for seed in seeds:
        fold_of: dict[int, int] = {}
        value: dict[int, float] = {}
        for number, fold in enumerate(folds):
            here = folder / f"seed-{seed}" / f"fold-{number}"
            found = finish_fold(manifest, fold, recipe, pretraining, seed=seed, folder=here, on_step=on_step)
            fold_of |= dict.fromkeys(found, number)
            value |= found
        yield OutOfFold(seed, fold_of, value)


def finish_fold(
    manifest: Manifest,
    fold: Fold,
    recipe: Recipe,
    pretraining: PretrainConfig | None,
    *,
    seed: int,
    folder: Path,
    on_step: OnStep | None = None,
) -> dict[int, float]:
    """Train on one side of a fold and predict the other: 0..1 by row index. Kept in `folder`, and done only once.

    Raises TrainingError where `folder` holds a fold of another recipe, pre-training, seed, manifest or division.
    """
    train_rows = [manifest.rows[i] for i in fold.train]
    check_disjoint(train_rows, [manifest.rows[i] for i in fold.test])
    if recipe.aligned or recipe.teaching.standardise == "by-domain":
        raise TrainingError(f"recipe {recipe.name!r} needs a source and a target, and one manifest has no sides")
    _same_run(folder, {
        "recipe": described(recipe), "pretraining": None if pretraining is None else described(pretraining),
        "seed": seed,
        "manifest": manifest.sha256, "division": [fold.train, fold.test],
    })  # fmt: skip
    done = folder / "predictions.json"
    if not done.is_file():
        network, _ = build(train_rows, manifest, recipe, pretraining, seed=seed, folder=folder, on_step=on_step)
        found = {i: predict(network, read_image(manifest.rows[i].path), recipe.preparation) for i in fold.test}
        _write_json(done, found)
    return {int(index): float(value) for index, value in _read_json(done).items()}


def build(
    rows: Sequence[Row],
    manifest: Manifest,
    recipe: Recipe,
    pretraining: PretrainConfig | None,
    *,
    seed: int,
    folder: Path,
    on_step: OnStep | None = None,
) -> tuple[SAQM, Log]:
    """A network from rows, and the log of its last stage.

    Pre-trained on their pictures where `pretraining` says so, then taught their scores. What is finished in `folder` is
    not done again.
    """

    def told(what: str) -> Callable[[int, int, Mapping[str, float]], None]:
        return lambda step, steps, logs: None if on_step is None else on_step(what, step, steps, logs)

    network = SAQM(recipe.architecture, seed=seed)
    if pretraining is not None:
        towers, _ = pretrain(
            read_versions(rows), pretraining, seed=seed, folder=folder / "towers", on_step=told("towers")
        )
        adopt_towers(network, towers)
    ladders = make_ladders(rows, seed=seed) if recipe.teaching.ladders else []
    samples = read_samples(manifest, rows)
    log = train(network, samples, ladders, recipe, seed=seed, folder=folder / "opinions", on_step=told("opinions"))
    return network, log


def transfer(
    sides: Mapping[Side, Manifest],
    test: Sequence[Row],
    recipe: Recipe,
    towers: SAQM | None,
    *,
    seed: int,
    folder: Path,
    cache: Cache | None = None,
    on_step: OnStep | None = None,
) -> list[float]:
    """Train on the images of two domains and predict others of the target: 0..1, in the order of `test`.

    `sides` holds training images alone. Where the recipe is transductive the test images join the target's, without
    their scores. `towers` that met test scenes make the result transductive as well, whatever the recipe says.
    `cache`: features through these towers, shared by many runs. Kept in `folder`, and done only once. Raises
    ManifestError where training and test share a scene, TrainingError as `finish_fold` and `train.read_material`.
    """
    check_disjoint([row for manifest in sides.values() for row in manifest.rows], test)
    network = SAQM(recipe.architecture, seed=seed)
    if towers is not None:
        adopt_towers(network, towers)
    _same_run(folder, {
        "recipe": described(recipe), "seed": seed, "towers": _digest(network),
        "manifests": {side: manifest.sha256 for side, manifest in sides.items()},
        "test": [str(row.path) for row in test],
    })  # fmt: skip
    done = folder / "predictions.json"
    if not done.is_file():
        if recipe.transductive and "target" in sides:
            target = sides["target"]
            sides = {**sides, "target": replace(target, rows=(*target.rows, *map(blinded, test)))}
        given = read_material(sides, recipe, seed=seed, look=cache)
        told = None if on_step is None else lambda step, steps, logs: on_step("opinions", step, steps, logs)
        train(
            network, given.samples, given.ladders, recipe,
            seed=seed, unscored=given.unscored, folder=folder / "opinions", on_step=told,
        )  # fmt: skip
        look = read_image if cache is None else cache.for_scoring
        _write_json(done, [predict(network, look(row.path), recipe.preparation) for row in test])
    return [float(value) for value in _read_json(done)]


def header_for(
    network: SAQM,
    recipe: Recipe,
    manifests: Mapping[str, Manifest],
    pictures: Sequence[Picture],
    *,
    name: str,
    version: str,
    seed: int,
    steps: int,
    epochs: int,
    commit: str,
    results: Mapping[str, Any],
    licence: str,
    card: str,
    features: FeatureStatistics | None = None,
) -> ModelHeader:
    """The header of a model file that was just taught. Its raw score is 0..1, the share of the readers' scale."""
    images = [_image(picture) for picture in pictures]
    scales = {manifest.scale for manifest in manifests.values() if manifest.scale is not None}
    meaning = "; ".join(sorted(_in_words(scale) for scale in scales)) or "no opinion scores: towers only"
    domains = sorted({row.domain for manifest in manifests.values() for row in manifest.rows})
    modalities = {image.modality for image in images if image.modality is not None}
    modalities |= {word.upper() for domain in domains for word in [domain.split("-")[0]] if word.upper() in MODALITIES}
    return ModelHeader(
        name=name,
        version=version,
        architecture=HeaderArchitecture(**asdict(network.architecture)),
        preparation=PreparationPolicy(**asdict(recipe.preparation), window=WINDOW_POLICY, mask=MASK_POLICY),
        score_scale=ScoreScale(low=0.0, high=1.0, higher_is_better=True, meaning=f"0 to 1, the share of: {meaning}"),
        domain=Domain(
            modalities=tuple(sorted(modalities)),
            description=", ".join(domains) or "unlabelled images",
            features=features,
        ),
        calibration=None,
        training=Training(
            recipe=recipe.name,
            manifests={which: manifest.sha256 for which, manifest in manifests.items()},
            seed=seed,
            epochs=epochs,
            steps=steps,
            commit=commit,
            results=dict(results),
            images_sha256=tuple(sorted({image.source.sha256 for image in images})),
        ),
        licence=licence,
        card=card,
    )


def train_command(
    *,
    source: Path | None,
    target: Path | None,
    recipe: str,
    out: Path,
    seed: int,
    towers: Path | None,
    resume: bool,
    say: Say,
    on_step: OnStep | None = None,
    commit: str = "unknown",
) -> dict[str, Any]:
    """`saqm train`: manifests into OUT/model.safetensors and OUT/model.onnx; what was made.

    Raises TrainingError for a manifest that the recipe needs and lacks, a run already in OUT, or heads without towers.
    """
    chosen = read_recipe(recipe)
    given: dict[Side, Path | None] = {"source": source, "target": target}
    for side in chosen.meets:
        if given[side] is None:
            reads = "scores" if side in chosen.scored_on else "images (their scores are not read)"
            raise TrainingError(f"recipe {chosen.name!r} learns from the {side}'s {reads}: give --{side} MANIFEST")
    unused = [side for side, path in given.items() if path is not None and side not in chosen.meets]
    if unused:
        raise TrainingError(f"recipe {chosen.name!r} reads no {' or '.join(unused)} manifest; leave --{unused[0]} out")
    if chosen.teaching.trains == "heads" and towers is None:
        raise TrainingError(
            f"recipe {chosen.name!r} teaches heads on towers taught before: give --towers (see `saqm pretrain`), "
            'or a .toml recipe with [teaching] trains = "all"'
        )
    _fresh(out / "opinions", resume)
    manifests: dict[Side, Manifest] = {side: read_manifest(path) for side, path in given.items() if path is not None}
    rows = [row for manifest in manifests.values() for row in manifest.rows]
    material = read_material(manifests, chosen, seed=seed)
    samples = material.samples
    network = SAQM(chosen.architecture, seed=seed)
    if towers is not None:
        adopt_towers(network, load_network(towers / "towers.safetensors" if towers.is_dir() else towers)[0])
    asked: dict[str, Any] = {
        "recipe": described(chosen), "seed": seed, "towers": _digest(network),
        "scores": [(_image(sample.image).source.sha256, sample.score, sample.weight) for sample in samples],
    }  # fmt: skip
    if material.unscored:
        asked["unscored"] = [(_image(one.image).source.sha256, one.side) for one in material.unscored]
    _same_run(out / "opinions", asked)
    say(f"{len(samples)} scored images, {len({row.scene for row in rows})} scenes, {len(material.ladders)} ladders")
    for remark in remarks(manifests, chosen, material):
        say(remark)
    told = None if on_step is None else lambda step, steps, logs: on_step("opinions", step, steps, logs)
    log = train(
        network, samples, material.ladders, chosen,
        seed=seed, unscored=material.unscored, folder=out / "opinions", on_step=told,
    )  # fmt: skip
    header = header_for(
        network, chosen, {str(side): manifest for side, manifest in manifests.items()},
        [one.image for one in material.shown],
        name=out.resolve().name, version="1", seed=seed, steps=len(log), epochs=chosen.teaching.epochs, commit=commit,
        results={"last_loss": log[-1]["loss"], **_what_was_met(material, log)}, licence="that of whoever trained it",
        card=f"Trained with recipe {chosen.name} on {', '.join(manifests)}; not evaluated yet (`saqm evaluate`).",
        features=_served(network, chosen, material),
    )  # fmt: skip
    save_network(network, header, out / "model.safetensors")
    export_onnx(network, header, out / "model.onnx")
    save_curve(log, out / "curve.png", keys=tuple(key for key in (*CURVES, *LOOKED_AT) if key in log[0]))
    return {
        "model": str(out / "model.onnx"),
        "weights": str(out / "model.safetensors"),
        "curve": str(out / "curve.png"),
        "steps": len(log),
        "loss": log[-1]["loss"],
    }


def remarks(manifests: Mapping[Side, Manifest], recipe: Recipe, material: Material) -> list[str]:
    """What somebody should know before two domains are taught together."""
    said = []
    for side, manifest in manifests.items():
        scored = sum(row.score is not None for row in manifest.rows)
        read = sum(sample.side == side for sample in material.samples)
        if read < scored:
            said.append(f"{scored - read} of {scored} scores of the {side} are not read: recipe {recipe.name!r}")
    unscored = sum(one.side == "target" for one in material.unscored)
    if unscored:
        said.append(f"{unscored} target images without scores are learnt from: a test on them is transductive")
    colour = {
        side: {_image(one.image).pixels.ndim == 3 for one in material.shown if one.side == side}
        for side in manifests
    }  # fmt: skip
    if recipe.preparation.channels == "rgb" and len(colour) == 2 and colour["source"] != colour["target"]:
        said.append(
            "one domain is in colour and the other grey: what tells them apart is colour, not quality, and that is "
            'what an alignment will read; use a .toml recipe with [preparation] channels = "gray"'
        )
    return said


def _served(network: SAQM, recipe: Recipe, material: Material) -> FeatureStatistics | None:
    """For the header: statistics of the features that the heads were taught on; None where the towers were taught."""
    if recipe.teaching.trains != "heads":
        return None
    of_target = [one.image for one in material.shown if one.side == "target"]
    apart = recipe.teaching.standardise == "by-domain"
    served = of_target if apart else [sample.image for sample in material.samples]
    return window_statistics(network, [_image(picture) for picture in served], recipe)


def _what_was_met(material: Material, log: Log) -> dict[str, Any]:
    """For the header: whose scores were read, and how far the domains were apart at first and at last."""
    if len({one.side for one in material.shown}) < 2:
        return {}
    return {
        "scores_read": {side: sum(one.side == side for one in material.samples) for side in ("source", "target")},
        "images_without_scores": {
            side: sum(one.side == side for one in material.unscored) for side in ("source", "target")
        },
        "first": {key: log[0][key] for key in LOOKED_AT if key in log[0]},
        "last": {key: log[-1][key] for key in LOOKED_AT if key in log[-1]},
    }


def pretrain_command(
    *,
    names: Iterable[str],
    twins: Path | None,
    recipe: str | None,
    out: Path,
    seed: int,
    resume: bool,
    say: Say,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """`saqm pretrain`: images, and a manifest of their scenes and references, into OUT/towers.safetensors.

    An image that cannot be read is said and left out. Raises TrainingError when none is left.
    """
    import tomllib

    config = TWO_STAGES
    if recipe is not None:
        try:
            changes = tomllib.loads(Path(recipe).read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise TrainingError(f"{recipe}: cannot be read as a recipe: {error}") from error
        config = _in_every_stage(config, changes, recipe)
    _fresh(out / "run", resume)
    known = {row.path.resolve(): row for row in read_manifest(twins).rows} if twins is not None else {}
    versions, left_out = [], 0
    for name in names:
        row = known.get(Path(name).resolve())
        try:
            versions += read_versions([row]) if row is not None else [Version(read_image(name))]
        except ImageError as error:
            say(f"left out: {error}")
            left_out += 1
    if not versions:
        raise TrainingError(f"no image to learn from ({left_out} could not be read)")
    if not any(version.reference for version in versions) and not config.degraded:
        config = replace(config, degraded=0.5)
        say("no twins: half of the windows are degraded copies, whose twin is their original")
    _same_run(out / "run", {
        "recipe": described(config), "seed": seed,
        "images": [(v.image.source.sha256, v.scene, v.maker, v.reference) for v in versions],
    })  # fmt: skip
    told = None if on_step is None else lambda step, steps, logs: on_step("towers", step, steps, logs)
    network, log = pretrain(versions, config, seed=seed, folder=out / "run", on_step=told)
    images = [version.image for version in versions]
    stand_in = replace(
        read_recipe("target-only"), name="pretrain", architecture=config.architecture, preparation=config.preparation
    )
    header = header_for(
        network, stand_in, {}, images,
        name="towers", version="1", seed=seed, steps=len(log), epochs=0, commit="unknown",
        results={"last_loss": log[-1]["loss"]}, licence="that of whoever trained it",
        card="Towers taught on dense labels; the heads are untaught, so this file scores nothing: see `saqm train`.",
    )  # fmt: skip
    save_network(network, header, out / "towers.safetensors")
    save_curve(
        log, out / "curve.png", keys=tuple(key for key in ("loss", "statistics", "makers_right") if key in log[0])
    )
    made = {"towers": str(out / "towers.safetensors"), "images": len(versions), "left_out": left_out, "steps": len(log)}
    return {**made, "loss": log[-1]["loss"]}


def cross_validate_command(
    manifest: Manifest,
    *,
    recipe: str,
    folds: int,
    by_method: bool,
    judged_only: bool,
    seed: int,
    out: Path | None,
    on_step: OnStep | None = None,
) -> Evaluation:
    """`saqm evaluate --folds`: out-of-fold predictions of a recipe and their evaluation; OUT/predictions.csv."""
    chosen = read_recipe(recipe)
    pretraining = TWO_STAGES if chosen.teaching.trains == "heads" else None
    with tempfile.TemporaryDirectory() as scratch:
        made = run_folds(
            manifest, chosen, pretraining,
            k=folds, by_method=by_method, seeds=(seed,), folder=(out or Path(scratch)) / "folds", on_step=on_step,
        )  # fmt: skip
        if out is not None:
            save_out_of_fold(manifest, made, out / "predictions.csv")
        return judge_out_of_fold(manifest, made, by_method=by_method, judged_only=judged_only, seed=seed)


def run_folds(
    manifest: Manifest,
    recipe: Recipe,
    pretraining: PretrainConfig | None,
    *,
    k: int,
    by_method: bool,
    seeds: Sequence[int],
    folder: Path,
    on_step: OnStep | None = None,
) -> list[OutOfFold]:
    """Cross-validate a recipe over k folds apart in scenes, or over k x k cells apart in scenes and methods.

    The folds hang on the manifest alone (seed 0), so that seeds are compared on the same division.
    """
    by = ("scene", "method") if by_method else ("scene",)
    divided = folds(manifest, k, 0, by=by)
    return list(cross_validate(manifest, divided, recipe, pretraining, seeds=seeds, folder=folder, on_step=on_step))


def save_out_of_fold(manifest: Manifest, made: Sequence[OutOfFold], path: Path) -> None:
    """Write out-of-fold predictions on the manifest's scale, one line for each row and seed."""
    rows, values, fold, seeds = [], [], [], []
    for one in made:
        for index in sorted(one.value):
            rows.append(manifest.rows[index])
            values.append(on_scale(one.value[index], manifest.scale))
            fold.append(one.fold[index])
            seeds.append(one.seed)
    write_predictions(path, rows, values, fold, seeds)


def judge_out_of_fold(
    manifest: Manifest, made: Sequence[OutOfFold], *, by_method: bool, judged_only: bool, seed: int
) -> Evaluation:
    """The evaluation of out-of-fold predictions, the mean over seeds, beside the oracle, a constant and the readers."""
    by_seed = [
        tuple(on_scale(one.value[i], manifest.scale) if i in one.value else None for i in range(len(manifest.rows)))
        for one in made
    ]
    return evaluate_predictions(
        manifest.rows,
        mean_of_seeds(by_seed),
        seed=seed,
        by=("scene", "method") if by_method else ("scene",),
        judged_only=judged_only,
        by_seed=by_seed if len(by_seed) > 1 else (),
        manifest_sha256=manifest.sha256,
    )


def on_scale(share: float, scale: Scale | None) -> float:
    """A prediction of 0..1 on the manifest's own scale. Raises TrainingError when that is unknown."""
    if scale is None:
        raise TrainingError("the manifest has no scale; write it to its sidecar, NAME.json")
    share = share if scale.higher_is_better else 1 - share
    return scale.low + share * (scale.high - scale.low)


def _in_words(scale: Scale) -> str:
    best = scale.high if scale.higher_is_better else scale.low
    return f"{scale.name or 'opinion scores'}, {scale.low:g} to {scale.high:g}, {best:g} best"


def _fresh(folder: Path, resume: bool) -> None:
    """Refuse to run over what another run left, unless it is to go on. Raises TrainingError."""
    if not resume and folder.exists() and any(path.name != _ASKED for path in folder.iterdir()):
        raise TrainingError(f"{folder} holds another run; choose another --out, or --resume to go on with it")


def _in_every_stage(config: PretrainConfig, changes: Mapping[str, Any], where: str) -> PretrainConfig:
    """A file's changes, in this stage and in those that follow."""
    changed: PretrainConfig = changed_by(config, changes, where)
    return changed if config.then is None else replace(changed, then=_in_every_stage(config.then, changes, where))


def _same_run(folder: Path, asked: Mapping[str, Any]) -> None:
    """Keep in `folder` what a run was asked to do; refuse to go on with a run that was asked another thing."""
    folder.mkdir(parents=True, exist_ok=True)
    kept, asked = folder / _ASKED, json.loads(json.dumps(asked))
    if not kept.is_file() or list(folder.iterdir()) == [kept]:  # nothing was taught yet
        _write_json(kept, asked)
    elif others := [name for name, value in without_gone(_read_json(kept)).items() if asked.get(name) != value]:
        raise TrainingError(f"{folder} holds a run with another {' and '.join(others)}; choose another --out")


def _image(picture: Picture) -> Image:
    if not isinstance(picture, Image):
        raise TrainingError("features were given where a run is kept by its files; give images")
    return picture


def _digest(network: SAQM) -> str:
    """SHA-256 over a network's weights."""
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _write_json(path: Path, value: Any) -> None:
    with replacing(path) as beside:
        beside.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
