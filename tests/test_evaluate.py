"""Evaluation: statistics against other programs, the bootstrap against its definition, tables against meaning."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from saqm import evaluate as ev
from saqm.datasets import ct_reader_study
from saqm.errors import ImageError, ManifestError, NotScorable, OutputError, UndefinedScore
from saqm.manifest import Manifest, Row, Scale

REFERENCE = json.loads((Path(__file__).parent / "reference" / "evaluate.json").read_text(encoding="utf-8"))


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


# Statistics


@pytest.mark.parametrize("case", REFERENCE["correlations"], ids=lambda case: case["name"])
@pytest.mark.parametrize("statistic", ["srocc", "plcc", "krocc"])
def test_correlations_equal_other_programs(case: dict[str, object], statistic: str) -> None:
    if statistic in case:
        found = getattr(ev, statistic)(case["x"], case["y"])
        assert found == pytest.approx(case[statistic], abs=case.get("tolerance", 1e-12))


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=30))
def test_srocc_equals_scipy_with_ties(pairs: list[tuple[int, int]]) -> None:
    x, y = map(list, zip(*pairs, strict=True))
    if len(set(x)) > 1 and len(set(y)) > 1:
        assert ev.srocc(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
        assert ev.plcc(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)


def test_perfect_and_inverse_prediction() -> None:
    y = [1.0, 2.0, 3.0, 5.0]
    for statistic in (ev.srocc, ev.krocc, ev.plcc):
        assert statistic(y, y) == pytest.approx(1)
        assert statistic([-v for v in y], y) == pytest.approx(-1)
    assert ev.srocc(np.exp(y), y) == 1  # ranks do not know the scale
    assert ev.rmse(y, y) == ev.mae(y, y) == 0
    assert ev.rmse([0, 0], [3, 4]) == pytest.approx(math.sqrt(12.5))
    assert ev.mae([0, 0], [3, -4]) == 3.5


@pytest.mark.parametrize("statistic", [ev.srocc, ev.plcc, ev.krocc, ev.plcc_logistic])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([2, 2, 2], [1, 2, 3], r"predictions are constant \(2\)"),
        ([1, 2, 3], [4, 4, 4], r"opinions are constant \(4\)"),
        ([1, 2], [1, 2], "2 pairs; wanted 3 or more"),
        ([1, 2, math.nan], [1, 2, 3], "predictions hold 1 values that are not finite"),
        ([1, 2, 3], [1, math.inf, math.nan], "opinions hold 2 values that are not finite"),
        ([1, 2, 3], [1, 2], "not two lists of the same length"),
    ],
)
def test_a_statistic_without_value_raises(
    statistic: Callable[..., float], x: list[float], y: list[float], message: str
) -> None:
    with pytest.raises(UndefinedScore, match=message):
        statistic(x, y)


def test_errors_of_nothing_raise() -> None:
    with pytest.raises(UndefinedScore, match="0 pairs; wanted 1 or more"):
        ev.rmse([], [])


def test_scenes_without_order_are_left_out_of_the_within_scene_correlation() -> None:
    found = ev.srocc_by_scene([1, 2, 3, 3, 2, 1, 1, 2, 3], [1, 2, 3, 1, 2, 3, 4, 4, 4], list("aaabbbccc"))
    assert found == {"a": 1, "b": -1}


# Logistic


def test_the_logistic_is_recovered() -> None:
    truth = ev.Logistic((1.2, 4.7, 55.0, 8.0))
    x = np.linspace(10, 95, 40)
    fitted = ev.fit_logistic(x, truth(x))
    assert fitted.fallback is None
    assert fitted.parameters == pytest.approx(truth.parameters, rel=1e-4)
    assert ev.plcc_logistic(x, truth(x)) == pytest.approx(1)
    assert truth([55.0]) == pytest.approx((1.2 + 4.7) / 2)  # half way at b3


def test_the_logistic_is_no_worse_than_the_line() -> None:
    rng = np.random.default_rng(3)
    for n in (6, 12, 60):
        x = rng.normal(size=n)
        y = x**3 + rng.normal(size=n)
        line = np.polynomial.Polynomial.fit(x, y, 1)
        assert ev.rmse(ev.fit_logistic(x, y)(x), y) <= ev.rmse(line(x), y) + 1e-9


def test_a_line_in_place_of_the_logistic_is_reported() -> None:
    few = ev.fit_logistic([1, 2, 3, 4, 5], [1, 3, 2, 4, 5])
    assert few.fallback == "5 pairs are too few for four parameters"
    assert few([1, 2, 3, 4, 5]).mean() == pytest.approx(3)
    x = np.arange(20.0)
    straight = ev.fit_logistic(x, 2 * x + 1)
    assert straight.fallback == "no logistic comes closer than the straight line"
    assert straight.parameters == pytest.approx((1, 2))


def test_a_prediction_that_runs_against_the_opinions_is_not_turned_round() -> None:
    x = np.arange(20.0)
    fitted = ev.fit_logistic(x, -x)
    assert np.all(np.diff(fitted(x)) >= 0)
    with pytest.raises(UndefinedScore, match="constant"):
        ev.plcc_logistic(x, -x)


def test_the_logistic_does_not_overflow() -> None:
    assert ev.Logistic((0.0, 1.0, 0.0, 1e-3))([-1e6, 1e6]).tolist() == [0, 1]


# Bootstrap


def test_a_weighted_replicate_is_the_repeated_sample() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 20), rng.integers(0, 6, 20)
    weights = rng.integers(0, 4, (30, 20))
    found = ev.srocc_replicates(x, y, weights)
    for value, weight in zip(found, weights, strict=True):
        assert value == pytest.approx(ev.srocc(np.repeat(x, weight), np.repeat(y, weight)), abs=1e-12)


def test_a_constant_replicate_is_nan_and_left_out() -> None:
    weights = np.array([[3, 0, 0], [1, 1, 1], [1, 1, 1]])
    found = ev.srocc_replicates([1, 2, 3], [1, 2, 3], weights)
    assert np.isnan(found[0])
    assert ev.interval(found) == (1, 1)
    assert ev.interval([math.nan, math.nan, 1]) is None


def test_scenes_are_drawn_whole() -> None:
    scenes = ["a", "a", "b", "c", "c", "c"]
    weights = ev.cluster_weights(scenes, replicates=500, seed=1)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()  # three scenes drawn each time
    assert weights.mean() == pytest.approx(1, abs=0.1)
    assert (weights == ev.cluster_weights(scenes, replicates=500, seed=1)).all()
    assert (weights != ev.cluster_weights(scenes, replicates=500, seed=2)).any()


def test_scenes_and_methods_are_drawn_apart() -> None:
    scenes, methods = ["a", "a", "b", "b"], ["x", "y", "x", "y"]
    weights = ev.cluster_weights(scenes, methods, replicates=200, seed=0).reshape(-1, 2, 2)
    assert (np.linalg.matrix_rank(weights) <= 1).all()  # a product of the two
    assert (weights.sum((1, 2)) == 4).all()


def test_the_cluster_bootstrap_sees_what_images_of_one_scene_share() -> None:
    rng = np.random.default_rng(5)
    scenes = np.repeat(np.arange(12), 6)
    shared = rng.normal(size=12)[scenes]  # a shift of the prediction that a whole scene shares
    y = rng.normal(size=72)
    x = y + 1.5 * shared
    by_scene = ev.srocc_replicates(x, y, ev.cluster_weights(list(scenes), replicates=1000, seed=0)).std()
    by_image = ev.srocc_replicates(x, y, ev.cluster_weights(list(range(72)), replicates=1000, seed=0)).std()
    assert by_scene > 0
    assert by_image == pytest.approx(math.sqrt((1 + ev.srocc(x, y) ** 2 / 2) / 69) * (1 - ev.srocc(x, y) ** 2), rel=0.3)


def test_a_better_predictor_is_significantly_better_and_itself_is_not() -> None:
    rows = rows_of(12)
    y = [row.score for row in rows]
    good, poor = near(rows, 0.2), near(rows, 3)
    weights = ev.cluster_weights([row.scene for row in rows], replicates=500, seed=0)
    difference, (low, high), p = ev.compare(good, poor, y, weights)
    assert low < difference < high
    assert low > 0
    assert p == pytest.approx(2 / 501)
    assert ev.compare(good, good, y, weights) == (0, (0, 0), 1)


@pytest.mark.parametrize("case", REFERENCE["holm"]["cases"])
def test_holm_equals_r(case: dict[str, list[float]]) -> None:
    assert ev.holm(case["p"]) == pytest.approx(case["adjusted"])
    assert ev.holm(case["p"][::-1]) == pytest.approx(case["adjusted"][::-1])


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


def test_scores_are_put_on_the_scale_of_the_opinions() -> None:
    rows = rows_of(1, 3)
    answers = iter((75.0, ImageError("broken"), NotScorable("constant image")))

    def score_file(_: str) -> float:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    predictions, failures = ev.score_rows(rows, Scale(1, 5), score_file)
    assert predictions == (4, None, None)
    assert [reason for _, reason in failures] == ["broken", "constant image"]
    assert ev.score_rows(rows, Scale(1, 5, higher_is_better=False), lambda _: 75.0)[0] == (2, 2, 2)


# Tables and pictures


def test_predictions_are_read_back(tmp_path: Path) -> None:
    rows = [replace(row, score=None if index == 1 else row.score) for index, row in enumerate(pictures(tmp_path))]
    predictions = [None, *(0.1 * index for index in range(1, 12))]
    path = tmp_path / "out.csv"
    ev.write_predictions(path, rows, predictions, [index % 3 for index in range(12)], seeds=7)
    found = ev.read_predictions(path)
    assert [p.prediction for p in found] == predictions
    assert [p.score for p in found] == [row.score for row in rows]
    assert [(p.path, p.fold, p.seed) for p in found[:2]] == [("0.png", 0, 7), ("1.png", 1, 7)]
    assert len({p.sha256 for p in found}) == 12
    assert str(tmp_path) not in path.read_text()
    with pytest.raises(UndefinedScore, match="12 rows, 12 predictions, 1 folds, 12 seeds"):
        ev.write_predictions(path, rows, predictions, [0])
    with pytest.raises(OutputError, match="cannot be written"):
        ev.write_predictions(tmp_path / "none" / "out.csv", rows, predictions, [0] * 12)
    assert ev.read_predictions(path) == found


def test_predictions_find_their_images_whatever_they_are_called(tmp_path: Path) -> None:
    rows = pictures(tmp_path)
    path = tmp_path / "out.csv"
    seeds = [0] * 12 + [1] * 11
    ev.write_predictions(path, rows + rows[:11], [*range(12), *range(2, 13)], [0] * 23, seeds)
    renamed = rows[11].path.rename(tmp_path / "renamed.png")
    table = ev.read_predictions(path)
    by_seed = ev.predictions_of((replace(rows[11], path=renamed), rows[0]), table)
    assert by_seed == ((11, 0), (None, 2))
    assert ev.mean_of_seeds(by_seed) == (11, 1)
    with pytest.raises(ManifestError, match=r"0\.png: predicted twice with seed 0; leave one line"):
        ev.predictions_of(rows[:1], (*table, table[0]))
    with pytest.raises(ManifestError, match="none of the 1 predictions is of one of these 1 images"):
        ev.predictions_of(rows[:1], table[1:2])


def test_a_foreign_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ManifestError, match="wanted the columns sha256, path"):
        ev.read_predictions(path)
    path.write_text("sha256,path,scene,domain,method,fold,seed,score,prediction\nh,a.png,s,d,,x,,1,2\nh\n")
    with pytest.raises(
        ManifestError, match=r"2 problems\n  line 2: invalid literal for int.*\n  line 3: wanted 9 cells"
    ):
        ev.read_predictions(path)
    with pytest.raises(ManifestError, match="cannot be read"):
        ev.read_predictions(tmp_path / "none.csv")


def test_the_scatter_is_a_picture_with_a_panel_a_domain(tmp_path: Path) -> None:
    from PIL import Image

    rows = (*rows_of(domain="ct"), *rows_of(domain="mr"))
    for name, shown in (("one", rows[:40]), ("two", rows)):
        ev.scatter(
            ev.evaluate_predictions(shown, near(shown, 0.5), seed=0, replicates=50), tmp_path / f"{name}.png"
        )  # fmt: skip
    one, two = (Image.open(tmp_path / f"{name}.png").convert("RGB") for name in ("one", "two"))
    assert two.width > 1.7 * one.width
    assert len(one.getcolors(1_000_000)) > 100


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
