"""The authors' own parameter files: what they are known by, and how their arrays are read.

Formats: MATLAB level 5, and the two text formats of libsvm (its README, section on svm-train and svm-scale).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saqm.errors import ModelFileError

Arrays = dict[str, NDArray[np.float64]]

LIVE_NOTICE = """\
Copyright (c) 2011 The University of Texas at Austin. All rights reserved.

Permission is hereby granted, without written agreement and without license or royalty fees, to use, copy, modify, and \
distribute this code (the source files) and its documentation for any purpose, provided that the copyright notice in \
its entirety appear in all copies of this code, and the original source of this code, Laboratory for Image and Video \
Engineering (LIVE, http://live.ece.utexas.edu) and Center for Perceptual Systems (CPS, http://www.cps.utexas.edu) at \
the University of Texas at Austin (UT Austin, http://www.utexas.edu), is acknowledged in any publication that reports \
research using this code. The research is to be cited in the bibliography as:

{works}

IN NO EVENT SHALL THE UNIVERSITY OF TEXAS AT AUSTIN BE LIABLE TO ANY PARTY FOR DIRECT, INDIRECT, SPECIAL, INCIDENTAL, \
OR CONSEQUENTIAL DAMAGES ARISING OUT OF THE USE OF THIS DATABASE AND ITS DOCUMENTATION, EVEN IF THE UNIVERSITY OF \
TEXAS AT AUSTIN HAS BEEN ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.

THE UNIVERSITY OF TEXAS AT AUSTIN SPECIFICALLY DISCLAIMS ANY WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE IMPLIED \
WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE. THE DATABASE PROVIDED HEREUNDER IS ON AN "AS IS" \
BASIS, AND THE UNIVERSITY OF TEXAS AT AUSTIN HAS NO OBLIGATION TO PROVIDE MAINTENANCE, SUPPORT, UPDATES, ENHANCEMENTS, \
OR MODIFICATIONS."""


class Release(NamedTuple):
    """What is said of a metric's released parameters. The hashes are those of the released files, in reading order."""

    sha256: tuple[str, ...]
    trained_on: str
    scale: str
    licence: str


RELEASES = {
    "niqe": Release(
        ("fa2aa4d12dd9595c3fb6bf8b4e1a15c79d5d1469238d0901c88dead195be578d",),
        "125 pristine photographs (utlive/niqe, modelparameters.mat)",
        "distance to the statistics of pristine photographs: 0 and up, no upper bound; lower is better",
        LIVE_NOTICE.format(
            works='1) A. Mittal, R. Soundararajan and A. C. Bovik, "NIQE Software Release", '
            "URL: http://live.ece.utexas.edu/research/quality/niqe.zip, 2012.\n\n"
            '2) A. Mittal, R. Soundararajan and A. C. Bovik, "Making a Completely Blind Image Quality Analyzer", '
            "submitted to IEEE Signal Processing Letters, 2012."
        ),
    ),
    "brisque": Release(
        (
            "8b04d6045f1b27261610c8ab1730fdcc14ec80bfab0f1ab5f703bbc2927314de",
            "e47d753d96b631e1aa2dbac8c4e51ade767f2def8ce678c7130b6b3f90ee915f",
        ),
        "the whole LIVE database, 779 distorted and 29 reference photographs (LIVE BRISQUE release)",
        "predicted DMOS of LIVE: nominally 0 to 100, may leave it; lower is better",
        LIVE_NOTICE.format(
            works='1) A. Mittal, A. K. Moorthy and A. C. Bovik, "BRISQUE Software Release", '
            "URL: http://live.ece.utexas.edu/research/quality/BRISQUE_release.zip, 2011\n\n"
            '2) A. Mittal, A. K. Moorthy and A. C. Bovik, "No Reference Image Quality Assessment in the Spatial '
            'Domain" submitted'
        ),
    ),
    "bliinds": Release(
        ("0988c338cf80c07a06296383be82597ec4bba0e9c20a3de76de7af166b56ebb4",),
        "the whole LIVE database, 982 entries (utlive/BLIINDS2, parameters_from_training.mat)",
        "predicted DMOS of LIVE: 0 to 99; lower is better",
        "the release names no licence: for your own use, do not pass it on",
    ),
}


class Official(NamedTuple):
    """What was found: whose parameters, in which files, with which arrays, and whether they are the released ones."""

    metric: str
    files: tuple[Path, ...]
    sha256: tuple[str, ...]
    arrays: Arrays

    @property
    def released(self) -> bool:
        """True when every byte is that of the release."""
        return self.sha256 == RELEASES[self.metric].sha256


def contents(path: Path) -> bytes:
    """The bytes of a file. Raises ModelFileError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error


def read_official(path: Path) -> Official:
    """Whatever official parameters a file belongs to, or a folder holds. Raises ModelFileError."""
    files = _sniffed(path) if path.is_dir() else {path: sniff(contents(path))}
    kinds = {kind for kind in files.values() if kind}
    if kinds and kinds <= {"libsvm model", "libsvm range"}:
        beside = _sniffed(path if path.is_dir() else path.parent)
        model = path if files.get(path) == "libsvm model" else _only(beside, "libsvm model", path)
        ranges = path if files.get(path) == "libsvm range" else _only(beside, "libsvm range", path)
        return _official("brisque", (model, ranges), _libsvm(model, ranges))
    if kinds == {"mat"}:
        file = _only(files, "mat", path)
        return _official(*_mat(file))
    if kinds:
        raise ModelFileError(f"{path}: official files of several metrics; name one of the files")
    raise ModelFileError(
        f"{path}: no official parameter file known to saqm: modelparameters.mat of NIQE, allmodel and allrange of "
        "BRISQUE, or parameters_from_training.mat of BLIINDS-II is wanted"
    )


def _official(metric: str, files: tuple[Path, ...], arrays: Arrays) -> Official:
    return Official(metric, files, tuple(hashlib.sha256(contents(file)).hexdigest() for file in files), arrays)


def _sniffed(folder: Path) -> dict[Path, str | None]:
    return {file: sniff(contents(file)) for file in sorted(folder.iterdir()) if file.is_file()}


def sniff(data: bytes) -> str | None:
    """Which format the bytes are in, if it is one of the releases' formats."""
    if data.startswith(b"MATLAB 5.0 MAT-file"):
        return "mat"
    lines = data[:200].split(b"\n")
    if lines[0].startswith(b"svm_type"):
        return "libsvm model"
    bounds = len(lines) > 1 and len(lines[1].split()) == 2
    return "libsvm range" if lines[0].strip() in (b"x", b"y") and bounds else None


def _only(files: Mapping[Path, str | None], kind: str, asked: Path) -> Path:
    found = [file for file, has in files.items() if has == kind]
    if len(found) == 1:
        return found[0]
    word = {"libsvm model": "model file (allmodel)", "libsvm range": "range file (allrange)"}.get(kind, "MATLAB file")
    if found:
        raise ModelFileError(f"{asked}: which {word}? {', '.join(file.name for file in found)}; put the two together")
    raise ModelFileError(f"{asked}: the {word} of BRISQUE is wanted beside it and is not there")


_MAT = {  # metric -> array -> variable
    "niqe": {"mean": "mu_prisparam", "covariance": "cov_prisparam"},
    "bliinds": {"mean": "live_mu", "inverse_covariance": "live_sigma_inv"},
}


def _mat(file: Path) -> tuple[str, tuple[Path, ...], Arrays]:
    from scipy.io import loadmat

    try:
        variables = loadmat(io.BytesIO(contents(file)))
    except Exception as error:  # scipy lets through whatever a damaged file provokes
        raise ModelFileError(f"{file}: a damaged MATLAB file: {error}") from error
    for metric, names in _MAT.items():
        if set(names.values()) <= variables.keys():
            try:
                arrays = {name: np.asarray(variables[variable], np.float64) for name, variable in names.items()}
            except (TypeError, ValueError) as error:
                raise ModelFileError(f"{file}: a MATLAB variable that is no array of numbers: {error}") from error
            arrays["mean"] = arrays["mean"].ravel()
            if metric == "bliinds":  # the released predictor has its values typed in with four decimals
                arrays = {name: np.round(array, 4) for name, array in arrays.items()}
            return metric, (file,), arrays
    wanted = "; ".join(", ".join(names.values()) for names in _MAT.values())
    raise ModelFileError(f"{file}: a MATLAB file without the variables of NIQE or BLIINDS-II ({wanted})")


def _libsvm(model: Path, ranges: Path) -> Arrays:
    arrays: Arrays = {}
    for file, read in ((model, _libsvm_model), (ranges, _libsvm_range)):
        try:
            arrays |= read(contents(file).decode("ascii").split("\n"))
        except (ValueError, IndexError, KeyError) as error:
            raise ModelFileError(f"{file}: not a libsvm file of BRISQUE: {error}") from error
    return arrays


def _libsvm_model(lines: list[str]) -> Arrays:
    """Header lines `key value`, a line SV, then a line `coefficient index:value …` for each support vector."""
    start = next((number for number, line in enumerate(lines) if line.strip() == "SV"), None)
    if start is None:
        raise ValueError("no line SV")
    header = dict(line.split(maxsplit=1) for line in lines[:start])
    for key, wanted in (("svm_type", "epsilon_svr"), ("kernel_type", "rbf")):
        if header[key].strip() != wanted:
            raise ValueError(f"{key} is {header[key].strip()}, not {wanted}")
    rows = [line.split() for line in lines[start + 1 :] if line.strip()]
    if len(rows) != int(header["total_sv"]):
        raise ValueError(f"{len(rows)} support vectors, but total_sv says {int(header['total_sv'])}")
    vectors = np.zeros((len(rows), 36))  # an index that is left out is 0
    for vector, cells in zip(vectors, rows, strict=True):
        for cell in cells[1:]:
            index, value = cell.split(":")
            vector[_place(index)] = float(value)
    return {
        "support_vectors": vectors,
        "coefficients": np.array([float(cells[0]) for cells in rows]),
        "gamma": np.array(float(header["gamma"])),
        "rho": np.array(float(header["rho"])),
    }


def _libsvm_range(lines: list[str]) -> Arrays:
    """A line x, a line `lower upper`, then a line `index minimum maximum` for each feature."""
    if lines[0].strip() != "x":
        raise ValueError("the scores were scaled too (section y), which BRISQUE does not")
    lower, upper = map(float, lines[1].split())
    rows = [line.split() for line in lines[2:] if line.strip()]
    ends = {_place(index): (float(low), float(high)) for index, low, high in rows}
    if len(ends) != 36:
        raise ValueError(f"ranges of {len(ends)} features, not of 36")
    minimum, maximum = np.array([ends[place] for place in range(36)]).T
    return {"minimum": minimum, "maximum": maximum, "lower": np.array(lower), "upper": np.array(upper)}


def _place(index: str) -> int:
    place = int(index) - 1  # libsvm counts from 1
    if not 0 <= place < 36:
        raise ValueError(f"feature {index}, but BRISQUE has 1 to 36")
    return place
