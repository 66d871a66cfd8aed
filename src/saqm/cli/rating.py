"""`saqm rate` and `saqm agreement`: readers' scores, and how far to trust them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saqm.cli.terminal import AsJson, AxisOption, ModelOption, print_json, say

if TYPE_CHECKING:
    from saqm.manifest import Row
    from saqm.rating.study import Which

commands = typer.Typer()


@commands.command(
    epilog="Examples: saqm rate images/ --out study.csv --domain ct-chest --scene '(patient[0-9]+)' · "
    "saqm rate images/ --out study.csv --rater ada --scale 0 100 --question 'How well can you see the vessels?'"
)
def rate(
    images: Annotated[Path, typer.Argument(help="Folder of images, or a manifest that lists them.")],
    *,
    out: Annotated[Path, typer.Option(help="Manifest to write, .csv or .jsonl; the ratings are kept beside it.")],
    rater: Annotated[str | None, typer.Option(help="Who rates; without it the page asks.")] = None,
    scale: Annotated[
        tuple[float, float],
        typer.Option(metavar="LOW HIGH", help="1 5: five grades, bad to excellent. Any other: a slider."),
    ] = (1, 5),
    question: Annotated[str | None, typer.Option(help="What readers are asked, above each image.")] = None,
    repeats: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share of the images shown twice; 5 at least, unless 0.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Of every reader's order.")] = 0,
    frame: Annotated[
        str, typer.Option(metavar="first|middle|N", help="Which frame or slice of a file that holds several.")
    ] = "first",
    axis: AxisOption = None,
    pattern: Annotated[str, typer.Option(help="Which files of a folder, by their path below it.")] = "*",
    scene: Annotated[
        str | None, typer.Option(help="Regular expression whose first group is the scene; else the file's stem.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Regular expression whose first group is the method.")] = None,
    domain: Annotated[str | None, typer.Option(help="One word for the whole folder: ct-abdomen.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 takes a free one.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the page's address.")] = False,
    as_json: AsJson = False,
) -> None:
    """Rate images blind on a page in the browser, and write the scores as a manifest to train from.

    The page is served to this machine alone. Each rating is kept at once: stop with Ctrl-C, and the same command goes
    on. Several readers: one after the other, each by a name. Exit code 1 where some images could not be shown.
    """
    from saqm.manifest import Scale
    from saqm.rating.journal import begin
    from saqm.rating.server import RatingServer
    from saqm.rating.study import QUESTION, plan

    rows = _rows(images, pattern=pattern, scene=scene, method=method, domain=domain)
    say(f"reading {len(rows)} images")
    study, left_out = plan(
        rows,
        Scale(*scale, name=question or QUESTION),
        seed=seed,
        repeats=repeats,
        which=_which(frame),
        axis=axis,
    )
    for reason in left_out:
        say(f"left out: {reason}")
    if several := sum(shown.frame is not None for shown in study.images):
        say(f"note: {several} files hold several frames or slices: {frame} is shown; training cannot read such files")
    journal = begin(out, study)
    server = RatingServer(journal, out, on_problem=say, reader=rater, port=port)
    say(f"rate on {server.url}\nCtrl-C stops; the same command goes on. Ratings: {journal.path}")
    if not no_browser:
        typer.launch(server.url)
    ratings = server.serve_until_interrupted()
    counts = {reader: len(given) for reader, given in ratings.by_reader.items()}
    if as_json:
        files = {"manifest": str(out), "ratings": str(journal.path)}
        print_json({**files, "images": len(study.images), "left_out": len(left_out), "readers": counts})
    else:
        who = ", ".join(f"{reader} {count}" for reader, count in counts.items()) or "none"
        typer.echo(f"{out}: {len(study.images)} images; ratings: {who}")
    if counts:
        say(f"how far they agree: saqm agreement {journal.path}")
    if left_out:
        raise typer.Exit(1)


def _rows(images: Path, *, pattern: str, scene: str | None, method: str | None, domain: str | None) -> tuple[Row, ...]:
    from saqm.datasets import folder
    from saqm.manifest import DEFAULT_DOMAIN, read_manifest

    if images.suffix.lower() not in (".csv", ".jsonl"):
        found = folder(images, pattern, scene_from=scene, method_from=method, domain=domain or DEFAULT_DOMAIN)
        return found.rows
    if pattern != "*" or any(option is not None for option in (scene, method, domain)):
        raise typer.BadParameter("a manifest says scene, method and domain itself; leave those options out")
    return read_manifest(images).rows


def _which(frame: str) -> Which:
    if frame == "first":
        return "first"
    if frame == "middle":
        return "middle"
    if frame.isdecimal():
        return int(frame)
    raise typer.BadParameter(f"--frame {frame}: first, middle, or a number from 0")


@commands.command(epilog="Examples: saqm agreement study.ratings.jsonl · saqm agreement study.csv --model saqm-ct")
def agreement(
    ratings: Annotated[Path, typer.Argument(help="What saqm rate kept, or a manifest with score_r1, score_r2, …")],
    *,
    model: ModelOption = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Tell how far readers agree with each other, with themselves, and with a model; and whether a model can be fitted.

    Intraclass correlations, rank correlations with intervals, and, from the ratings that saqm rate kept, how well
    readers agreed with themselves on images shown twice.
    """
    from saqm.agreement import agreement as agree
    from saqm.evaluate import evaluate
    from saqm.manifest import read_manifest
    from saqm.rating.journal import SUFFIX, read_ratings
    from saqm.scorer import load_scorer

    if ratings.name.endswith(SUFFIX):
        kept = read_ratings(ratings)
        manifest, names, repeats = kept.manifest(), tuple(kept.by_reader), kept.repeats()
    else:
        manifest, names, repeats = read_manifest(ratings, check_files=model is not None), (), {}
    scorer = None if model is None else load_scorer(model)
    found = agree(
        manifest,
        seed=seed,
        names=names,
        repeats=repeats,
        evaluation=None if scorer is None else evaluate(scorer, manifest, seed=seed),
        scorer="" if scorer is None else scorer.name,
    )
    typer.echo(found.to_json() if as_json else found.to_text(), nl=False)
    if found.unscored:
        raise typer.Exit(1)
