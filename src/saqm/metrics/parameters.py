"""Parameter files of the trained metrics (NIQE, BRISQUE, BLIINDS-II), and the import of the authors' own files.

A parameter file is a safetensors file of float64 arrays. Its JSON header stands in the metadata under the key `saqm`,
with two hashes: of the arrays and of the header itself, so that a file with any changed byte is refused. Never pickle.
Same parameters, same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saqm.errors import ModelFileError
from saqm.metrics._official import RELEASES, contents, read_official, sniff
from saqm.writing import replacing

FORMAT_VERSION = 1
KIND = "metric parameters"  # tells them from the model files of SAQM, whose header stands under the same key
KEY = "saqm"
SHIPPED = Path(__file__).parents[1] / "models" / "metrics"  # fitted by us, each with its card

N = -1  # any length, the same wherever it stands
SHAPES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "niqe": {"mean": (36,), "covariance": (36, 36)},
    "brisque": {
        "support_vectors": (N, 36),  # in scaled units
        "coefficients": (N,),
        "gamma": (),
        "rho": (),
        "minimum": (36,),  # of the features before scaling; it becomes `lower`
        "maximum": (36,),
        "lower": (),
        "upper": (),
    },
    "bliinds": {"mean": (25,), "inverse_covariance": (25, 25)},  # of 24 features and, last, the score
}


@dataclass(frozen=True)
class Provenance:
    """Where parameters came from: on what they were fitted, under which licence, with which settings."""

    trained_on: str = "not said"
    licence: str = "not said"
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    images_sha256: tuple[str, ...] = ()  # files they were fitted on: no test of these parameters may use them


@dataclass(frozen=True, eq=False)
class Parameters:
    """The trained part of a metric; which arrays each metric has is in SHAPES. All are float64 and read-only.

    scale: what the metric's number means and which direction is better. sha256: of the file they were read from, else
    of the file they would become. Raises ModelFileError for missing, unknown or misshapen arrays and for NaN.
    """

    metric: str  # "niqe", "brisque" or "bliinds"
    name: str
    arrays: Mapping[str, NDArray[np.float64]]
    version: str = ""
    scale: str = "not said"
    provenance: Provenance = Provenance()
    official: bool = False  # whether they are, byte for byte, those of the authors' release
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrays", _checked(self.metric, self.arrays))
        object.__setattr__(self, "sha256", hashlib.sha256(_serialised(self)).hexdigest())

    def expect(self, metric: str) -> None:
        """Raise ModelFileError unless these are parameters of `metric`."""
        if self.metric != metric:
            raise ModelFileError(f"parameters of {self.metric} given to {metric} ({self.name})")


def shipped_parameters() -> tuple[str, ...]:
    """Names of the parameters that come with the package."""
    return tuple(sorted(file.stem for file in SHIPPED.glob("*.safetensors")))


def load_parameters(name_or_path: str | Path) -> Parameters:
    """Shipped parameters by name, or those of a parameter file; verified.

    Raises ModelFileError for an unknown name (it lists the known ones) and for a file that is foreign, newer,
    incomplete or changed.
    """
    path = _located(name_or_path)
    data = contents(path)
    try:
        text, arrays_sha256 = _split(data)
    except ValueError as error:  # includes broken UTF-8 and JSON
        hint = "; official files are read by import_official, or by saqm fit METRIC --import" if sniff(data) else ""
        raise ModelFileError(f"{path}: not a parameter file, or a damaged one: {error}{hint}") from error
    if text is None:
        raise ModelFileError(f"{path}: foreign safetensors: no saqm header")
    header = _header(path, text)
    if header.get("arrays_sha256") != arrays_sha256:
        raise ModelFileError(f"{path}: wrong hash: these are not the arrays the header was written for; fetch it again")
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        provenance = Provenance(**header["provenance"])
        parameters = Parameters(
            metric=header["metric"],
            name=header["name"],
            arrays=load(data),
            version=header["version"],
            scale=header["scale"],
            provenance=replace(provenance, images_sha256=tuple(provenance.images_sha256)),
            official=header["official"],
        )
    except (KeyError, TypeError) as error:
        raise ModelFileError(f"{path}: bad saqm header: {error}") from error
    except (SafetensorError, ModelFileError) as error:
        raise ModelFileError(f"{path}: {error}") from error
    # Not the hash of what we would write: another version of safetensors may order its bytes anew.
    object.__setattr__(parameters, "sha256", hashlib.sha256(data).hexdigest())
    return parameters


def save_parameters(parameters: Parameters, path: str | Path) -> None:
    """Write a parameter file. Raises OutputError where the path cannot be written; what stood there is intact then."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ModelFileError(f"{path}: a parameter file is named .safetensors")
    with replacing(path) as beside:
        beside.write_bytes(_serialised(parameters))


def read_parameters_card(name_or_path: str | Path) -> str:
    """The card, Markdown, which stands beside the file as NAME.md. Raises ModelFileError without one."""
    path = _located(name_or_path).with_suffix(".md")
    if not path.is_file():
        raise ModelFileError(f"{path}: these parameters have no card")
    return path.read_text(encoding="utf-8")


