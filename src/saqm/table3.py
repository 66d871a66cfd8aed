"""Table 3 of the paper on a study of one's own: the eight classical metrics beside a model, on the same images.

Each metric stands there as it comes, with the parameters that ship, and a trained one also refitted on the training
side of every scene-disjoint fold: on the pristine pictures of those scenes, or on their opinion scores, each domain by
itself. So no row of the table has seen the scene it is judged on. Values are turned so that higher is better by the
metric's own claim; a negative correlation is a metric that runs against it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from saqm.errors import ImageError, ManifestError, NotScorable, TrainingError
from saqm.evaluate import (
    EVERYTHING,
    Comparison,
    Evaluation,
    Orientation,
    Result,
    evaluate,
    evaluate_predictions,
    shown,
    shown_interval,
)
from saqm.fitting import EXAMPLE_OF, Example, fit_niqe_examples, fit_rows
from saqm.image import read_image
from saqm.manifest import Fold, Manifest, Row, folds
from saqm.metrics import METRICS
from saqm.metrics.parameters import Parameters
from saqm.outputs.forest import forest
from saqm.scorer import MetricScorer, Scorer, load_scorer
from saqm.statistics import REPLICATES, cluster_weights, compare, holm
from saqm.writing import replacing

Values = list[float | None]
OnStep = Callable[[str, int, int, Mapping[str, float]], None]  # what, step, steps, no logs

# PLCC and SROCC on MD72 (72 liver ultrasound images) as the paper prints them, without sign, split or interval
PUBLISHED: Mapping[str, tuple[float, float]] = {
    "brisque": (0.655, 0.383),
    "niqe": (0.497, 0.277),
    "niqe-k": (0.568, 0.443),
    "bliinds": (0.437, 0.413),
    "biqaa": (0.664, 0.530),
    "sure-noise": (0.598, 0.529),
    "marziliano": (0.530, 0.303),
    "radial-index": (0.591, 0.534),
    "saqm": (0.810, 0.812),
}
OF_THE_MODEL = "saqm"  # the key of the model among PUBLISHED
AS_IT_COMES, REFITTED = "as it comes", "refitted"


@dataclass(frozen=True)
class Table3:
    """The table: an Evaluation of all predictors, what is behind each name, and each one's distance to the best.

    blind: the predictors that look at the image, and at nothing else. published: (PLCC, SROCC) of the paper by
    predictor, as it comes, on other images. to_best: srocc minus that of the best blind predictor of the domain,
    paired, p corrected by Holm within the domain. refused: pictures without a value, by name.
    """

    evaluation: Evaluation
    blind: frozenset[str]
    published: Mapping[str, tuple[float, float]]
    to_best: tuple[Comparison, ...]
    refused: Mapping[str, int]
    folds: int

    def results(self, domain: str) -> list[Result]:
        """The domain's rows, the best blind predictor first, what does not look at the image last."""
        here = [result for result in self.evaluation.results if result.domain == domain]
        return sorted(here, key=lambda r: (r.name not in self.blind, -2.0 if r.srocc is None else -r.srocc))

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(result.domain for result in self.evaluation.results))

    def to_csv(self) -> str:
        """One line for each domain and predictor."""
        buffer = io.StringIO(newline="")
        table = csv.writer(buffer, lineterminator="\n")
        table.writerow([
            "domain", "predictor", "images", "scenes", "refused", "srocc", "srocc_low", "srocc_high",
            "srocc_low_methods", "srocc_high_methods", "within_scene_srocc", "plcc", "plcc_logistic_fitted_here",
            "krocc",
            "srocc_minus_best", "difference_low", "difference_high", "p_holm", "published_plcc", "published_srocc",
        ])  # fmt: skip
        for domain in self.domains:
            for r in self.results(domain):
                found = self._against_best(r)
                numbers = [
                    r.srocc, *_two(r.srocc_interval), *_two(r.srocc_interval_methods), r.within_scene_srocc, r.plcc,
                    r.plcc_logistic, r.krocc,
                    *((None,) * 4 if found is None else (found.difference, *found.interval, found.p_holm)),
                    *_two(self.published.get(r.name)),
                ]  # fmt: skip
                cells = ["" if value is None else f"{value:.4f}" for value in numbers]
                table.writerow([domain, r.name, r.n, r.scenes, self.refused.get(r.name, 0), *cells])
        return buffer.getvalue()

    def to_markdown(self) -> str:
        """A table a domain, the paper's numbers in the last column, and the remarks below."""
        parts = []
        for domain in self.domains:
            head = [
                "SROCC",
                "95 % (scenes)",
                "95 % (scenes and methods)",
                "PLCC",
                "SROCC - best (95 %)",
                "paper: MD72*",
            ]
            lines = [["| " + domain, "images", *head], ["| ---", *["---:"] * (len(head) + 1)]]
            for r in self.results(domain):
                found = self._against_best(r)
                bounds = [shown_interval(r.srocc_interval), shown_interval(r.srocc_interval_methods)]
                apart = (
                    "" if found is None else f"{found.difference:+.2f} {shown_interval(found.interval)}{_star(found)}"
                )
                paper = self.published.get(r.name)
                printed = "" if paper is None else f"{paper[1]:.3f} / {paper[0]:.3f}"
                lines.append([f"| {r.name}", str(r.n), shown(r.srocc), *bounds, shown(r.plcc), apart, printed])
            parts.append("\n".join(" | ".join(line) + " |" for line in lines))
        return "\n\n".join([*parts, *(f"- {remark}" for remark in self.remarks())]) + "\n"

    def to_json(self) -> str:
        """The evaluation, the distances to the best and the published numbers, as one object."""
        content = json.loads(self.evaluation.to_json())
        content["to_best"] = [asdict(c) | {"verdict": c.verdict} for c in self.to_best]
        content["published"] = {name: {"plcc": p, "srocc": s} for name, (p, s) in self.published.items()}
        content["refused"] = dict(self.refused)
        content["table_remarks"] = list(self.remarks())
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def remarks(self) -> Iterator[str]:
        """How to read it."""
        yield f"Protocol: {self.evaluation.protocol}; refitted rows on {self.folds} folds apart in scenes."
        yield (
            "Values are turned so that higher is better by the metric's own claim: a negative SROCC runs against it. "
            "PLCC is of the values as they are, without a fitted curve."
        )
        yield (
            "Differences: paired, whole scenes resampled; an asterisk marks p < 0.05 after Holm's correction within "
            "the domain."
        )
        yield (
            "* SROCC / PLCC of the paper's Table 3 on 72 liver ultrasound images, for the metric as it comes: other "
            "images, printed without sign and without interval; the paper's model had seen labels of that set."
        )
        for name, count in self.refused.items():
            yield f"{name}: {count} images have no value and are left out of its row."

    def _against_best(self, result: Result) -> Comparison | None:
        return next((c for c in self.to_best if (c.domain, c.first) == (result.domain, result.name)), None)


