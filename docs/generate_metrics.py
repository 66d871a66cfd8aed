"""Write docs/metrics.md: a card for each metric of METRICS, and the laws that benchmarks/laws.py measured.

python docs/generate_metrics.py          writes docs/metrics.md
python docs/generate_metrics.py --check  exit code 1 where docs/metrics.md is out of date

Numbers come from benchmarks/results/laws*, from METRICS, or from a test of reference values. A sentence of the summary
stands beside the condition that makes it true: where the measurement no longer bears it, nothing is written.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saqm.metrics import METRICS, Metric
from saqm.metrics.parameters import load_parameters

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "metrics.md"
RESULTS = ROOT / "benchmarks" / "results"
SETS = ROOT / "src" / "saqm" / "models" / "metrics"  # the shipped parameters and their cards

MODALITIES = ("natural", "CT", "MR", "ultrasound")
# ladders and invariances as laws.csv has them -> as the page has them
LADDERS = {
    "noise": "more noise",
    "grain": "more correlated noise",
    "blur": "more blur",
    "compression": "more JPEG",
    "median": "wider median filter",
    "shrink": "less resolution",
}
INVARIANCES = {
    "flip left-right": "mirrored left-right",
    "flip up-down": "mirrored up-down",
    "rotate 90°": "turned by 90°",
    "transpose": "transposed",
    "gain 0.5": "half the contrast",
    "offset +20": "20 levels brighter",
    "pad air": "64 pixels of air around it, with its mask",
    "crop air": "its air cropped, with its mask",
    "brighten air": "air 10 levels brighter, outside the mask",
    "pad air, no mask": "64 pixels of air around it, no mask",
}
TRUST = {"noise": "noise", "blur": "blur", "compression": "JPEG"}
KEPT, BROKEN = 0.95, 0.05  # shares of the pictures from which a law counts as obeyed, and up to which as broken
FEW = 5  # pictures; what fewer say stands in brackets


@dataclass(frozen=True)
class Row:
    """One row of laws.csv; see Law in benchmarks/laws.py."""

    images: int
    obeyed: float | None
    worst_span: float | None


Key = tuple[str, str, str, str]  # metric, modality, law, check
Laws = Mapping[Key, Row]


@dataclass(frozen=True)
class Card:
    """What METRICS does not say of a metric. Texts are one paragraph each."""

    measures: str
    formula: str
    definition: str
    mask: str
    agreement: str
    degenerate: str


CARDS: Mapping[str, Card] = {
    "brisque": Card(
        measures="How far the statistics of neighbouring pixels are from those of pictures with known scores.",
        formula="""
            m = (I − μ) / (σ + 1), mean μ and deviation σ under a 7×7 Gaussian window
            f = 18 numbers of the picture and 18 of it at half size: (α, s²) of a generalised Gaussian fitted
                to m, (α, η, left², right²) of an asymmetric one fitted to m·m′ for four neighbours m′
            score = Σᵢ cᵢ exp(−γ ‖f − sᵢ‖²) − ρ, with support vectors sᵢ""",
        definition="as in the authors' release, evaluated in double precision",
        mask="Values count whose whole 7×7 window is judged, and products of two such neighbours.",
        agreement="""With the release's model within 10⁻⁶ of the value, snapped or without flat areas, on the
            31 pictures of the reference set that have a score; unsnapped flat areas within 10⁻² and what the order of
            summation does.""",
        degenerate="""A constant picture, and one without positive or negative products, is not scored. Far from all
            that it was fitted on the score tends to −ρ, whatever the picture.""",
    ),
    "niqe": Card(
        measures="How far the statistics of a picture's blocks are from those of pristine pictures.",
        formula="""
            f_b = 36 numbers of each block b of 96×96 pixels, those of BRISQUE in another arrangement
            score = √( (μ − μₚ) ((C + Cₚ) / 2)⁺ (μ − μₚ)ᵀ ), mean μ and covariance C of f over the blocks,
                    μₚ and Cₚ over the blocks of pristine pictures""",
        definition="as in the authors' release",
        mask="""Blocks are laid from the corner of the mask's bounding box. Values count whose whole 7×7 window is
            judged, and blocks of which at least half the values do.""",
        agreement="""With the release's parameters within 10⁻⁶ of the value, snapped or without flat areas, on the
            30 pictures of the reference set that have a score; unsnapped flat areas within 10⁻² and what the order of
            summation does.""",
        degenerate="Fewer than two blocks, or fewer than two that are not flat: not scored.",
    ),
    "niqe-k": Card(
        measures="NIQE, times how peaked the distribution of the spectrum's logarithm is.",
        formula="""
            L = ln(|FFT(I)| + ε) over all coefficients
            score = NIQE · kurtosis(L) / deviation(L)""",
        definition="""neither code nor full text of the authors could be had; the formula is quoted by another work. The
            natural logarithm, the constant term and ε are choices""",
        mask="NIQE's; for the spectrum, what lies outside the mask becomes the mean of what is judged.",
        agreement="""There is nothing of the authors to agree with. The spectrum's factor is within 10⁻⁶ of an
            independent version of the same formula.""",
        degenerate="""Not scored where NIQE is not. Exact zeros in the spectrum (enlarged or zero-filled pictures)
            dominate it; `eps=1` is the robust form.""",
    ),
    "bliinds": Card(
        measures="How far the statistics of small cosine transforms are from those of pictures with known scores.",
        formula="""
            5×5 DCT of patches 3 pixels apart, at three sizes: variation of |c|, shape γ of a generalised
                Gaussian, energy ratio of bands, variance over orientations
            f = mean and worst tenth of each over the patches, 24 numbers
            score = the x that maximises p(f, x), a linear regression on f; rounded to halves within 0 … 99""",
        definition="as in the authors' release, with its score off by one",
        mask="Patches count that lie wholly inside, at each of the three sizes.",
        agreement="""With the release's parameters the features within 10⁻⁷ and the score exactly, on the 32 pictures
            of the reference set.""",
        degenerate="""The formula gives a constant picture a number; `saqm score` refuses it. Flat patches raise the
            shape, so air without a mask changes the score a lot. Halves make ties; `continuous=True` has none.""",
    ),
    "biqaa": Card(
        measures="How much the information in a picture depends on direction: detail does, noise and blur do not.",
        formula="""
            Wₙ(k) = 8-point pseudo-Wigner distribution along 9 pixels through pixel n; P = W² / Σ W²
            R = −½ log₂ Σ P³ / 3 (Rényi entropy), averaged over the pixels for each of six directions
            score = standard deviation of the six means""",
        definition="as in the authors' MATLAB of 2011",
        mask="Pixels count whose 9×9 neighbourhood is inside.",
        agreement="The six entropies within 10⁻⁹ of the authors' code, on the 32 pictures of the reference set.",
        degenerate="""The formula gives a constant picture 0; `saqm score` refuses it. Flat areas have no entropy in any
            direction and dilute the score.""",
    ),
    "sure-noise": Card(
        measures="How much, in grey levels, the best non-local-means denoiser takes out of the middle of the picture.",
        formula="""
            x_h = non-local means of y: 7×7 patches, 11×11 search, h = 7 σ λ for eight λ, σ by Immerkær
            SURE(h) = mean((x_h − y)²) − σ² + 2 σ² mean(∂x_h / ∂y)
            score = deviation of x_h − y at the h of smallest SURE, on the middle 192×192 pixels""",
        definition="""denoiser and SURE are as published; that the score is what it removes, the sizes and the grid of
            bandwidths are choices: no noise score was published""",
        mask="""Means are taken over the pixels whose 17×17 neighbourhood is judged; the square lies where most of
            them are.""",
        agreement="""There is nothing of the authors to agree with. Noise level, SURE and score are within 10⁻⁶ of an
            independent version of the same equations.""",
        degenerate="""The formula gives a constant picture 0; `saqm score` refuses it. Texture counts as noise. Speckle
            is not the white noise that it assumes.""",
    ),
    "marziliano": Card(
        measures="The mean width of vertical edges, in pixels.",
        formula="""
            edges: horizontal Sobel gradient, gx² > 4 mean(gx²), thinned
            width of an edge pixel = way along its row to the next extremum, left plus right
            score = mean width""",
        definition="""edges as in MATLAB's `edge`; its threshold and what a plateau does (`rule="strict"`: it ends the
            way) are choices, as the paper gives none""",
        mask="An edge counts where its map is certain and its whole way is inside.",
        agreement="""MATLAB's edge map and, under `rule="asu"`, its widths on every pixel of the one picture they are
            published of; the mean within 10⁻⁹ of an independent version.""",
        degenerate="""Without an edge that has a width: not scored. Burned-in text and pictures enlarged by repeating
            pixels have edges of width 1 and look sharp.""",
    ),
    "radial-index": Card(
        measures="How much of the spectrum a little more blur takes away: the more, the sharper.",
        formula="""
            E(r) = mean |FFT(I − mean)| / (H W) over ring r of the spectrum; E′(r): after [1 2 1]/4 both ways
            score = log₁₀ mean |E(r) − E′(r)| over the rings""",
        definition="only abstract and introduction could be read; kernel, rings and logarithm are choices",
        mask="""What lies outside the mask becomes the mean of what is judged: its values do not matter, its outline
            does.""",
        agreement="There is nothing of the authors to agree with. Within 10⁻⁶ of an independent version of this text.",
        degenerate="The formula gives a constant picture −12; `saqm score` refuses it.",
    ),
}

HEAD = """# The classical metrics: what each measures, and what to trust it on

