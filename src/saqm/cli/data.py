"""`saqm data`: folders into manifests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from saqm.cli.terminal import (
    AsJson,
    print_json,
)

commands = typer.Typer(help="Turn a folder of images into a manifest.", no_args_is_help=True)


@commands.command("folder", epilog="Example: saqm data folder images/ --out manifest.csv --scene '(patient[0-9]+)'")
def data_folder(
    root: Annotated[Path, typer.Argument(help="Folder of images.")],
    *,
    out: Annotated[Path, typer.Option(help="Manifest to write, .csv or .jsonl.")],
    pattern: Annotated[str, typer.Option(help="Which files, by their path below the folder.")] = "*",
    scene: Annotated[
        str | None, typer.Option(help="Regular expression whose first group is the scene; else the file's stem.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Regular expression whose first group is the method.")] = None,
    domain: Annotated[str | None, typer.Option(help="One word for the whole folder: ct-abdomen.")] = None,
    as_json: AsJson = False,
) -> None:
    """List a folder's images as a manifest with empty scores, to be filled in."""
    from saqm.datasets import folder
    from saqm.manifest import DEFAULT_DOMAIN

    _write_manifest(
        folder(root, pattern, scene_from=scene, method_from=method, domain=domain or DEFAULT_DOMAIN), out, as_json
    )


