"""How far the shipped model's numbers can be trusted: `make evidence`, after `make train-default`.

Reliability, coverage of the intervals, what is flagged as out of domain, and what a cut-off costs: on scenes that the
model of each fold never saw, and on other material at hand (below SAQM_SHARED, and the files that pydicom and nibabel
bring). Observations are kept below runs/. Writes benchmarks/results/evidence.*, docs/images/evidence_*.png, and the
blocks of the model's card and of docs/trust.md.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from provenance import RESULTS, ROOT, commit, processor

from saqm.calibration import (
    Familiarity,
    Observation,
    View,
    cross_fitted,
    distance,
    familiarity,
    fit_familiar,
    fit_interval,
    fit_score_map,
    held,
    reliability,
    to_score,
)
from saqm.datasets import ct_reader_study
from saqm.engine import load_engine
from saqm.errors import SaqmError
from saqm.evaluate import evaluate_predictions
from saqm.image import Image, from_array, read_frames, read_image
from saqm.manifest import Manifest, folds, normalised
from saqm.modelfile import DEFAULT_MODEL, Calibration, Familiar, ScoreMap
from saqm.patches import luminance
from saqm.scorer import ModelScorer
from saqm.statistics import rmse
from saqm.threshold import choose_thresholds
from saqm.writing import replacing

SCENE_FOLDS = 4  # those of `make train-default`
VIEWS: tuple[View, ...] = ("picture", "features")
STRAIGHT = ScoreMap(raw=(0.0, 1.0), score=(0.0, 100.0))
Observed = dict[str, Observation]


def observe(model: Path, images: Iterator[tuple[str, Callable[[], Image]]], kept: Path) -> Observed:
    """What a model sees of each image, by name; kept in a file, and done only once."""
    known = {name: _read(one) for name, one in json.loads(kept.read_text())["images"].items()} if kept.is_file() else {}
    scorer, found = ModelScorer(load_engine(model, threads=1)), {}
    for name, read in images:
        try:
            found[name] = known[name] if name in known else scorer.observe(read())
        except SaqmError as error:
            print(f"left out: {name}: {error}", flush=True)
    record = {"images": {name: _written(one) for name, one in found.items()}}
    with replacing(kept) as beside:
        beside.write_text(json.dumps(record))
    return found


def _written(one: Observation) -> dict[str, Any]:
    return {"raw": one.raw, "spread": one.spread, **{view: one.views[view].tolist() for view in VIEWS}}


def _read(one: dict[str, Any]) -> Observation:
    return Observation(one["raw"], one["spread"], {view: np.array(one[view]) for view in VIEWS})


def of_rows(manifest: Manifest, index: Sequence[int]) -> Iterator[tuple[str, Callable[[], Image]]]:
    for i in index:
        yield str(i), lambda path=manifest.rows[i].path: read_image(path)  # type: ignore[misc]


class Study:
    """The study as the models of the folds saw it (kept-out rows and rows they were taught), and the final model."""

    def __init__(self, manifest: Manifest, k: int, runs: Path, name: str) -> None:
        self.manifest, self.rows = manifest, manifest.rows
        self.folds = folds(manifest, k, 0)
        self.final = runs / "final" / f"{name}.safetensors"
        every = range(len(self.rows))
        self.by_fold = [
            observe(
                runs / f"scene-{n}" / "model.safetensors", of_rows(manifest, every), runs / f"scene-{n}" / "seen.json"
            )
            for n in range(k)
        ]
        self.by_final = observe(self.final, of_rows(manifest, every), runs / "final" / "seen.json")
        self.fold_of = {i: n for n, fold in enumerate(self.folds) for i in fold.test}
        self.judged = [i for i in every if self.rows[i].judged and self.rows[i].score is not None]
        self.domains = [row.domain for row in self.rows]

    def kept_out(self, i: int) -> Observation:
        """A row as the model that never met its scene saw it."""
        return self.by_fold[self.fold_of[i]][str(i)]

    def of_judged(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], list[str]]:
        """Raw output, opinion (0 to 100), spread in points, scene, of judged rows kept out."""
        seen = [self.kept_out(i) for i in self.judged]
        opinions = [100 * normalised(self.rows[i].score or 0.0, self.manifest.scale) for i in self.judged]
        return (
            np.array([one.raw for one in seen]), np.array(opinions),
            np.array([100 * one.spread for one in seen]), [self.rows[i].scene for i in self.judged],
        )  # fmt: skip

    def scores(self) -> dict[int, float]:
        """The calibrated score of every row, 0 to 1, by weights and a map that had not met its scene."""
        raw, opinions, _, scenes = self.of_judged()
        found = {}
        for scene in sorted({row.scene for row in self.rows}):
            others = np.array([one != scene for one in scenes])
            curve = fit_score_map(raw[others], opinions[others], STRAIGHT)
            for i in (i for i, row in enumerate(self.rows) if row.scene == scene):
                found[i] = float(np.clip(to_score(curve, self.kept_out(i).raw), 0, 100)) / 100
        return found

    def away(self, view: View, n: int) -> dict[int, float]:
        """How far fold n's test rows lie from what its model was taught."""
        fold, seen = self.folds[n], self.by_fold[n]
        taught = np.array([seen[str(i)].views[view] for i in fold.train])
        known = fit_familiar(taught, [self.domains[i] for i in fold.train], view, {})
        return {i: distance(known, seen[str(i)].views[view])[self.domains[i]] for i in fold.test}

    def familiar(self) -> dict[View, Familiar]:
        found: dict[View, Familiar] = {}
        for view in VIEWS:
            away = {i: value for n in range(len(self.folds)) for i, value in self.away(view, n).items()}
            kept_out = {name: [away[i] for i in away if self.domains[i] == name] for name in set(self.domains)}
            numbers = np.array([self.by_final[str(i)].views[view] for i in range(len(self.rows))])
            found[view] = fit_familiar(numbers, self.domains, view, kept_out)
        return found

    def calibration(self) -> Calibration:
        """Of the final model, from the predictions of the folds' models."""
        raw, opinions, spreads, scenes = self.of_judged()
        errors = opinions - np.clip(cross_fitted(raw, opinions, scenes, STRAIGHT), 0, 100)
        of_judged = [self.domains[i] for i in self.judged]
        conformal = fit_interval(errors, spreads, scenes, groups=of_judged)
        inside, _ = held(raw, opinions, spreads, scenes, STRAIGHT, groups=of_judged)
        domains = np.array(of_judged)
        found = {name: float(inside[domains == name].mean()) for name in sorted(set(self.domains))}
        return Calibration(
            score=fit_score_map(raw, opinions, STRAIGHT),
            interval=conformal.model_copy(update={"found": found}),
            familiar=self.familiar(),
            fitted_on={"ct_reader_study, out of fold": self.manifest.sha256},
        )

    def flagged_kept_out(self) -> dict[int, Familiarity]:
        """How every row compares with what its fold's model knows; p from the distances of the other folds' rows."""
        away = {view: [self.away(view, n) for n in range(len(self.folds))] for view in VIEWS}
        found = {}
        for n, fold in enumerate(self.folds):
            known: dict[View, Familiar] = {}
            for view in VIEWS:
                taught = np.array([self.by_fold[n][str(i)].views[view] for i in fold.train])
                others = [(i, value) for m, one in enumerate(away[view]) if m != n for i, value in one.items()]
                kept_out = {d: [v for i, v in others if self.domains[i] == d] for d in set(self.domains)}
                known[view] = fit_familiar(taught, [self.domains[i] for i in fold.train], view, kept_out)
            for i in fold.test:
                found[i] = familiarity(known, self.by_fold[n][str(i)].views)
        return found