def table3(
    manifest: Manifest,
    *,
    k: int = 4,
    seed: int = 0,
    model: str | Path | None = None,
    replicates: int = REPLICATES,
    on_step: OnStep | None = None,
) -> Table3:
    """Every metric, as it comes and refitted, beside `model` (None: the shipped default), on a study's judged images.

    Raises ManifestError for a manifest without scale or with too few scenes, TrainingError where nothing can be
    refitted, UndefinedScore where nothing can be judged.
    """
    if manifest.scale is None:
        raise ManifestError(f"{manifest.path or 'manifest'}: its scores have no scale; write it to its sidecar .json")
    divided = folds(manifest, k, 0)
    for fold in divided:
        for domain in {manifest.rows[i].domain for i in fold.test}:
            if not any(manifest.rows[i].reference and manifest.rows[i].domain == domain for i in fold.train):
                raise TrainingError(
                    f"no reference among the training scenes of {domain} in a fold: NIQE cannot be refitted; mark the "
                    "undegraded version of each scene as its reference"
                )
    predicted = {**_as_they_come(manifest.rows, on_step), **_refitted(manifest, divided, on_step)}
    oriented, published, refused = {}, {}, {}
    counted = [i for i, row in enumerate(manifest.rows) if row.judged and row.score is not None]
    for (key, how), values in predicted.items():
        name, better = f"{METRICS[key].title}, {how}", METRICS[key].higher_is_better
        oriented[name] = Orientation.of(name, higher_is_better=better, scale=manifest.scale).oriented(values)
        if how == AS_IT_COMES:
            published[name] = PUBLISHED[key]
        if missing := sum(values[i] is None for i in counted):
            refused[name] = missing
    scorer = load_scorer(None if model is None else str(model))
    judged = evaluate(scorer, manifest, seed=seed, replicates=replicates)
    by_path = {row.path: value for row, value in zip(judged.rows, judged.predictions, strict=True)}
    name = f"SAQM ({scorer.name})"
    evaluation = evaluate_predictions(
        manifest.rows,
        [by_path.get(row.path) for row in manifest.rows],
        seed=seed,
        replicates=replicates,
        name=name,
        others=oriented,
        failures=judged.failures,
        manifest_sha256=manifest.sha256,
    )
    evaluation = replace(
        evaluation, results=tuple(_on_own_scale(r) if r.name in oriented else r for r in evaluation.results)
    )
    everything = {name: [by_path.get(row.path) for row in manifest.rows], **oriented}
    return Table3(
        evaluation,
        frozenset(everything),
        {name: PUBLISHED[OF_THE_MODEL], **published},
        _to_best(manifest.rows, evaluation, everything, seed, replicates),
        refused,
        k,
    )


