"""The data sets of photographs on which blind metrics are usually trained and compared.

"Seen" in a docstring: in the published score file itself or a copy of it, or alike in several programs that read it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from saqm.datasets._matlab import variables
from saqm.datasets._published import Published, assembled, finite, found_by_name, located, table, text_of
from saqm.datasets._workbook import sheet_rows
from saqm.errors import ManifestError
from saqm.manifest import Manifest, Row, Scale

TID2013 = Published(
    title="TID2013",
    domain="tid2013",
    scale=Scale(
        low=0,
        high=9,
        name="TID2013 mean opinion score",
        licence="educational and research use only, without fee; the terms are in the readme of the archive",
        citation="Ponomarenko et al., Image database TID2013: Peculiarities, results and perspectives, "
        "Signal Processing: Image Communication 30 (2015) 57-77, doi 10.1016/j.image.2014.10.009",
    ),
    layout="a folder with reference_images/, distorted_images/, mos_with_names.txt and mos_std.txt",
    source="https://www.ponomarenko.info/tid2013.htm",
)
TID2013_DISTORTIONS = (
    "additive Gaussian noise", "noise in colour components", "spatially correlated noise", "masked noise",
    "high frequency noise", "impulse noise", "quantization noise", "Gaussian blur", "image denoising", "JPEG",
    "JPEG2000", "JPEG transmission errors", "JPEG2000 transmission errors", "non eccentricity pattern noise",
    "block-wise distortions", "mean shift", "contrast change", "change of colour saturation",
    "multiplicative Gaussian noise", "comfort noise", "lossy compression of noisy images",
    "colour quantization with dither", "chromatic aberrations", "sparse sampling and reconstruction",
)  # fmt: skip
TID2013_DENOISED = 9  # distortion of the SAQM paper's 125 denoised images
_TID_SCENES, _LEVELS = 25, 5


def tid2013(
    root: str | Path,
    *,
    distortions: Iterable[int] | Literal["denoised"] | None = None,
    references: bool = False,
    partial: bool = False,
) -> Manifest:
    """TID2013: 25 photographs × 24 distortions × 5 levels, mean opinion 0 to 9, 9 best.

    distortions: which of 1..24; "denoised" is 9, the SAQM paper's 125 images; None is all.
    references: the undegraded photographs as rows too, without score. partial: take what is there.
    Scene: the photograph. Method: distortion and level, so that a method oracle knows the level ("image denoising 3").
    Names are found in any case (the lists mix I01_01_1.bmp and i01_01_2.bmp, I24.BMP and i25.bmp). Seen: layout, names
    and all 3000 scores. mos_std.txt is the standard error of the mean, not the spread of the opinions (3000 of 3000
    entries are those of whole-number opinions so, 6 of 3000 otherwise): it becomes the aspect `mos_se`, and score_sd
    stays unknown. Raises ManifestError for another layout, missing files, and every bad line.
    """
    chosen = _chosen(distortions)
    where, originals, distorted, list_path, errors_path = located(
        TID2013, root, "reference_images", "distorted_images", "mos_with_names.txt", "mos_std.txt"
    )
    files, lines = found_by_name(distorted), text_of(list_path).split("\n")
    lines = [line for line in lines if line.strip()]
    errors = text_of(errors_path).split()
    problems, rows, listed = list[str](), list[Row](), set[str]()
    if len(errors) != len(lines):
        problems.append(f"mos_std.txt has {len(errors)} entries, mos_with_names.txt {len(lines)}")
    if len(lines) != _TID_SCENES * len(TID2013_DISTORTIONS) * _LEVELS and not partial:
        problems.append(f"mos_with_names.txt has {len(lines)} lines, wanted 3000")
    for number, (line, error) in enumerate(zip(lines, errors, strict=False), 1):
        try:
            score, name = _words(line)
            scene, distortion, level = _tid_name(name)
            row = Row(
                path=files.get(name.lower(), distorted / name),
                score=finite(score),
                scene=f"tid2013-i{scene:02d}",
                domain=TID2013.domain,
                method=f"{TID2013_DISTORTIONS[distortion - 1]} {level}",
                aspects={"mos_se": finite(error)},
            )
        except ValueError as wrong:
            problems.append(f"mos_with_names.txt, line {number}: {wrong}")
            continue
        if name.lower() in listed:
            problems.append(f"mos_with_names.txt, line {number}: {name} stands there twice")
        listed.add(name.lower())
        if distortion in chosen:
            rows.append(row)
    if references:
        names = [f"I{scene:02d}.BMP" for scene in range(1, _TID_SCENES + 1)]
        rows += _originals(TID2013, originals, {f"tid2013-{name[:3].lower()}": name for name in names})
    return assembled(TID2013, where, rows, problems, images=_TID_SCENES * _LEVELS * len(chosen), partial=partial)


def _words(line: str) -> tuple[str, str]:
    words = line.split()
    if len(words) != 2:
        raise ValueError(f"{line.strip()!r} is no score with a name")
    return words[0], words[1]


def _chosen(distortions: Iterable[int] | str | None) -> frozenset[int]:
    known = frozenset(range(1, len(TID2013_DISTORTIONS) + 1))
    if distortions is None:
        return known
    named = {"denoised": frozenset({TID2013_DENOISED})}
    chosen = named.get(distortions, frozenset()) if isinstance(distortions, str) else frozenset(distortions)
    if not chosen or not chosen <= known:
        raise ManifestError(f'distortions {distortions!r}: wanted some of 1..{max(known)}, "denoised", or None for all')
    return chosen


def _tid_name(name: str) -> tuple[int, int, int]:
    """Scene, distortion and level of a name like i01_09_3.bmp."""
    match = re.fullmatch(r"i(\d\d)_(\d\d)_(\d)\.bmp", name, re.IGNORECASE)
    scene, distortion, level = (int(part) for part in match.groups()) if match else (0, 0, 0)
    if not (1 <= scene <= _TID_SCENES and 1 <= distortion <= len(TID2013_DISTORTIONS) and 1 <= level <= _LEVELS):
        raise ValueError(f"{name!r} is no name like i01_09_3.bmp")
    return scene, distortion, level


def _originals(published: Published, folder: Path, name_by_scene: dict[str, str]) -> list[Row]:
    """The undegraded photographs as rows without score."""
    files = found_by_name(folder)
    return [
        Row(files.get(name.lower(), folder / name), None, scene, published.domain, reference=True)
        for scene, name in name_by_scene.items()
    ]


KADID10K = Published(
    title="KADID-10k",
    domain="kadid10k",
    scale=Scale(
        low=1,
        high=5,
        name="KADID-10k: crowd scores of the degradation, called dmos, 5 = imperceptible",
        licence="no licence text seen by us: see the database's page",
        citation="Lin, Hosu, Saupe, KADID-10k: A Large-scale Artificially Distorted IQA Database, QoMEX 2019, "
        "doi 10.1109/QoMEX.2019.8743252",
    ),
    layout="a folder with images/ and dmos.csv (dist_img,ref_img,dmos,var)",
    source="https://database.mmsp-kn.de/kadid-10k-database.html",
)
KADID10K_DISTORTIONS = (
    "Gaussian blur", "lens blur", "motion blur", "colour diffusion", "colour shift", "colour quantization",
    "colour saturation 1", "colour saturation 2", "JPEG2000", "JPEG", "white noise", "white noise in colour components",
    "impulse noise", "multiplicative noise", "denoise", "brighten", "darken", "mean shift", "jitter",
    "non-eccentricity patch", "pixelate", "quantization", "colour block", "high sharpen", "contrast change",
)  # fmt: skip
_KADID_SCENES = 81


def kadid10k(root: str | Path, *, references: bool = False, partial: bool = False) -> Manifest:
    """KADID-10k: 81 photographs × 25 distortions × 5 levels, 1 to 5, 5 best (although the column is called dmos).

    Scene: the photograph. Method: distortion and level. Seen: layout, header, names and scores; that `var` is the
    standard deviation of about 30 opinions (4.57 with 0.496, 1.1 with 0.3), not their variance: it becomes score_sd.
    Not seen: the published names of distortions 17 to 25. Options and errors as in `tid2013`.
    """
    where, images, list_path = located(KADID10K, root, "images", "dmos.csv")
    files = found_by_name(images)
    problems, rows = list[str](), list[Row]()
    for line, cells in table(KADID10K, list_path, "dist_img", "ref_img", "dmos", "var"):
        try:
            name, original = cells["dist_img"], cells["ref_img"]
            match = re.fullmatch(r"(I\d\d)_(\d\d)_(\d\d)\.png", name, re.IGNORECASE)
            if match is None or not 1 <= int(match[2]) <= len(KADID10K_DISTORTIONS):
                raise ValueError(f"{name!r} is no name like I01_09_03.png")
            if original.lower() != f"{match[1]}.png".lower():
                raise ValueError(f"{name} has the reference {original!r}, wanted {match[1]}.png")
            rows.append(
                Row(
                    path=files.get(name.lower(), images / name),
                    score=finite(cells["dmos"]),
                    scene=f"kadid10k-{match[1].lower()}",
                    domain=KADID10K.domain,
                    score_sd=finite(cells["var"]),
                    method=f"{KADID10K_DISTORTIONS[int(match[2]) - 1]} {int(match[3])}",
                )
            )
        except ValueError as wrong:
            problems.append(f"dmos.csv, line {line}: {wrong}")
    if references:
        names = [f"I{scene:02d}.png" for scene in range(1, _KADID_SCENES + 1)]
        rows += _originals(KADID10K, images, {f"kadid10k-{name[:3].lower()}": name for name in names})
    wanted = _KADID_SCENES * len(KADID10K_DISTORTIONS) * _LEVELS
    return assembled(KADID10K, where, rows, problems, images=wanted, partial=partial)


KONIQ10K = Published(
    title="KonIQ-10k",
    domain="koniq10k",
    scale=Scale(
        low=1,
        high=5,
        name="KonIQ-10k mean opinion score of the crowd",
        licence="no licence text seen by us: photographs from YFCC100M under their owners' Creative Commons licences, "
        "see the database's page",
        citation="Hosu, Lin, Szirányi, Saupe, KonIQ-10k: An ecologically valid database for deep learning of blind "
        "image quality assessment, IEEE Transactions on Image Processing 29 (2020) 4041-4056, "
        "doi 10.1109/TIP.2020.2967829",
    ),
    layout="a folder with 1024x768/ (or the size asked for) and koniq10k_scores_and_distributions.csv",
    source="https://database.mmsp-kn.de/koniq-10k-database.html",
)
_KONIQ_IMAGES = 10073
_KONIQ_SPLITS = "koniq10k_distributions_sets.csv"


def koniq10k(root: str | Path, *, size: str = "1024x768", partial: bool = False) -> Manifest:
    """KonIQ-10k: 10,073 photographs as found, mean opinion 1 to 5, 5 best.

    size: the folder of images, 1024x768 or 512x384. Scene: each photograph is its own. Where the authors' division
    koniq10k_distributions_sets.csv (github.com/subpic/koniq) lies beside the scores, its words become the split.
    Seen: that file whole, the names and columns of the scores; the means are recomputed from c1 to c5 and compared.
    SD is the sample standard deviation of the opinions, c_total their number. `MOS` is used, not `MOS_zscore`.
    Options and errors as in `tid2013`.
    """
    where, images, list_path = located(KONIQ10K, root, size, "koniq10k_scores_and_distributions.csv")
    files, problems, rows = found_by_name(images), list[str](), list[Row]()
    division: dict[str, str] = {}
    if split_path := found_by_name(where).get(_KONIQ_SPLITS):
        division = {cells["image_name"]: cells["set"] for _, cells in table(KONIQ10K, split_path, "image_name", "set")}
    shares = [f"c{points}" for points in range(1, 6)]
    for line, cells in table(KONIQ10K, list_path, "image_name", *shares, "c_total", "MOS", "SD"):
        try:
            name, given = cells["image_name"], [finite(cells[share]) for share in shares]
            score = finite(cells["MOS"])
            mean = sum(points * share for points, share in enumerate(given, 1)) / (sum(given) or float("nan"))
            if not abs(mean - score) < 1e-2:
                raise ValueError(f"{name}: MOS is {score:g}, but c1 to c5 give {mean:.4f}")
            if division and name not in division:
                raise ValueError(f"{name} is not in {_KONIQ_SPLITS}")
            rows.append(
                Row(
                    path=files.get(name.lower(), images / name),
                    score=score,
                    scene=f"koniq10k-{Path(name).stem}",
                    domain=KONIQ10K.domain,
                    score_sd=finite(cells["SD"]),
                    raters=int(finite(cells["c_total"])),
                    split=division.get(name),
                )
            )
        except ValueError as wrong:
            problems.append(f"{list_path.name}, line {line}: {wrong}")
    return assembled(KONIQ10K, where, rows, problems, images=_KONIQ_IMAGES, partial=partial)


_LIVE_LICENCE = (
    "free to use, copy, modify and distribute for any purpose, with the whole copyright notice of the University of "
    "Texas at Austin in every copy and the source acknowledged"
)
_LIVE_CITATION = (
    "Sheikh, Sabir, Bovik, A statistical evaluation of recent full reference image quality assessment algorithms, "
    "IEEE Transactions on Image Processing 15(11) (2006) 3440-3451; Sheikh, Wang, Cormack, Bovik, LIVE Image Quality "
    "Assessment Database Release 2, http://live.ece.utexas.edu/research/quality"
)
LIVE = Published(
    title="LIVE release 2",
    domain="live",
    scale=Scale(  # the published scores reach from -2.64 to 111.77
        low=-3,
        high=112,
        higher_is_better=False,
        name="LIVE release 2, realigned DMOS",
        licence=_LIVE_LICENCE,
        citation=_LIVE_CITATION,
    ),
    layout="a folder with jp2k/, jpeg/, wn/, gblur/, fastfading/, refimgs/, refnames_all.mat and dmos_realigned.mat",
    source="https://live.ece.utexas.edu/research/quality/subjective.htm",
)
LIVE_FOLDERS = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}  # in the order of the scores
_LIVE_IMAGES = 779  # the other 203 of 982 are copies of the references


def live(root: str | Path, *, references: bool = False, partial: bool = False) -> Manifest:
    """LIVE release 2: 29 photographs, 779 distorted images, realigned difference opinion, lower is better.

    Scores are dmos_new of dmos_realigned.mat, -2.64 to 111.77; entries that `orgs` marks are copies of a reference and
    are left out. Scene: the photograph, by refnames_all.mat. Method: the folder (levels are not published as such).
    dmos_std becomes the aspect of that name: what it is the deviation of we have not seen. Seen: layout, order, counts
    and all scores. Options and errors as in `tid2013`.
    """
    where, scores_path, names_path, originals, *folders = located(
        LIVE, root, "dmos_realigned.mat", "refnames_all.mat", "refimgs", *LIVE_FOLDERS
    )
    scores, spread, copies = variables(scores_path, "dmos_new", "dmos_std", "orgs")
    (names,) = variables(names_path, "refnames_all")
    total = sum(LIVE_FOLDERS.values())
    if {len(scores), len(spread), len(copies), len(names)} != {total}:
        raise LIVE.refused(where, f"its .mat files have {len(scores)} scores and {len(names)} names, not {total}")
    problems, rows, index = list[str](), list[Row](), 0
    for folder, count in zip(folders, LIVE_FOLDERS.values(), strict=True):
        files = found_by_name(folder)
        for number in range(1, count + 1):
            name = f"img{number}.bmp"
            if not copies[index]:
                try:
                    rows.append(
                        Row(
                            path=files.get(name, folder / name),
                            score=finite(scores[index]),
                            scene=f"live-{Path(str(names[index]).lower()).stem}",
                            domain=LIVE.domain,
                            method=folder.name.lower(),
                            aspects={"dmos_std": finite(spread[index])},
                        )
                    )
                except ValueError as wrong:
                    problems.append(f"{folder.name}/{name}: {wrong}")
            index += 1
    if references:
        rows += _originals(
            LIVE, originals, {f"live-{Path(n).stem}": n for n in sorted({str(n).lower() for n in names})}
        )
    return assembled(LIVE, where, rows, problems, images=_LIVE_IMAGES, partial=partial)


CSIQ = Published(
    title="CSIQ",
    domain="csiq",
    scale=Scale(
        low=0,
        high=1,
        higher_is_better=False,
        name="CSIQ DMOS",
        licence="no licence text seen by us: see the database's page",
        citation="Larson, Chandler, Most apparent distortion: full-reference image quality assessment and the role of "
        "strategy, Journal of Electronic Imaging 19(1) 011006 (2010), doi 10.1117/1.3267105",
    ),
    layout="a folder with src_imgs/, dst_imgs/ and csiq.DMOS.xlsx",
    source="https://s2.smu.edu/~eclarson/csiq.html",
)
_CSIQ_KINDS = {  # as the workbook calls them, and as the files do
    "noise": "AWGN",
    "blur": "BLUR",
    "contrast": "contrast",
    "fnoise": "fnoise",
    "jpeg": "JPEG",
    "jpeg 2000": "jpeg2000",
}
_CSIQ_IMAGES = 866
_CSIQ_SHEET, _CSIQ_COLUMNS = "all_by_image", ("image", "dst_type", "dst_lev", "dmos_std", "dmos")


def csiq(root: str | Path, *, references: bool = False, partial: bool = False) -> Manifest:
    """CSIQ: 30 photographs, 866 distorted images, difference opinion 0 to 1, lower is better.

    Scores are the sheet all_by_image of csiq.DMOS.xlsx. Images are found below dst_imgs/ with or without a folder a
    distortion. Scene: the photograph. Method: distortion and level. dmos_std becomes the aspect of that name: what it
    is the deviation of we have not seen. Seen: sheet, columns, the words of the distortions, file names and scores in
    several programs that read them, the workbook itself not. Options and errors as in `tid2013`.
    """
    where, originals, distorted, book = located(CSIQ, root, "src_imgs", "dst_imgs", "csiq.DMOS.xlsx")
    files = found_by_name(distorted, "**/*.png")
    problems, rows, scenes = list[str](), list[Row](), dict[str, str]()
    for line, cells in _csiq_cells(book):
        try:
            if absent := [name for name in _CSIQ_COLUMNS if name not in cells]:
                raise ValueError(f"no {', '.join(absent)}")
            image, level = cells["image"].lower(), int(finite(cells["dst_lev"]))
            if cells["dst_type"] not in _CSIQ_KINDS:
                raise ValueError(f"unknown dst_type {cells['dst_type']!r}")
            kind = _CSIQ_KINDS[cells["dst_type"]]
            name = f"{image}.{kind}.{level}.png"
            scenes[f"csiq-{image}"] = f"{image}.png"
            rows.append(
                Row(
                    path=files.get(name.lower(), distorted / kind.lower() / name),
                    score=finite(cells["dmos"]),
                    scene=f"csiq-{image}",
                    domain=CSIQ.domain,
                    method=f"{kind.lower()} {level}",
                    aspects={"dmos_std": finite(cells["dmos_std"])},
                )
            )
        except ValueError as wrong:
            problems.append(f"{book.name}, row {line} of {_CSIQ_SHEET}: {wrong}")
    if references:
        rows += _originals(CSIQ, originals, scenes)
    return assembled(CSIQ, where, rows, problems, images=_CSIQ_IMAGES, partial=partial)


def _csiq_cells(book: Path) -> list[tuple[int, dict[str, str]]]:
    """(row number, cells by the workbook's own names) below the heading, which stands on row 4."""
    rows = sheet_rows(book, _CSIQ_SHEET)
    heading = next((number for number, cells in rows.items() if set(_CSIQ_COLUMNS) <= set(cells.values())), None)
    if heading is None:
        raise CSIQ.refused(book, f"no row of {_CSIQ_SHEET} holds {', '.join(_CSIQ_COLUMNS)}")
    column = {name: letters for letters, name in rows[heading].items() if name in _CSIQ_COLUMNS}
    below = [
        (number, {name: cells[letters] for name, letters in column.items() if letters in cells})
        for number, cells in rows.items()
        if number > heading
    ]
    return [(number, cells) for number, cells in below if cells]