Made by `make docs` from the table METRICS and from what `make laws` measured; do not edit.

```sh
saqm score scan.dcm --model niqe,sure-noise
```

Each metric keeps its own scale and its own direction. A value says little alone: compare pictures of one kind, and look
here first whether the metric sees, on that kind, the damage you care about."""

TRUST_TEXT = f"""## Which metric to trust on what

Each picture was made worse step by step. **✓**: called worse at every step, on at least {KEPT:.0%} of the pictures.
**○**: the last step is called worse than the untouched picture on at least {KEPT:.0%}, but not every step is. A number
is the share on which the last step is called worse, where that is smaller. **✗**: {BROKEN:.0%} or less, the metric
takes the damage for an improvement. In brackets: fewer than {FEW} pictures. –: none can be scored.
\\*: the parameters were fitted on some of these very pictures, which flatters the metric."""

CARDS_TEXT = f"""## The metrics

How to read the tables of laws. *Damage*, in bold: share of the pictures called worse at every step · at the last step.
*The same picture shown differently*: share on which the value moves by at most 1% of the metric's span; ± the largest
move in percent of the span, ∞ where only one of the two can be scored. ✓ is {KEPT:.0%} or more, ✗ {BROKEN:.0%} or less,
brackets are fewer than {FEW} pictures."""


def page() -> str:
    """The whole page, Markdown. Raises ValueError where what was measured is stale or does not bear the summary."""
    laws, values = read_laws(), records("laws_values.csv")
    how = json.loads((RESULTS / "laws.json").read_text(encoding="utf-8"))
    refuse_stale(how)
    parts = [
        HEAD,
        "## In short",
        "\n".join(f"- {sentence}" for sentence in summary(laws)),
        TRUST_TEXT,
        trust_table(laws, values),
        measured(how, values),
        more_than_8_bits(),
        CARDS_TEXT,
        *(card(metric, laws, values) for metric in METRICS.values()),
    ]
    return "\n\n".join(parts) + "\n"


def more_than_8_bits() -> str:
    """The section on bit depth, from bit_depth.csv."""
    rows = records("bit_depth.csv")
    files = list(dict.fromkeys((row["file"], row["modality"]) for row in rows))
    lines = [
        "## More than 8 bits",
        "",
        "Pictures of 10 to 16 bits and of floats are judged as they are, on 0 … 255 with their fractions; no metric "
        "makes a detour through 8 bits but Marziliano's, whose edge rule counts whole levels. What rounding to whole "
        "levels would change, on files that come with pydicom (`benchmarks/bit_depth.py`; –: cannot be scored):",
        "",
        "| metric | " + " | ".join(f"{name} ({modality})" for name, modality in files) + " |",
        "| --- |" + " ---: |" * len(files),
    ]
    found = {(row["metric"], row["file"]): row for row in rows}
    for key, metric in METRICS.items():
        cells = []
        for name, _ in files:
            row = found.get((key, name))
            cells.append("–" if row is None else f"{float(row['value']):.4g} → {float(row['value_8_bit']):.4g}")
        lines.append(f"| {metric.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def refuse_stale(how: Mapping[str, Any]) -> None:
    """Raise ValueError unless each metric was measured with the parameters that ship, and none is missing."""
    for name, run in how["metrics"].items():
        if "sha256" in run and load_parameters(run["parameters"]).sha256 != run["sha256"]:
            raise ValueError(f"{name} was measured with other parameters than ship: measure it anew (make laws)")
    if missing := set(METRICS) - set(how["metrics"]):
        raise ValueError(f"not measured: {', '.join(sorted(missing))} (make laws)")


def read_laws() -> Laws:
    """laws.csv by metric, modality, law and check."""
    return {
        (row["metric"], row["modality"], row["law"], row["check"]): Row(
            int(row["images"]), number(row["obeyed"]), number(row["worst_span"])
        )
        for row in records("laws.csv")
    }


def records(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def number(text: str) -> float | None:
    return float(text) if text else None


def names(laws: Laws) -> list[str]:
    """What was measured, as on the command line: "niqe", "niqe:niqe-ct"; in the order of METRICS."""
    return list(dict.fromkeys(metric for metric, *_ in laws))


# Tables


def table(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---", *(":---:" for _ in head[1:])], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def trust_table(laws: Laws, values: list[dict[str, str]]) -> str:
    fitted = {(row["metric"], row["modality"]) for row in values if row["fitted_on"] != "0"}
    heads = [f"{said}: {modality}" for said in TRUST.values() for modality in MODALITIES]
    body = [
        [
            label(name),
            *(trust(laws, name, m, ladder) + "\\*" * ((name, m) in fitted) for ladder in TRUST for m in MODALITIES),
        ]
        for name in names(laws)
    ]
    return table(["metric", *heads], body)


def trust(laws: Laws, name: str, modality: str, ladder: str) -> str:
    """One cell of the table at the top."""
    every, last = (laws[name, modality, ladder, check] for check in ("every step", "last step"))
    return mark(every) if every.obeyed is not None and every.obeyed >= KEPT else mark(last).replace("✓", "○")


def mark(row: Row) -> str:
    """A share as ✓, ✗ or percent; in brackets where few pictures say so."""
    if row.obeyed is None:
        return "–"
    said = "✓" if row.obeyed >= KEPT else "✗" if row.obeyed <= BROKEN else f"{row.obeyed:.0%}"
    return f"({said})" if row.images < FEW else said


def label(name: str) -> str:
    """A measured metric with its parameters, linked to its card."""
    metric, parameters = METRICS[name.partition(":")[0]], parameters_of(name)
    anchor = re.sub(r"[^\w\- ]", "", metric.title).lower().replace(" ", "-")  # as GitHub makes it of the heading
    return f"[{metric.title}](#{anchor})" + (f" ({parameters})" if parameters else "")


def parameters_of(name: str) -> str | None:
    metric, _, parameters = name.partition(":")
    return parameters or METRICS[metric].default


def laws_table(name: str, laws: Laws) -> str:
    """The laws of one metric: a column for each modality."""
    body = []
    for law, said in LADDERS.items():
        checks = [[mark(laws[name, m, law, check]) for check in ("every step", "last step")] for m in MODALITIES]
        body.append([f"**{said}**", *("–" if cell == ["–", "–"] else " · ".join(cell) for cell in checks)])
    for law, said in INVARIANCES.items():
        body.append([said, *(unchanged(laws[name, m, law, "unchanged"]) for m in MODALITIES)])
    return table(["", *MODALITIES], body)


def unchanged(row: Row) -> str:
    """How an invariance was kept, and the largest move in percent of the span."""
    if row.worst_span is None:
        return "–"
    if not row.worst_span:
        return f"{mark(row)} exact"
    size = (
        "∞"
        if row.worst_span == float("inf")
        else f"{100 * row.worst_span:.2g}"
        if row.worst_span < 1
        else f"{100 * row.worst_span:.0f}"
    )
    return f"{mark(row)} ±{size}"


def values_table(name: str, values: list[dict[str, str]]) -> str:
    body = []
    for row in values:
        if row["metric"] == name:
            pictures = row["images"] + (f", {row['refused']} refused" if row["refused"] != "0" else "")
            numbers = (row[column] or "–" for column in ("smallest", "median", "largest", "span"))
            body.append([row["modality"], pictures, *numbers])
    return table(["untouched", "pictures", "smallest", "median", "largest", "span, damaged ones included"], body)


# Text


def prose(text: str) -> str:
    return " ".join(text.split())


def card(metric: Metric, laws: Laws, values: list[dict[str, str]]) -> str:
    """One metric: what it is, what it scores, its laws."""
    text = CARDS[metric.name]
    formula = "\n".join(line.removeprefix(" " * 12) for line in text.formula.strip("\n").splitlines())
    facts = {
        "direction": f"**{metric.direction}**",
        "range": metric.range,
        "source": metric.source,
        metric.exact: prose(text.definition),
        "parameters": parameter_sets(metric),
        "smallest picture": metric.smallest,
        "with a mask": prose(text.mask),
        "agreement": prose(text.agreement),
        "degenerate": prose(text.degenerate),
    }
    parts = [
        f"### {metric.title}",
        f"`--model {metric.name}`. {text.measures}",
        f"```text\n{formula}\n```",
        "\n".join(f"- **{name}**: {said}" for name, said in facts.items()),
    ]
    for name in names(laws):
        if name.partition(":")[0] == metric.name:
            parameters = parameters_of(name)
            parts += [f"With {parameters}:"] * bool(parameters)
            parts += [values_table(name, values), laws_table(name, laws)]
    return "\n\n".join(parts)


def parameter_sets(metric: Metric) -> str:
    """Which parameters ship for a metric, with links to their cards."""
    if metric.parameters is None:
        return "none needed"
    there = sorted(file.stem for file in SETS.glob(f"{metric.parameters}-*.safetensors"))
    linked = [
        f"[{name}](../src/saqm/models/metrics/{name}.md)" + " (default)" * (name == metric.default) for name in there
    ]
    return f"{', '.join(linked)}; your own, and the authors' file, by `saqm fit {metric.parameters}`"


def measured(how: Mapping[str, Any], values: list[dict[str, str]]) -> str:
    """How the laws were measured: pictures, damage, commits."""
    count = {modality: len(pictures) for modality, pictures in how["pictures"].items()}
    strengths = "; ".join(f"{law} {', '.join(f'{s:g}' for s in steps)}" for law, steps in how["ladders"].items())
    runs = sorted({(run["made"][:10], run["commit"][:10]) for run in how["metrics"].values()})
    fitted = [row for row in values if int(row["fitted_on"])]
    known = ", ".join(f"{row['metric']} on {row['fitted_on']} of {row['modality']}" for row in fitted)
    return f"""## How this was measured