@commands.command("ct-reader-study", epilog="Example: saqm data ct-reader-study ct_reader_study/ --out study.csv")
def data_ct_reader_study(
    root: Annotated[Path, typer.Argument(help="The study's folder: scores.csv and images/.")],
    out: Annotated[Path, typer.Option(help="Manifest to write, .csv or .jsonl.")],
    organ: Annotated[Literal["abdomen", "brain"] | None, typer.Option(help="One of the two alone.")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn the CT reader study (denoised CT, three radiologists) into a manifest."""
    from dataclasses import replace

    from saqm.datasets import ct_reader_study

    study = ct_reader_study(root)
    if organ is not None:
        study = replace(study, rows=tuple(row for row in study.rows if row.domain == f"ct-{organ}"))
    _write_manifest(study, out, as_json)


Root = Annotated[Path, typer.Argument(help="The set's folder, as its authors give it.")]
ManifestOut = Annotated[Path, typer.Option("--out", help="Manifest to write, .csv or .jsonl.")]
Partial = Annotated[bool, typer.Option("--partial", help="Take a part of the set; the manifest says so.")]
References = Annotated[
    bool, typer.Option("--references", help="List the undegraded photographs too, without scores: twins for pretrain.")
]


@commands.command("tid2013", epilog="Example: saqm data tid2013 tid2013/ --distortions denoised --out tid.csv")
def data_tid2013(
    root: Root,
    *,
    out: ManifestOut,
    distortions: Annotated[
        str | None, typer.Option(help="Numbers 1 to 24 by commas, or denoised: the 125 images of the paper.")
    ] = None,
    references: References = False,
    partial: Partial = False,
    as_json: AsJson = False,
) -> None:
    """Turn TID2013 into a manifest: photographs with 24 distortions at 5 levels."""
    from saqm.datasets import tid2013

    chosen: Sequence[int] | Literal["denoised"] | None = "denoised" if distortions == "denoised" else None
    if distortions is not None and chosen is None:
        chosen = _numbers(distortions)
    _write_manifest(tid2013(root, distortions=chosen, references=references, partial=partial), out, as_json)


@commands.command("kadid10k", epilog="Example: saqm data kadid10k kadid10k/ --out kadid.csv")
def data_kadid10k(
    root: Root, out: ManifestOut, references: References = False, partial: Partial = False, as_json: AsJson = False
) -> None:
    """Turn KADID-10k into a manifest: photographs with 25 distortions at 5 levels."""
    from saqm.datasets import kadid10k

    _write_manifest(kadid10k(root, references=references, partial=partial), out, as_json)


@commands.command("koniq10k", epilog="Example: saqm data koniq10k koniq10k/ --size 512x384 --out koniq.csv")
def data_koniq10k(
    root: Root,
    out: ManifestOut,
    size: Annotated[str, typer.Option(help="Which of the set's folders of pictures.")] = "1024x768",
    partial: Partial = False,
    as_json: AsJson = False,
) -> None:
    """Turn KonIQ-10k into a manifest: photographs as people took them."""
    from saqm.datasets import koniq10k

    _write_manifest(koniq10k(root, size=size, partial=partial), out, as_json)


@commands.command("live", epilog="Example: saqm data live databaserelease2/ --out live.csv")
def data_live(
    root: Root, out: ManifestOut, references: References = False, partial: Partial = False, as_json: AsJson = False
) -> None:
    """Turn the LIVE database, release 2, into a manifest: photographs with 5 distortions."""
    from saqm.datasets import live

    _write_manifest(live(root, references=references, partial=partial), out, as_json)


@commands.command("csiq", epilog="Example: saqm data csiq csiq/ --out csiq.csv")
def data_csiq(
    root: Root, out: ManifestOut, references: References = False, partial: Partial = False, as_json: AsJson = False
) -> None:
    """Turn CSIQ into a manifest: photographs with 6 distortions."""
    from saqm.datasets import csiq

    _write_manifest(csiq(root, references=references, partial=partial), out, as_json)


@commands.command("ldctiqac2023", epilog="Example: saqm data ldctiqac2023 train/ --scenes patients.csv --out ldct.csv")
def data_ldctiqac2023(
    root: Root,
    out: ManifestOut,
    scenes: Annotated[
        str,
        typer.Option(help="A CSV with the columns image and scene, or image: each one a scene, which leaks content."),
    ],
    partial: Partial = False,
    as_json: AsJson = False,
) -> None:
    """Turn the low-dose CT challenge of 2023 into a manifest: abdominal slices, scored by radiologists."""
    from saqm.datasets import ldctiqac2023

    _write_manifest(ldctiqac2023(root, scenes=scenes, partial=partial), out, as_json)


@commands.command("md72", epilog="Example: saqm data md72 md72/ --out md72.csv")
def data_md72(root: Root, out: ManifestOut, partial: Partial = False, as_json: AsJson = False) -> None:
    """Turn the paper's liver ultrasound set into a manifest: 12 scenes, each with 5 versions."""
    from saqm.datasets import md72

    _write_manifest(md72(root, partial=partial), out, as_json)


@commands.command("surrogate", epilog="Example: saqm data surrogate photographs/ --out surrogate/")
def data_surrogate(
    root: Annotated[Path, typer.Argument(help="Folder of good photographs.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder to make: pictures and manifest.csv.")],
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    denoisers: Annotated[
        str | None, typer.Option(help="By commas, of wavelet, tv, nlm, bilateral, bm3d; without it the first three.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a scored set from photographs: noised, denoised, scored by SSIM. A surrogate, for nobody judged it."""
    from saqm.datasets import surrogate
    from saqm.datasets.surrogate import DEFAULT_DENOISERS

    chosen = DEFAULT_DENOISERS if denoisers is None else tuple(denoisers.split(","))
    made = surrogate(root, out, seed=seed, denoisers=chosen)
    _report(made, out / "manifest.csv", as_json)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--distortions {text}: numbers by commas, such as 8,9, or denoised") from None


def _write_manifest(manifest: Any, out: Path, as_json: bool) -> None:
    from saqm.manifest import write_manifest

    write_manifest(manifest, out)
    _report(manifest, out, as_json)


def _report(manifest: Any, out: Path, as_json: bool) -> None:
    scenes = len({row.scene for row in manifest.rows})
    if as_json:
        print_json({"manifest": str(out), "images": len(manifest.rows), "scenes": scenes})
    else:
        typer.echo(f"{out}: {len(manifest.rows)} images of {scenes} scenes")