def import_official(path: str | Path) -> Parameters:
    """Parameters of the authors' own files, known by content: one of them, or a folder that holds them.

    NIQE: modelparameters.mat. BRISQUE: allmodel and allrange; given one, the other is looked for beside it. BLIINDS-II:
    parameters_from_training.mat, rounded to four decimals as its released predictor has it. Whether the bytes are those
    of the release is said in `official`. Raises ModelFileError.
    """
    found = read_official(Path(path))
    metric, release = found.metric, RELEASES[found.metric]
    settings: dict[str, str | int | float | bool] = {"snap": False}
    if metric == "bliinds":
        settings = {"decimals": 4, "note": "rounded to four decimals, as the released predictor has it"}
    settings |= {f"sha256 of {file.name}": digest for file, digest in zip(found.files, found.sha256, strict=True)}
    try:
        return Parameters(
            metric=metric,
            name=f"{metric}-official" if found.released else f"{metric}-imported",
            arrays=found.arrays,
            version="as released" if found.released else "unknown",
            scale=release.scale,
            provenance=Provenance(
                trained_on=release.trained_on
                if found.released
                else "not known: the bytes are not those of the release",
                licence=release.licence,
                settings=settings,
            ),
            official=found.released,
        )
    except ModelFileError as error:
        raise ModelFileError(f"{found.files[0]}: {error}") from error


# The file


def _located(name_or_path: str | Path) -> Path:
    path, text = Path(name_or_path), str(name_or_path)
    if path.name == text and not path.suffix and not path.exists():  # a bare word is a name
        if text not in shipped_parameters():
            known = ", ".join(shipped_parameters()) or "none"
            raise ModelFileError(f"no parameters {text!r}: shipped are {known}; or give a .safetensors file")
        path = SHIPPED / f"{text}.safetensors"
    return path


def _checked(metric: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
    """Read-only float64 copies of exactly the arrays that the metric has."""
    if metric not in SHAPES:
        raise ModelFileError(f"no metric {metric!r} has parameters; known are {', '.join(SHAPES)}")
    shapes = SHAPES[metric]
    for word, names in (("no", shapes.keys() - arrays.keys()), ("an unknown", arrays.keys() - shapes.keys())):
        if names:
            raise ModelFileError(f"parameters of {metric} with {word} array {min(names)!r}")
    checked = {name: np.array(arrays[name], np.float64, order="C") for name in shapes}
    length = len(np.atleast_1d(checked.get("coefficients", 0)))
    for name, array in checked.items():
        wanted = tuple(length if size == N else size for size in shapes[name])
        if array.shape != wanted:
            raise ModelFileError(f"parameters of {metric}: {name!r} has the shape {array.shape}, not {wanted}")
        if not np.isfinite(array).all():
            raise ModelFileError(f"parameters of {metric}: {name!r} has NaN or infinity in it")
        array.flags.writeable = False
    if metric == "brisque" and not (checked["minimum"] < checked["maximum"]).all():
        feature = int(np.argmin(checked["minimum"] < checked["maximum"])) + 1
        raise ModelFileError(f"parameters of brisque: feature {feature} has an empty range and cannot be scaled")
    return checked


def _serialised(parameters: Parameters) -> bytes:
    from safetensors.numpy import save

    arrays, source = dict(parameters.arrays), parameters.provenance
    header: dict[str, object] = {
        "format_version": FORMAT_VERSION,
        "kind": KIND,
        "metric": parameters.metric,
        "name": parameters.name,
        "version": parameters.version,
        "scale": parameters.scale,
        "official": parameters.official,
        "provenance": {
            "trained_on": source.trained_on,
            "licence": source.licence,
            "settings": dict(source.settings),
            "images_sha256": list(source.images_sha256),
        },
        "arrays_sha256": _split(save(arrays))[1],
    }
    header["header_sha256"] = _sha256_of(header)
    return save(arrays, metadata={KEY: json.dumps(header, sort_keys=True, allow_nan=False)})


def _sha256_of(header: Mapping[str, object]) -> str:
    kept = {key: value for key, value in header.items() if key != "header_sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _split(data: bytes) -> tuple[str | None, str]:
    """The header's text, if there is one, and the sha256 of the arrays: their names, types, shapes and bytes.

    Raises ValueError where the bytes are no safetensors. https://github.com/huggingface/safetensors#format
    """
    stop = 8 + int.from_bytes(data[:8], "little")
    if not 8 < stop <= len(data):
        raise ValueError("no table of arrays")
    table = json.loads(data[8:stop])
    metadata = table.pop("__metadata__", {}) if isinstance(table, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError("no table of arrays")
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode())
    digest.update(memoryview(data)[stop:])
    return metadata.get(KEY), digest.hexdigest()


def _header(path: Path, text: str) -> dict[str, Any]:
    """The verified header. Raises ModelFileError for one that is foreign, newer or changed."""
    try:
        header = json.loads(text)
    except ValueError as error:
        raise ModelFileError(f"{path}: damaged saqm header: {error}") from error
    if not isinstance(header, dict) or header.get("kind") != KIND:
        raise ModelFileError(f"{path}: a model of another kind, not a metric's parameters")
    version = header.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise ModelFileError(f"{path}: damaged saqm header: no format_version")
    if version > FORMAT_VERSION:
        raise ModelFileError(f"{path}: format {version} is newer than this saqm reads ({FORMAT_VERSION}): upgrade saqm")
    if header.get("header_sha256") != _sha256_of(header):
        raise ModelFileError(f"{path}: wrong hash: the header was changed after it was written; fetch it again")
    return header