def elsewhere(shared: Path, study: Study) -> Iterator[tuple[str, str, Callable[[], Image]]]:
    """Kind, name and picture of what the model was not made for, and of CT that was spoilt on purpose."""
    for path in sorted((shared / "kodak24").glob("*.png")):
        yield "photographs", path.name, lambda path=path: read_image(path)  # type: ignore[misc]
    for path in sorted((shared / "abdominal_ultrasound" / "images").iterdir())[::8]:
        yield "ultrasound", path.name, lambda path=path: read_image(path)  # type: ignore[misc]
    import nibabel
    import pydicom.data

    for path in sorted((Path(pydicom.data.__file__).parent / "test_files").rglob("*.dcm")):
        modality = modality_of(path)
        kind = {"MR": "MR", "US": "ultrasound of pydicom", "CT": "other CT (thorax, phantoms)"}.get(modality or "")
        if kind is not None:
            yield from frames_of(kind, path, None, 4)
    slices = Path(nibabel.__file__).parent / "tests" / "data" / "anatomical.nii"
    yield from frames_of("MR", slices, 2, 40)
    spoilt: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
        "CT, inverted": lambda grey: 255 - grey,
        "CT, window far too narrow": lambda grey: np.clip((grey - 90) / 60 * 255, 0, 255),
        "CT, clipped to black": lambda grey: np.clip(grey - 120, 0, 255),
        "CT, clipped to white": lambda grey: np.clip((grey + 150) / 260 * 255, 0, 255),
    }
    for i, row in enumerate(study.rows):
        if row.judged and i % 4 == 0:
            for kind, change in spoilt.items():
                yield kind, f"{kind} {i}", lambda path=row.path, change=change: changed(path, change)  # type: ignore[misc]


