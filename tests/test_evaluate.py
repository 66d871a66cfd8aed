"""Evaluation: baselines, tables and protocols against their meaning."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pillow

from saqm import evaluate as ev
from saqm.datasets import ct_reader_study
from saqm.errors import ImageError, ManifestError, NotScorable, UndefinedScore
from saqm.image import sha256_of
from saqm.manifest import Manifest, Row, Scale
from saqm.metrics import METRICS
from saqm.metrics.parameters import Provenance, load_parameters
from saqm.modelfile import ModelHeader, write_onnx
from saqm.outputs.predictions import write_predictions
from saqm.scorer import MetricScorer, ModelScorer, load_scorer


def rows_of(scenes: int = 8, methods: int = 5, domain: str = "ct", seed: int = 0) -> tuple[Row, ...]:
    """Judged versions by `methods` denoisers of fixed quality, with a little noise of the scene and three readers."""
    rng = np.random.default_rng(seed)
    rows = []
    for scene in range(scenes):
        for method in range(methods):
            readers = tuple(float(v) for v in np.clip(1 + 0.8 * method + rng.normal(0, 0.4, 3), 1, 5))
            rows.append(
                Row(
                    Path(f"/x/{domain}{scene}-{method}.png"),
                    float(np.mean(readers)),
                    f"{domain}-{scene}",
                    domain,
                    method=f"m{method}",
                    raters=3,
                    rater_scores=readers,
                )
            )
    return tuple(rows)


def near(rows: tuple[Row, ...], noise: float, seed: int = 1) -> list[float]:
    rng = np.random.default_rng(seed)
    return [float(row.score + rng.normal(0, noise)) for row in rows if row.score is not None]


# Baselines


def test_the_oracle_knows_the_method_on_other_scenes_of_its_domain() -> None:
    def row(score: float | None, scene: str, method: str | None, domain: str = "ct") -> Row:
        return Row(Path(f"/x/{scene}{method}{domain}"), score, scene, domain, method=method)

    rows = (
        row(1, "a", "x"),
        row(3, "b", "x"),
        row(5, "c", "x"),
        row(9, "d", "x", "mr"),
        row(2, "a", "y"),
        row(2, "b", None),
    )
    assert ev.method_oracle(rows) == (4, 3, 2, None, None, None)
    assert ev.constant(rows) == pytest.approx((19 / 4, 17 / 4, 17 / 5, 13 / 5, 19 / 4, 17 / 4))


def test_each_reader_stands_against_the_mean_of_the_others() -> None:
    base = rows_of(1, 3)
    rows = [
        replace(base[0], rater_scores=(1, 2, 4)),
        replace(base[1], rater_scores=(5, None, 3)),
        replace(base[2], rater_scores=None),
    ]
    first, second, third = ev.readers(rows)
    assert [first[0], first[1].tolist(), first[2].tolist()] == [[0, 1], [1, 5], [3, 3]]
    assert [second[0], second[2].tolist()] == [[0], [2.5]]
    assert [third[0], third[2].tolist()] == [[0, 1], [1.5, 5]]


# The table


def test_every_domain_stands_apart_and_all_together() -> None:
    rows = (*rows_of(domain="ct"), *rows_of(6, domain="mr", seed=3))
    predictions = near(rows, 0.5)
    found = ev.evaluate_predictions(rows, predictions, seed=0, replicates=200)
    assert [r.domain for r in found.results if r.name == ev.PREDICTION] == ["ct", "mr", "all"]
    for domain, kept in (("ct", slice(0, 40)), ("mr", slice(40, 70)), ("all", slice(0, 70))):
        result = found.result(domain)
        x, y = predictions[kept], [row.score for row in rows[kept]]
        assert result.srocc == ev.srocc(x, y)
        assert result.rmse == ev.rmse(x, y)
        assert result.srocc_interval is not None
        assert result.srocc_interval[0] < result.srocc < result.srocc_interval[1]
        low, high = result.srocc_interval_methods or (0, 0)
        assert high - low > result.srocc_interval[1] - result.srocc_interval[0]  # few methods: wider
    assert (found.result("all").n, found.result("all").scenes) == (70, 14)
    assert found.rows == rows
    assert found == ev.evaluate_predictions(rows, predictions, seed=0, replicates=200)
    with pytest.raises(UndefinedScore, match="no result pet / prediction; there are: ct / prediction"):
        found.result("pet")


def test_the_constant_has_errors_and_no_correlation() -> None:
    result = ev.evaluate_predictions(rows_of(), near(rows_of(), 1), seed=0, replicates=50).result("ct", ev.CONSTANT)
    assert (result.srocc, result.plcc, result.krocc, result.within_scene_srocc) == (None,) * 4
    assert result.rmse is not None
    assert result.rmse > 0


def test_a_new_method_has_no_oracle() -> None:
    rows = rows_of()
    both = ev.evaluate_predictions(rows, near(rows, 1), seed=0, replicates=50, by=("scene", "method"))
    assert ev.ORACLE not in {r.name for r in both.results}
    assert "no scene and no method in both training and test" in both.to_text()
    one = ev.evaluate_predictions(rows, near(rows, 1), seed=0, replicates=50)
    assert one.result("ct", ev.ORACLE).n == 40
    assert [(c.second, c.n) for c in one.comparisons] == [(ev.ORACLE, 40)]


def test_anchors_and_unpredicted_rows_are_left_out_and_said_to_be() -> None:
    judged = rows_of()
    anchor = replace(judged[0], path=Path("/x/n.png"), raters=0, score=5.0, rater_scores=None)
    unknown = replace(judged[0], path=Path("/x/u.png"), score=None)
    rows, predictions = (*judged, anchor, unknown), [None, *near(judged, 0.5)[1:], 1.0, 1.0]
    assert ev.evaluate_predictions(rows, predictions, seed=0, replicates=50).result("ct").n == 39
    both = ev.evaluate_predictions(rows, predictions, seed=0, replicates=50, judged_only=False)
    assert both.result("ct").n == 40
    assert "1 of 41 images have no prediction" in both.protocol
    assert "anchors" in both.protocol


def test_a_constant_prediction_is_undefined_in_the_table_not_a_number() -> None:
    rows = rows_of()
    found = ev.evaluate_predictions(rows, [3.0] * len(rows), seed=0, replicates=50)
    result = found.result("ct")
    assert (result.srocc, result.srocc_interval, result.mae is None) == (None, None, False)
    line = next(line for line in found.to_markdown().splitlines() if line.startswith("| prediction"))
    assert line.count("undefined") == 5
    assert "Correlations undefined: predictions are constant (3)" in found.to_text()
    assert not found.comparisons


def test_predictors_are_compared_on_the_same_images() -> None:
    rows = rows_of(12)
    found = ev.evaluate_predictions(
        rows, near(rows, 0.2), seed=0, replicates=500, name="good", others={"poor": near(rows, 4)}
    )
    comparison = next(c for c in found.comparisons if c.second == "poor")
    assert comparison.verdict == "significantly higher"
    assert comparison.p <= comparison.p_holm
    assert comparison.difference == pytest.approx(found.result("ct", "good").srocc - found.result("ct", "poor").srocc)
    assert "good - poor" in found.to_text()


def test_seeds_stand_apart_from_images() -> None:
    rows = rows_of()
    seeds = [near(rows, 0.5, seed) for seed in (1, 2, 3)]
    found = ev.evaluate_predictions(rows, list(np.mean(seeds, axis=0)), seed=0, replicates=50, by_seed=seeds)
    y = [row.score for row in rows]
    assert found.result("ct").srocc_by_seed == tuple(ev.srocc(x, y) for x in seeds)
    assert "SROCC of 3 training seeds: mean 0." in found.to_text()
    assert found.result("ct", ev.ORACLE).srocc_by_seed == ()


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([1.0], "prediction: 1 predictions for 40 rows"),
        ([math.nan] * 40, r"predictions that are not finite: ct0-0\.png"),
        ([None] * 40, "nothing to evaluate: 40 rows, 40 with a score that counts, 0 predicted"),
    ],
)
def test_predictions_that_cannot_be_evaluated_are_refused(predictions: list[float | None], message: str) -> None:
    with pytest.raises(UndefinedScore, match=message):
        ev.evaluate_predictions(rows_of(), predictions, seed=0)


def test_the_json_is_strict_and_complete() -> None:
    rows = rows_of()
    found = ev.evaluate_predictions(rows, near(rows, 0.5), seed=4, replicates=50, failures=(("a.png", "broken"),))
    content = json.loads(found.to_json(), parse_constant=pytest.fail)
    assert content["results"][0]["srocc"] == found.result("ct").srocc
    assert (content["seed"], content["replicates"]) == (4, 50)
    assert content["failures"] == [{"path": "a.png", "reason": "broken"}]
    assert content["comparisons"][0]["verdict"] == found.comparisons[0].verdict
    assert any("fitted on the test data" in remark for remark in content["remarks"])


def test_the_tables_say_the_same_in_markdown_and_text() -> None:
    rows = rows_of()
    found = ev.evaluate_predictions(rows, near(rows, 0.5), seed=0, replicates=50)
    value = f"{found.result('ct').srocc:.3f}"
    for text in (found.to_markdown(), found.to_text()):
        assert value in text
        assert ev.READERS_MEAN in text
        assert "fitted on the test data" in text
    widths = {line.count("|") for line in found.to_markdown().split("\n\n")[0].splitlines()}
    assert len(widths) == 1


def test_2000_replicates_of_the_study_take_seconds() -> None:
    rows = (*rows_of(11, 12, "a"), *rows_of(11, 12, "b"))
    start = time.perf_counter()
    ev.evaluate_predictions(rows, near(rows, 1), seed=0)
    assert time.perf_counter() - start < 15  # about 1.5 s on one quiet core


# A scorer on a manifest


@dataclass(frozen=True)
class Brightness:
    """A scorer for the tests: 100 for white, 0 for black."""

    name: str = "brightness"

    def rate(self, image, stride=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
        from saqm.scorer import Score

        return Score(path=image.source.path, status="scored", score=float(image.pixels.mean() * 100))


def pictures(folder: Path) -> tuple[Row, ...]:
    from PIL import Image

    rows = []
    for index in range(12):
        pixels = np.full((40, 40), 20 * index, np.uint8)
        pixels[::2] += 10
        path = folder / f"{index}.png"
        Image.fromarray(pixels).save(path)
        rows.append(Row(path, 1 + index / 3, f"s{index // 3}", raters=2))
    return tuple(rows)


def test_one_broken_file_is_one_listed_failure(tmp_path: Path) -> None:
    rows = pictures(tmp_path)
    rows[4].path.write_text("no picture")
    manifest = Manifest((*rows, replace(rows[0], raters=0), replace(rows[1], score=None)), Scale(1, 5))
    found = ev.evaluate(Brightness(), manifest, seed=0, replicates=50)
    assert [Path(path).name for path, _ in found.failures] == ["4.png"]
    assert found.result("default").n == 11
    assert found.result("default").srocc == pytest.approx(1)
    assert "1 of 12 images have no prediction" in found.protocol
    assert "not cross-validated" in found.protocol
    assert "4.png" in found.to_text()
    assert found.manifest_sha256 == manifest.sha256
    with pytest.raises(ManifestError, match="scores without a scale"):
        ev.evaluate(Brightness(), Manifest(rows), seed=0)


def test_scores_are_put_on_the_scale_of_the_opinions(tmp_path: Path) -> None:
    rows = pictures(tmp_path)
    seen = ev.evaluate(Brightness(), Manifest(rows, Scale(0, 10)), seed=0, replicates=20).predictions
    downward = Scale(0, 10, higher_is_better=False)
    turned = ev.evaluate(Brightness(), Manifest(rows, downward), seed=0, replicates=20).predictions
    assert seen[0] == pytest.approx(10 * 5 / 255)  # rows of 10 and 0 in turn
    assert np.add(seen, turned) == pytest.approx([10] * 12)


def test_what_is_refused_is_listed_with_its_reason() -> None:
    answers = iter((4.0, ImageError("broken"), NotScorable("constant image")))

    def predict(_: Row) -> float:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    predictions, failures = ev.predict_rows(rows_of(1, 3), predict)
    assert predictions == (4, None, None)
    assert [reason for _, reason in failures] == ["broken", "constant image"]


def test_an_evaluation_without_one_prediction_says_why(tmp_path: Path) -> None:
    rows = pictures(tmp_path)
    for row in rows:
        row.path.write_bytes(b"")
    with pytest.raises(UndefinedScore, match=r"none of 12 images has a prediction; the first: .*0\.png: .*empty file"):
        ev.evaluate(Brightness(), Manifest(rows, Scale(1, 5)), seed=0)


# A model on the images that it was trained on


@pytest.fixture
def taught(
    tmp_path: Path, header: ModelHeader, toy_onnx: Callable[..., bytes]
) -> Callable[[Sequence[Row]], ModelScorer]:
    """The toy model, whose file says that it was trained on some rows."""

    def make(rows: Sequence[Row]) -> ModelScorer:
        hashes = tuple(sha256_of(row.path) for row in rows)
        training = header.training.model_copy(update={"images_sha256": hashes})
        write_onnx(toy_onnx(), header.model_copy(update={"training": training}), tmp_path / "taught.onnx")
        return load_scorer(tmp_path / "taught.onnx")

    return make


Taught = Callable[[Sequence[Row]], ModelScorer]


def test_images_that_were_trained_on_get_their_out_of_fold_predictions(tmp_path: Path, taught: Taught) -> None:
    rows = pictures(tmp_path)
    scorer = taught(rows)
    by_seed = [[5 - 0.3 * index + 0.01 * seed for index in range(12)] for seed in (0, 1)]
    write_predictions(
        tmp_path / "taught.out_of_fold.csv", rows + rows, by_seed[0] + by_seed[1], [0] * 24, [0] * 12 + [1] * 12
    )
    found = ev.evaluate(scorer, Manifest(rows, Scale(1, 5)), seed=0, replicates=50)
    assert found.predictions == pytest.approx(np.mean(by_seed, axis=0))
    assert found.result("default").srocc == pytest.approx(-1)  # the model itself would reach 1
    assert found.result("default").srocc_by_seed == pytest.approx((-1, -1))
    assert found.protocol.startswith(
        "12 of 12 images were trained on: their recorded out-of-fold predictions are used; judged"
    )
    assert not found.failures


def test_new_images_are_scored_beside_those_that_were_trained_on(tmp_path: Path, taught: Taught) -> None:
    rows = pictures(tmp_path)
    scorer = taught(rows[:5])
    write_predictions(tmp_path / "taught.out_of_fold.csv", rows[:5], [1.5] * 5, [0] * 5)
    found = ev.evaluate(scorer, Manifest(rows, Scale(1, 5)), seed=0, replicates=50)
    alone = ev.evaluate(scorer, Manifest(rows[5:], Scale(1, 5)), seed=0, replicates=50)
    assert found.predictions == (*[1.5] * 5, *alone.predictions)
    assert "5 of 12 images were trained on" in found.protocol
    assert "trained on" not in alone.protocol


def test_resubstitution_is_never_silent(tmp_path: Path, taught: Taught) -> None:
    rows = pictures(tmp_path)
    scorer, manifest = taught(rows[:5]), Manifest(rows, Scale(1, 5))
    refused = ev.evaluate(scorer, manifest, seed=0, replicates=50)
    assert [Path(path).name for path, _ in refused.failures] == [f"{index}.png" for index in range(5)]
    assert "no table of them stands beside the model file; --as-trained" in refused.failures[0][1]
    assert "5 of 12 images have no prediction" in refused.protocol
    write_predictions(tmp_path / "taught.out_of_fold.csv", rows[:4], [2] * 4, [0] * 4)
    (only,) = ev.evaluate(scorer, manifest, seed=0, replicates=50).failures
    assert Path(only[0]).name == "4.png"
    assert "taught.out_of_fold.csv has none" in only[1]
    asked_for = ev.evaluate(scorer, manifest, seed=0, replicates=50, as_trained=True)
    assert not asked_for.failures
    assert asked_for.result("default").srocc == pytest.approx(1)
    assert asked_for.protocol.startswith("5 of 12 images were trained on: RESUBSTITUTION")
    with pytest.raises(UndefinedScore, match=r"none of 1 images has a prediction; the first: .*4\.png: the model was"):
        ev.evaluate(scorer, Manifest(rows[4:5], Scale(1, 5)), seed=0)


def test_a_prediction_recorded_for_another_opinion_is_not_taken(tmp_path: Path, taught: Taught) -> None:
    rows = pictures(tmp_path)
    scorer = taught(rows[:1])
    write_predictions(tmp_path / "taught.out_of_fold.csv", rows[:1], [2], [0])
    other = (replace(rows[0], score=40.0), *rows[1:])
    (failure,) = ev.evaluate(scorer, Manifest(other, Scale(0, 100)), seed=0, replicates=50).failures
    assert "with the opinion score 1.0, which is 40.0 here" in failure[1]


# A metric, which keeps its own scale


class _Brightest:
    """In place of a metric's function: brighter pictures have the larger value, far off the opinions' scale."""

    def __call__(self, pixels: np.ndarray, **_: object) -> float:
        return float(1000 + pixels.mean())


def metric_scorer(*, higher_is_better: bool) -> MetricScorer:
    metric = replace(METRICS["biqaa"], function=_Brightest(), higher_is_better=higher_is_better, options={})
    return MetricScorer(metric, None, "brightness")


def textured(folder: Path) -> tuple[Row, ...]:
    """Pictures with texture, the brighter the better their opinion score."""
    rows = []
    for index in range(12):
        path = folder / f"t{index}.png"
        pixels = np.random.default_rng(index).integers(60, 120, (32, 32)) + 10 * index
        pillow.fromarray(pixels.astype(np.uint8)).save(path)
        rows.append(Row(path, 1 + index / 3, f"scene{index}", "default"))
    return tuple(rows)


@pytest.mark.parametrize("metric_up", [True, False])
@pytest.mark.parametrize("opinions_up", [True, False])
def test_a_metric_is_turned_into_the_direction_of_the_opinions(
    tmp_path: Path, metric_up: bool, opinions_up: bool
) -> None:
    rows = textured(tmp_path)
    found = ev.evaluate(
        metric_scorer(higher_is_better=metric_up), Manifest(rows, Scale(1, 5, opinions_up)), seed=0, replicates=50
    )
    result, sign = found.result("default"), 1 if metric_up == opinions_up else -1
    assert result.srocc == pytest.approx(sign)  # the values rise with the opinions: only the claims differ
    assert result.srocc_interval is not None
    assert result.srocc_interval == pytest.approx((sign, sign))
    assert result.plcc is not None
    assert result.plcc * sign > 0.9
    direction = "higher is better" if metric_up else "lower is better"
    assert found.orientation == ev.Orientation("brightness", direction, turned=metric_up != opinions_up)
    assert min(found.predictions) > 1000  # the metric's own values
    assert json.loads(found.to_json())["orientation"] == {
        "name": "brightness",
        "direction": direction,
        "turned": metric_up != opinions_up,
    }
    for text in (found.to_text(), found.to_markdown()):
        assert f"brightness keeps its own scale ({direction})" in text
        assert ("are negated before the correlations" in text) == (metric_up != opinions_up)
        assert "SROCC of the values as they are, not turned: default +1.000." in text


def test_a_metric_has_no_errors_on_a_scale_that_is_not_its_own(tmp_path: Path) -> None:
    rows = textured(tmp_path)
    found = ev.evaluate(metric_scorer(higher_is_better=True), Manifest(rows, Scale(1, 5)), seed=0, replicates=50)
    result = found.result("default")
    assert (result.rmse, result.mae) == (None, None)
    assert result.plcc_logistic is not None  # fitted, so it needs no scale
    assert "RMSE and MAE are left out: its values are not on the scale of the opinions (default, prediction)" in (
        found.to_text()
    )
    assert found.result("default", ev.CONSTANT).rmse is not None  # this one is on the scale


def test_a_model_has_no_orientation(tmp_path: Path) -> None:
    found = ev.evaluate(Brightness(), Manifest(pictures(tmp_path), Scale(1, 5)), seed=0, replicates=50)
    assert found.orientation is None
    assert json.loads(found.to_json())["orientation"] is None
    assert "Orientation" not in found.to_text()
    assert found.result("default").rmse is not None


def test_a_metric_is_not_tested_on_the_pictures_its_parameters_were_fitted_on(tmp_path: Path, niqe_file: Path) -> None:
    rows = textured(tmp_path)
    fitted_on = Provenance(images_sha256=tuple(sha256_of(row.path) for row in rows[:3]))
    made = replace(load_parameters(niqe_file), provenance=fitted_on)
    scorer = replace(metric_scorer(higher_is_better=True), parameters=made)
    scorer = replace(scorer, metric=replace(scorer.metric, function=lambda pixels, _, **__: float(pixels.mean())))
    found = ev.evaluate(scorer, Manifest(rows, Scale(1, 5)), seed=0, replicates=50)
    assert [Path(path).name for path, _ in found.failures] == ["t0.png", "t1.png", "t2.png"]
    assert len(found.predictions) == 9
    whole = ev.evaluate(scorer, Manifest(rows, Scale(1, 5)), seed=0, replicates=50, as_trained=True)
    assert len(whole.predictions) == 12
    assert "RESUBSTITUTION" in whole.protocol


# The real study


def test_oracle_and_readers_of_the_study_are_what_its_readme_says(ct_study: Path) -> None:
    rows = ct_reader_study(ct_study).rows
    predictions = [row.score for row in rows]
    found = ev.evaluate_predictions(rows, predictions, seed=0, replicates=200)
    assert found.result("all").srocc == 1
    for domain, oracle, readers in (("ct-abdomen", 0.64, (0.87, 0.90, 0.94)), ("ct-brain", 0.80, (0.84, 0.82, 0.87))):
        # The README's numbers are of 15 scenes an organ, not all of which may be at hand.
        assert found.result(domain, ev.ORACLE).srocc == pytest.approx(oracle, abs=0.05)
        for number, ceiling in enumerate(readers, 1):
            assert found.result(domain, f"reader {number} against the others").srocc == pytest.approx(ceiling, abs=0.03)
        low, high = found.result(domain, ev.ORACLE).srocc_interval_methods or (0, 0)
        assert high - low > 0.3  # twelve methods are few