def table3_command(
    manifest: Manifest,
    *,
    k: int,
    seed: int,
    model: str | Path | None,
    out: Path,
    on_step: OnStep | None = None,
) -> Table3:
    """`saqm experiment table3`: the table in OUT/table3.md, .csv and .json, drawn in OUT/table3.png."""
    made = table3(manifest, k=k, seed=seed, model=model, on_step=on_step)
    out.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".md", made.to_markdown()), (".csv", made.to_csv()), (".json", made.to_json())):
        with replacing(out / f"table3{suffix}") as beside:
            beside.write_text(text, encoding="utf-8")
    drawn = [domain for domain in made.domains if domain != EVERYTHING]
    forest({domain: made.results(domain) for domain in drawn}, out / "table3.png", strong=made.blind)
    return made


def _as_they_come(rows: Sequence[Row], on_step: OnStep | None) -> dict[tuple[str, str], Values]:
    scorers = {name: load_scorer(name) for name in METRICS}
    found: dict[tuple[str, str], Values] = {(name, AS_IT_COMES): [None] * len(rows) for name in scorers}
    for place, row in enumerate(rows):
        if row.judged and row.score is not None:
            for name, value in _values(row, scorers).items():
                found[name, AS_IT_COMES][place] = value
        if on_step is not None:
            on_step("metrics as they come", place + 1, len(rows), {})
    return found


def _refitted(manifest: Manifest, divided: Sequence[Fold], on_step: OnStep | None) -> dict[tuple[str, str], Values]:
    """The trained metrics with parameters of the other folds; each domain by itself."""
    rows = manifest.rows
    examples = _examples(rows, on_step)
    trained = [metric for metric in METRICS.values() if metric.parameters is not None]
    found: dict[tuple[str, str], Values] = {(metric.name, REFITTED): [None] * len(rows) for metric in trained}
    done = 0
    for fold in divided:
        for domain in sorted({rows[i].domain for i in fold.test}):
            fitted = _fit(manifest, [i for i in fold.train if rows[i].domain == domain], examples)
            scorers = {
                metric.name: MetricScorer(metric, fitted[metric.parameters], metric.name)
                for metric in trained
                if metric.parameters is not None
            }
            for place in (i for i in fold.test if rows[i].domain == domain):
                if rows[place].judged and rows[place].score is not None:
                    for name, value in _values(rows[place], scorers).items():
                        found[name, REFITTED][place] = value
                done += 1
                if on_step is not None:
                    on_step("metrics refitted", done, len(rows), {})
    return found