By `{how["command"]}` ({", ".join(f"{day}, commit {commit}" for day, commit in runs)}). All rows are in
[laws.csv](../benchmarks/results/laws.csv), the rest in [laws.json](../benchmarks/results/laws.json).

- natural, {count["natural"]}: eight photographs of the Kodak set, six that come with scikit-image;
- CT, {count["CT"]}: the normal-dose slices of the [reader study](data.md), abdomen and brain;
- MR, {count["MR"]}: an abdomen and a small head of pydicom, six slices of one echo-planar brain of nibabel. These are
  three patients: an anecdote, no more;
- ultrasound, {count["ultrasound"]}: four files of pydicom, ten abdominal frames from seven series.

Pictures are read and masked as `saqm score` does. After each damage they are in whole grey levels of 0 … 255, and the
mask stays that of the untouched picture. The span of a metric on a modality reaches from the 5th to the 95th percentile
of its values there, untouched and damaged.

Strengths, as in `saqm.degradations`: {strengths}. Noise and grain (the correlated noise) are in grey levels,
blur in pixels, compression is 100 minus the JPEG quality, median the side of the window, shrink the factor down and up
again.

Not independent: parameters were fitted on some of these pictures ({known})."""


# The summary


def summary(laws: Laws) -> Iterator[str]:
    """The sentences. Raises ValueError for one that the measurement does not bear."""
    for sentence, holds in claims(laws):
        if not holds:
            raise ValueError(f"laws.csv does not bear this sentence of docs/metrics.md: {sentence!r}")
        yield sentence


def claims(laws: Laws) -> Iterator[tuple[str, bool]]:
    """The plain words at the top, each with what makes it true."""

    def share(name: str, law: str, modality: str, check: str = "last step") -> float:
        return laws[name, modality, law, check].obeyed or 0.0

    def shares(name: str, law: str, check: str = "last step") -> list[float]:
        return [share(name, law, modality, check) for modality in MODALITIES]

    def follows(law: str) -> list[str]:
        """Who calls every step worse on all four kinds of picture."""
        return [name for name in names(laws) if min(shares(name, law, "every step")) >= KEPT]

    def move(name: str, law: str) -> float:
        return max(laws[name, modality, law, "unchanged"].worst_span or 0.0 for modality in MODALITIES)

    everything = [
        name for name in names(laws) for m in MODALITIES if all("✓" in trust(laws, name, m, each) for each in TRUST)
    ]
    yield (
        "**No metric sees everything.** None calls noise, blur and JPEG worse at every step, not on any one kind "
        "of picture. Take metrics that complement each other: `sure-noise` with `marziliano` or `radial-index`.",
        not everything and follows("noise") == ["sure-noise"] and follows("blur") == ["marziliano", "radial-index"],
    )
    yield (
        "**Noise:** `sure-noise` alone calls more white noise worse at every step on all four kinds of picture. "
        "But low noise is not quality: on at least 85% of the pictures of each kind it takes heavy blur, strong "
        "JPEG and lost resolution for an improvement. Never judge a denoiser by it alone.",
        follows("noise") == ["sure-noise"]
        and all(max(shares("sure-noise", law)) <= 0.15 for law in ("blur", "compression", "shrink")),
    )
    yield (
        "**Blur:** `marziliano` and `radial-index` alone call more blur worse at every step on all four kinds. "
        "Both take noise for sharpness: `radial-index` on every picture, `marziliano` on "
        f"{1 - share('marziliano', 'noise', 'CT'):.0%} of the CT slices and on all other pictures.",
        follows("blur") == ["marziliano", "radial-index"]
        and max(shares("radial-index", "noise")) == 0
        and [modality for modality in MODALITIES if share("marziliano", "noise", modality)] == ["CT"],
    )
    yield (
        "**JPEG:** no metric follows every step on all four kinds. `brisque` calls the last step worse on every "
        f"picture, but each step on {share('brisque', 'compression', 'natural', 'every step'):.0%} of the "
        f"photographs and {share('brisque', 'compression', 'CT', 'every step'):.0%} of the CT slices only.",
        not follows("compression") and min(shares("brisque", "compression")) == 1,
    )
    yield (
        "**NIQE is no judge of noise in medical pictures.** It calls the heaviest noise worse on every photograph, "
        f"but on {share('niqe', 'noise', 'CT'):.0%} of the CT slices; and there is no CT, MR or ultrasound picture "
        "on which it calls more noise worse at every step.",
        share("niqe", "noise", "natural") == 1
        and share("niqe", "noise", "CT") < 0.75
        and not any(share("niqe", "noise", modality, "every step") for modality in MODALITIES[1:]),
    )
    yield (
        "**Parameters decide:** fitted to CT, `niqe:niqe-ct` follows noise on every CT slice, where `niqe` does on "
        "none. Those are the slices it was fitted to, though; and on photographs it follows blur on "
        f"{share('niqe:niqe-ct', 'blur', 'natural', 'every step'):.0%}, where `niqe` does on "
        f"{share('niqe', 'blur', 'natural', 'every step'):.0%}.",
        share("niqe:niqe-ct", "noise", "CT", "every step") == 1
        and share("niqe", "blur", "natural", "every step")
        > share("niqe:niqe-ct", "blur", "natural", "every step") + 0.5,
    )
    yield (
        "**Noise that is not white**, as after a soft kernel, is seen by no metric on all four kinds: `sure-noise` "
        f"calls its last step worse on {share('sure-noise', 'grain', 'CT'):.0%} of the CT slices, but on "
        f"{share('sure-noise', 'grain', 'natural'):.0%} of the photographs.",
        all(min(shares(name, "grain")) < KEPT for name in names(laws))
        and share("sure-noise", "grain", "CT") >= KEPT
        and share("sure-noise", "grain", "natural") < 0.5,
    )
    yield (
        "**Block edges look like detail** to `biqaa`: it follows noise and blur on photographs, but calls the "
        f"strongest JPEG worse on {share('biqaa', 'compression', 'natural'):.0%} of them and on "
        f"{share('biqaa', 'compression', 'CT'):.0%} of the CT slices.",
        all(share("biqaa", law, "natural", "every step") >= KEPT for law in ("noise", "blur"))
        and share("biqaa", "compression", "natural") < 0.5
        and share("biqaa", "compression", "CT") < 0.1,
    )
    yield (
        "**The mask decides.** With it, adding, cropping or brightening air changes no score at all. Without it, "
        f"64 pixels of air move `brisque` by up to {move('brisque', 'pad air, no mask'):.0%} of its span and "
        f"`bliinds` by up to {move('bliinds', 'pad air, no mask'):.0%}.",
        not any(move(name, law) for name in names(laws) for law in ("pad air", "crop air", "brighten air"))
        and min(move(name, "pad air, no mask") for name in ("brisque", "bliinds")) > 0.3,
    )
    yield (
        "**Orientation:** only `biqaa` and `radial-index` do not care at all how a picture is mirrored or turned. "
        f"Mirrored, `brisque` moves by up to {move('brisque', 'flip left-right'):.0%} of its span; upside down, "
        f"`niqe` by up to {move('niqe', 'flip up-down'):.0%}. Compare pictures in one orientation.",
        exact_when_turned(laws) == ["biqaa", "radial-index"],
    )


def exact_when_turned(laws: Laws) -> list[str]:
    """Metrics that no mirror and no turn moves at all."""
    turns = ("flip left-right", "flip up-down", "rotate 90°", "transpose")
    return [
        name
        for name in names(laws)
        if all(laws[name, m, turn, "unchanged"].worst_span == 0 for m in MODALITIES for turn in turns)
    ]


def main() -> None:
    """Write the page, or check it."""
    made = page()
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text(encoding="utf-8") != made)
    PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