def frames_of(kind: str, path: Path, axis: int | None, most: int) -> Iterator[tuple[str, str, Callable[[], Image]]]:
    try:
        made = list(islice(read_frames(path, axis=axis), most))
    except SaqmError:
        return
    for number, image in enumerate(made):
        yield kind, f"{path.name} {number}", lambda image=image: image  # type: ignore[misc]


def modality_of(path: Path) -> str | None:
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return str(pydicom.dcmread(path, stop_before_pixels=True).get("Modality"))
        except Exception:  # test files that are broken on purpose
            return None


def changed(path: Path, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Image:
    """A picture with other grey levels and the mask it had."""
    image = read_image(path)
    return from_array(change(luminance(image)).astype(np.float32), value_range=(0, 255), mask=image.mask)


def coverage_table(study: Study) -> list[dict[str, Any]]:
    """Share of opinions inside, and mean width, by domain: map and interval fitted without the scene."""
    raw, opinions, spreads, scenes = study.of_judged()
    domains = np.array([study.domains[i] for i in study.judged])
    inside, width = held(raw, opinions, spreads, scenes, STRAIGHT, groups=domains.tolist())
    made = []
    for name in ("all", *sorted(set(study.domains))):
        which = np.ones(len(domains), bool) if name == "all" else domains == name
        low, high = clopper_pearson(int(inside[which].sum()), int(which.sum()))
        made.append({
            "domain": name, "images": int(which.sum()), "scenes": len(set(np.array(scenes)[which].tolist())),
            "inside": float(inside[which].mean()), "low": low, "high": high, "mean_width": float(width[which].mean()),
        })  # fmt: skip
    return made


def domain_table(calibration: Calibration, study: Study, others: dict[str, Observed]) -> list[dict[str, Any]]:
    """How often each kind is flagged, and how well the statistic tells it from the study's scenes kept out."""
    kept_out = study.flagged_kept_out()
    known = np.array([one.statistic for one in kept_out.values()])
    made = []
    for name in ("all", *sorted(set(study.domains))):
        own = [(i, one) for i, one in kept_out.items() if name in ("all", study.domains[i])]
        made.append({
            "kind": f"study, scenes kept out: {name}", "n": len(own),
            "flagged": float(np.mean([one.flag for _, one in own])),
            "organ_known": float(np.mean([one.group == study.domains[i] for i, one in own])),
        })  # fmt: skip
    for kind, seen in others.items():
        found = [familiarity(calibration.familiar, one.views) for one in seen.values()]
        statistic = np.array([one.statistic for one in found])
        above = (statistic[:, None] > known).mean() + 0.5 * (statistic[:, None] == known).mean()
        flagged = float(np.mean([one.flag for one in found]))
        made.append({"kind": kind, "n": len(found), "flagged": flagged, "auroc": float(above)})
    return made


def threshold_table(study: Study) -> list[dict[str, Any]]:
    """What a cut-off costs, for images that the readers called worse than the middle of their scale."""
    manifest = study.manifest
    scale = manifest.scale
    assert scale is not None
    middle = (scale.low + scale.high) / 2
    shares = study.scores()
    values = [scale.low + (scale.high - scale.low) * shares[i] for i in range(len(study.rows))]
    evaluation = evaluate_predictions(study.rows, values, seed=0, replicates=200)
    made = []
    for miss in (0.05, 0.1, 0.2):
        choice = choose_thresholds(evaluation, scale, bad_below=middle, miss_at_most=miss, seed=0)
        made.append({
            "miss_at_most": miss, "bad_below": middle, "pass_at": choice.pass_at, "workload": str(choice.reviewed),
            "missed": str(choice.missed), "passed_good": str(choice.passed_good),
            "auc": choice.auc, "auc_interval": choice.auc_interval,
        })  # fmt: skip
    return made


def new_denoisers(
    study: Study, calibration: Calibration, runs: Path, covered: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """How many opinions an interval of the mean width holds where the denoiser was never met (the cells' models)."""
    raw: dict[int, float] = {}
    for path in sorted(runs.glob("cell-*/predictions.json")):
        raw |= {int(i): float(value) for i, value in json.loads(path.read_text()).items()}
    made = []
    for one in covered:
        rows = [i for i in raw if study.domains[i] == one["domain"] and i in study.judged]
        if rows:
            opinions = np.array([100 * normalised(study.rows[i].score or 0.0, study.manifest.scale) for i in rows])
            scores = np.clip(to_score(calibration.score, [raw[i] for i in rows]), 0, 100)
            inside = float((np.abs(opinions - scores) <= one["mean_width"] / 2).mean())
            made.append(
                {"domain": one["domain"], "images": len(rows), "inside": inside, "rmse": rmse(scores, opinions)}
            )
    return made


def clopper_pearson(hits: int, count: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    found = binomtest(hits, count).proportion_ci(0.95, "exact")
    return float(found.low), float(found.high)


def measure(study: Study, calibration: Calibration, shared: Path, runs: Path) -> str:
    """All tables; benchmarks/results/evidence.json and .md, and what the card quotes of them."""
    material: dict[str, list[tuple[str, Callable[[], Image]]]] = {}
    for kind, name, read in elsewhere(shared, study):
        material.setdefault(kind, []).append((name, read))
    others = {
        kind: observe(study.final, iter(images), runs / "final" / f"seen {kind}.json")
        for kind, images in material.items()
    }
    raw, opinions, _, scenes = study.of_judged()
    scores = np.clip(cross_fitted(raw, opinions, scenes, STRAIGHT), 0, 100)
    covered = coverage_table(study)
    record = {
        "command": "make evidence", "commit": commit(), "machine": processor(),
        "coverage": covered,
        "new_denoisers": new_denoisers(study, calibration, runs, covered),
        "domain": domain_table(calibration, study, others),
        "thresholds": threshold_table(study),
        "reliability": reliability(scores, opinions),
        "reliability_straight": reliability(100 * raw, opinions),
        "rmse": {"calibrated": rmse(scores, opinions), "straight": rmse(100 * raw, opinions)},
    }  # fmt: skip
    text = to_markdown(record)
    (RESULTS / "evidence.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "evidence.md").write_text(text, encoding="utf-8")
    fill(ROOT / "docs" / "trust.md", "evidence", text)
    draw(study, calibration, others, ROOT / "docs" / "images" / "evidence.png")
    return text


def draw(study: Study, calibration: Calibration, others: dict[str, Observed], path: Path) -> None:
    """Reliability with intervals of images kept out, and how far each kind of image lies from what the model knows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    raw, opinions, spreads, scenes = study.of_judged()
    scores = np.clip(cross_fitted(raw, opinions, scenes, STRAIGHT), 0, 100)
    domains = np.array([study.domains[i] for i in study.judged])
    inside, width = held(raw, opinions, spreads, scenes, STRAIGHT, groups=domains.tolist())
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
    for name, colour in zip(sorted(set(domains)), ("#0072b2", "#d55e00"), strict=True):
        which = domains == name
        share = f"{name.removeprefix('ct-')}: {inside[which].mean():.0%} inside"
        left.errorbar(scores[which], opinions[which], xerr=width[which] / 2, fmt="none", color=colour, alpha=0.12)
        left.plot(scores[which], opinions[which], "o", color=colour, markersize=3, label=share)
    bins = reliability(scores, opinions)
    left.plot([b["score"] for b in bins], [b["opinion"] for b in bins], "ks-", markersize=5, label="mean of a fifth")
    left.plot((0, 100), (0, 100), color="0.6", linewidth=1, zorder=0)
    left.set(xlim=(0, 100), ylim=(0, 100), xlabel="score, with its 90 % interval", ylabel="opinion of the readers")
    left.legend(frameon=False, loc="upper left")
    kinds = {"study, scenes kept out": [one.statistic for one in study.flagged_kept_out().values()]}
    for kind, seen in others.items():
        kinds[kind] = [familiarity(calibration.familiar, one.views).statistic for one in seen.values()]
    rng = np.random.default_rng(0)
    for place, values in enumerate(kinds.values()):
        colour = "#009e73" if place == 0 else "0.35"
        right.plot(values, place + rng.uniform(-0.25, 0.25, len(values)), ".", color=colour, markersize=3)
    right.axvline(1, color="k", linewidth=1)
    right.set_xscale("log")
    right.set_yticks(range(len(kinds)), list(kinds))
    right.set_ylim(len(kinds) - 0.4, -0.6)
    right.set_xlabel("distance from what the model knows; beyond the line: flagged")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=110, metadata={"Software": None})


def fill(page: Path, mark: str, text: str) -> None:
    """Put measured results between a page's markers."""
    before, rest = page.read_text(encoding="utf-8").split(f"<!-- {mark}:begin -->", 1)
    after = rest.split(f"<!-- {mark}:end -->", 1)[1]
    marked = f"{before}<!-- {mark}:begin -->\n{text.strip()}\n<!-- {mark}:end -->{after}"
    page.write_text(marked, encoding="utf-8")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=Path, default=ROOT / "runs" / "default")
    runs = options.parse_args().runs
    shared = Path(os.environ.get("SAQM_SHARED", ROOT.parent / "shared")).resolve() / "data"
    study = Study(ct_reader_study(shared / "ct_reader_study"), SCENE_FOLDS, runs, DEFAULT_MODEL)
    print(measure(study, study.calibration(), shared, runs))


def to_markdown(record: dict[str, Any]) -> str:
    """The tables of the card and of docs/trust.md."""
    lines = [
        "| 90 % intervals | images | scenes | opinions inside [95 % exact] | mean width, points |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for one in record["coverage"]:
        inside = f"{one['inside']:.1%} [{one['low']:.1%}, {one['high']:.1%}]"
        lines.append(f"| {one['domain']} | {one['images']} | {one['scenes']} | {inside} | {one['mean_width']:.0f} |")
    if found := record["new_denoisers"]:
        shares = ", ".join(f"{one['inside']:.0%} of {one['images']} ({one['domain']})" for one in found)
        lines += [
            "",
            "**The promise is for denoisers that the model was taught.** Where neither scene nor denoiser was met, "
            f"an interval of the mean width holds {shares} of the opinions.",
        ]
    lines += ["", "| what is scored | images | flagged as unlike (p < 0.05) | AUROC against scenes kept out |"]
    lines += ["| --- | ---: | ---: | ---: |"]
    for one in record["domain"]:
        area = f"{one['auroc']:.3f}" if "auroc" in one else ""
        lines.append(f"| {one['kind']} | {one['n']} | {one['flagged']:.1%} | {area} |")
    first = record["thresholds"][0]
    lines += [
        "",
        f"| bad (opinion below {first['bad_below']:g}) missed at most | pass at | not passed | bad and passed "
        "| good and passed |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in record["thresholds"]:
        lines.append(
            f"| {one['miss_at_most']:.0%} | {one['pass_at']:g} | {one['workload']} | {one['missed']} "
            f"| {one['passed_good']} |"
        )
    lines += ["", "| a fifth of the judged images, by score | n | mean score | mean opinion | sd of opinions |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    for number, one in enumerate(record["reliability"]):
        lines.append(f"| {number + 1} | {one['n']} | {one['score']:.0f} | {one['opinion']:.0f} | {one['sd']:.0f} |")
    found = record["rmse"]
    organ = record["domain"][0]["organ_known"]
    low, high = first["auc_interval"]
    lines.append(
        f"\nAUC of good against bad {first['auc']:.2f} [{low:.2f}, {high:.2f}]. "
        f"The interval is as wide as its organ needs; {organ:.1%} of the kept-out images lie nearest to their own. "
        f"RMSE out of fold: {found['calibrated']:.1f} points; {found['straight']:.1f} without the map. "
        "Everything above is of scenes that neither the weights nor the calibration had met."
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