def _examples(rows: Sequence[Row], on_step: OnStep | None) -> dict[str, dict[int, Example]]:
    """What the fits take of each picture: opinions for two regressions, pristine pictures for NIQE."""
    found: dict[str, dict[int, Example]] = {name: {} for name in EXAMPLE_OF}
    for place, row in enumerate(rows):
        try:
            image = read_image(row.path)
            for name, example in EXAMPLE_OF.items():
                if row.reference if name == "niqe" else row.score is not None:
                    found[name][place] = example(image)
        except (ImageError, NotScorable):
            pass  # `_values` counts it as refused where it is to be judged
        if on_step is not None:
            on_step("features to refit", place + 1, len(rows), {})
    return found


def _fit(
    manifest: Manifest, train: Sequence[int], examples: Mapping[str, Mapping[int, Example]]
) -> dict[str, Parameters]:
    pristine = [examples["niqe"][i] for i in train if i in examples["niqe"]]
    fitted: dict[str, Parameters] = {"niqe": fit_niqe_examples(pristine, name="niqe-of-the-fold")}
    for metric in ("brisque", "bliinds"):
        pairs = [(manifest.rows[i], examples[metric][i]) for i in train if i in examples[metric]]
        fitted[metric] = fit_rows(metric, manifest, pairs, name=f"{metric}-of-the-fold")
    return fitted


def _values(row: Row, scorers: Mapping[str, Scorer]) -> dict[str, float | None]:
    try:
        image = read_image(row.path)
    except ImageError:
        return dict.fromkeys(scorers)
    found: dict[str, float | None] = {}
    for name, scorer in scorers.items():
        try:
            found[name] = scorer.rate(image).score_raw
        except NotScorable:
            found[name] = None
    return found


def _on_own_scale(result: Result) -> Result:
    return replace(result, rmse=None, mae=None)


def _to_best(
    rows: Sequence[Row], evaluation: Evaluation, predicted: Mapping[str, Values], seed: int, replicates: int
) -> tuple[Comparison, ...]:
    made: list[Comparison] = []
    for domain in dict.fromkeys(result.domain for result in evaluation.results):
        results = [r for r in evaluation.results if r.domain == domain and r.name in predicted and r.srocc is not None]
        best = max(results, key=lambda r: r.srocc or -2.0)
        pairs = []
        for result in results:
            if result.name == best.name:
                continue
            both = [
                i for i, row in enumerate(rows)
                if row.judged and row.score is not None and domain in (row.domain, EVERYTHING)
                and predicted[best.name][i] is not None and predicted[result.name][i] is not None
            ]  # fmt: skip
            x, z = (np.array([predicted[name][i] for i in both], np.float64) for name in (result.name, best.name))
            y = np.array([rows[i].score for i in both], np.float64)
            weights = cluster_weights([rows[i].scene for i in both], replicates=replicates, seed=seed)
            pairs.append((result.name, len(both), compare(x, z, y, weights)))
        corrected = holm([found[2] for _, _, found in pairs])
        made += [
            Comparison(domain, name, best.name, n, *found, p_holm)
            for (name, n, found), p_holm in zip(pairs, corrected, strict=True)
        ]
    return tuple(made)


def _two(pair: tuple[float, float] | None) -> tuple[float | None, float | None]:
    return (None, None) if pair is None else pair


def _star(found: Comparison) -> str:
    return "\\*" if found.p_holm < 0.05 else ""
