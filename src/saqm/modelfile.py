"""The model file: weights and a header that says what they are; `NAME.onnx` scores, `NAME.safetensors` trains on.

The header is JSON under the key `saqm` in the file's own metadata. It carries two hashes, of the weights and of itself,
so that a file with any changed byte is refused. Nothing here needs onnx, onnxruntime or torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, cast, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, PositiveInt, ValidationError, model_validator

from saqm.errors import ModelFileError
from saqm.writing import replacing

FORMAT_VERSION = 1
DEFAULT_MODEL = "saqm-ct"
MODELS = Path(__file__).with_name("models")  # the shipped files, each with its card
KEY = "saqm"  # where the header stands in the metadata

Form = Literal["onnx", "safetensors"]
Name = Annotated[str, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Three = tuple[FiniteFloat, FiniteFloat, FiniteFloat]

# Field numbers of ModelProto and StringStringEntryProto, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_METADATA_PROPS, _ENTRY_KEY, _ENTRY_VALUE = 14, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf wire types


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(_Part):
    """Which member of the SAQM family the weights belong to; the words are those of `saqm.network.Architecture`."""

    width: Annotated[FiniteFloat, Field(gt=0)]  # factor on the channel counts of Table 1
    trunks: Literal["separate", "shared"]
    norm: Literal["none", "batch"]
    pool: Literal["max", "mean", "mean-max"]
    key_ratio: PositiveInt = 8  # value channels over key channels
    patch: PositiveInt = 32  # pixels
    hidden: tuple[PositiveInt, ...]  # sizes of the hidden layers of a head
    members: PositiveInt = 1  # heads whose mean is the score
    weighted: bool  # does a window say how much it counts
    final_relu: bool = True  # Table 1, row 18
    init: Name


class PreparationPolicy(_Part):
    """How windows are made from an image: the fields of `saqm.patches.Preparation`, and two policies in words."""

    channels: Literal["gray", "rgb", "bands"]
    mean: Three
    sd: Three
    patch: PositiveInt
    stride: PositiveInt
    min_coverage: Annotated[FiniteFloat, Field(ge=0, le=1)]
    window: str  # which grey levels the pictures were trained with: "CT: file's first window, else centre 40 width 400"
    mask: str  # what was judged: "auto: body, without air and text"


class ScoreScale(_Part):
    """What the raw output means; `low` and `high` are the ends that become 0 and 100 (100 and 0 if lower is better)."""

    low: FiniteFloat
    high: FiniteFloat
    higher_is_better: bool
    meaning: str

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        return self


class FeatureStatistics(_Part):
    """Mean and sd of each feature over the windows of training images: what another domain is brought to."""

    mean: tuple[FiniteFloat, ...]
    sd: tuple[Annotated[FiniteFloat, Field(gt=0)], ...]
    images: PositiveInt

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if len(self.mean) != len(self.sd):
            raise ValueError(f"{len(self.mean)} means and {len(self.sd)} standard deviations")
        return self


class Domain(_Part):
    """What the model was trained on: DICOM's words for the modalities, and a sentence."""

    modalities: tuple[Name, ...]
    description: str
    features: FeatureStatistics | None = None  # None: not recorded, and features cannot be brought to this domain


class ScoreMap(_Part):
    """Raw output to score, 0 to 100: straight lines from knot to knot, and on beyond the last ones."""

    raw: tuple[FiniteFloat, ...]
    score: tuple[FiniteFloat, ...]

    @model_validator(mode="after")
    def _monotone(self) -> Self:
        if len(self.raw) < 2 or len(self.raw) != len(self.score):
            raise ValueError(f"{len(self.raw)} raw values and {len(self.score)} scores: two or more of each are a map")
        steps, rises = np.diff(self.raw), np.diff(self.score)
        if not ((steps > 0).all() and ((rises > 0).all() or (rises < 0).all())):
            raise ValueError("a map rises or falls all the way")
        return self


class Conformal(_Part):
    """Half the width of an interval: reach x (base + per_spread x spread of the windows' scores), in points.

    `by_group`: the reach for images that fit best a group of known ones (`Familiar.groups`); `reach` for all others.
    """

    coverage: Annotated[FiniteFloat, Field(gt=0, lt=1)]  # the share of images whose opinion should lie inside
    reach: Annotated[FiniteFloat, Field(gt=0)]
    base: Annotated[FiniteFloat, Field(gt=0)]
    per_spread: Annotated[FiniteFloat, Field(ge=0)]
    by_group: dict[str, Annotated[FiniteFloat, Field(gt=0)]] = {}
    images: PositiveInt  # judged out of fold, that it comes from
    scenes: PositiveInt
    found: dict[str, FiniteFloat] = {}  # share inside, measured on scenes kept out, by domain


class Group(_Part):
    """One kind of training image: its mean, and how far images of it lie from there that were kept out, rising."""

    mean: tuple[FiniteFloat, ...]
    kept_out: tuple[FiniteFloat, ...]


class Familiar(_Part):
    """What training images look like: a Mahalanobis distance, as `saqm.calibration.distance` takes it.

    Numbers divided by `scale` vary by `variances` along `components` around their group's mean, by `rest` elsewhere.
    """

    scale: tuple[Annotated[FiniteFloat, Field(gt=0)], ...]
    components: tuple[tuple[FiniteFloat, ...], ...]
    variances: tuple[Annotated[FiniteFloat, Field(gt=0)], ...]
    rest: Annotated[FiniteFloat, Field(gt=0)]
    groups: dict[str, Group]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        wide = {len(self.scale), *(len(one) for one in self.components), *(len(g.mean) for g in self.groups.values())}
        if len(wide) != 1 or len(self.components) != len(self.variances) or not self.groups:
            raise ValueError("sizes of scale, components, variances and means do not fit together")
        return self


class Gate(_Part):
    """Cut-offs on 0 to 100 that were chosen from opinions, and what they promise, in words; `saqm gate` takes them."""

    pass_at: FiniteFloat
    fail_below: FiniteFloat | None = None
    promise: str


class Calibration(_Part):
    """What makes a raw output a number to act on; fitted on images that the weights were not taught on."""

    score: ScoreMap
    interval: Conformal | None = None
    familiar: dict[Literal["picture", "features"], Familiar] = {}  # by what is looked at; none: nothing is flagged
    gate: Gate | None = None
    fitted_on: dict[str, Sha256]  # manifests


class Training(_Part):
    """Where the weights came from and how good they were found to be."""

    recipe: Name
    manifests: dict[str, Sha256]
    seed: int
    epochs: int
    steps: int
    commit: str
    results: dict[str, JsonValue]
    images_sha256: tuple[Sha256, ...] = ()  # files that were trained on: no test of this model may use them


class ModelHeader(_Part):
    """All that a model file says about itself. The two hashes are filled in by writing."""

    format_version: int = FORMAT_VERSION
    name: Name
    version: Name
    architecture: Architecture
    preparation: PreparationPolicy
    score_scale: ScoreScale
    domain: Domain
    calibration: Calibration | None  # None: the score is linear on the score scale, without interval
    training: Training
    licence: Name
    card: str  # one paragraph: for what, and for what not; the whole card is NAME.md beside the file
    weights_sha256: Sha256 | None = None
    header_sha256: Sha256 | None = None  # of this JSON without this field, keys sorted

    @model_validator(mode="after")
    def _one_patch(self) -> Self:
        if self.architecture.patch != self.preparation.patch:
            raise ValueError(f"windows of {self.preparation.patch} pixels for a network of {self.architecture.patch}")
        return self


class ModelFile(NamedTuple):
    """A verified file: its header, its bytes as they were verified, and their sha256."""

    header: ModelHeader
    data: bytes
    sha256: str


def shipped() -> tuple[str, ...]:
    """Names of the models that come with the package."""
    return tuple(sorted(file.stem for file in MODELS.glob("*.onnx")))


def open_model(name_or_path: str | Path, form: Form = "onnx") -> Path:
    """The file of a shipped model (in the form asked for), or the path itself where one is given.

    Raises ModelFileError for an unknown name, which lists the known ones, and for a file that is not there.
    """
    path, text = Path(name_or_path), str(name_or_path)
    if path.name == text and path.suffix not in (".onnx", ".safetensors"):  # a bare word is a name
        if text not in shipped():
            known = ", ".join(shipped()) or "none"
            raise ModelFileError(f"no model {text!r}: shipped are {known}; or give a .onnx or .safetensors file")
        path = MODELS / f"{text}.{form}"
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file")
    return path


def read_card(name_or_path: str | Path) -> str:
    """The model's card, Markdown, which stands beside the file as NAME.md. Raises ModelFileError without one."""
    path = open_model(name_or_path).with_suffix(".md")
    if not path.is_file():
        raise ModelFileError(f"{path}: this model has no card")
    return path.read_text(encoding="utf-8")


def out_of_fold_path(path: str | Path) -> Path:
    """Beside a model: NAME.out_of_fold.csv, where predictions of its training images stand if they were recorded."""
    return Path(path).with_suffix(".out_of_fold.csv")


def read_header(path: str | Path) -> ModelHeader:
    """The header of a model file. Raises ModelFileError for a foreign, newer, incomplete or changed file."""
    return read_model(path).header


def read_model(path: str | Path) -> ModelFile:
    """Read and verify a model file. Raises ModelFileError for a foreign, newer, incomplete or changed file."""
    path = Path(path)
    form = _form(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        text, weights_sha256 = _split_onnx(data) if form == "onnx" else _split_safetensors(data)
    except ValueError as error:  # includes broken UTF-8 and JSON
        raise ModelFileError(f"{path}: not a {form} file, or a damaged one: {error}") from error
    if text is None:
        raise ModelFileError(f"{path}: foreign {'ONNX' if form == 'onnx' else form}: no saqm header")
    header = _parse(path, text)
    if header.weights_sha256 != weights_sha256:
        raise ModelFileError(
            f"{path}: wrong hash: these are not the weights the header was written for; fetch it again"
        )
    return ModelFile(header, data, hashlib.sha256(data).hexdigest())


def read_tensors(path: str | Path) -> dict[str, NDArray[Any]]:
    """The weights of a .safetensors model by name, after verifying the file. Raises ModelFileError."""
    path = Path(path)
    if _form(path) != "safetensors":
        raise ModelFileError(f"{path}: an ONNX file only scores; the weights to train on are in the .safetensors file")
    return unpack(read_model(path))


def unpack(model: ModelFile) -> dict[str, NDArray[Any]]:
    """The tensors of a verified .safetensors file."""
    from safetensors.numpy import load

    return load(model.data)


def write_onnx(onnx: bytes, header: ModelHeader, path: str | Path) -> ModelHeader:
    """Write a serialised ModelProto (weights inside, not in a side file) under a header; a header it had is replaced.

    Returns the header as written. Raises OutputError where the path cannot be written, and what stood there is intact.
    """
    _form(Path(path), "onnx")
    try:
        bare = b"".join(_without_header(onnx))
    except ValueError as error:
        raise ModelFileError(f"{path}: these bytes are no ONNX model: {error}") from error
    header, text = _sealed(header, hashlib.sha256(bare).hexdigest())
    entry = _bytes_field(_ENTRY_KEY, KEY.encode()) + _bytes_field(_ENTRY_VALUE, text.encode())
    with replacing(path) as beside:
        beside.write_bytes(bare + _bytes_field(_METADATA_PROPS, entry))
    return header


def write_safetensors(tensors: Mapping[str, NDArray[Any]], header: ModelHeader, path: str | Path) -> ModelHeader:
    """Write tensors by name under a header. Returns the header as written. Raises OutputError, as `write_onnx`."""
    from safetensors.numpy import save

    _form(Path(path), "safetensors")
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}  # save() ignores strides
    header, text = _sealed(header, _split_safetensors(save(contiguous))[1])
    with replacing(path) as beside:
        beside.write_bytes(save(contiguous, metadata={KEY: text}))
    return header


def _form(path: Path, wanted: Form | None = None) -> Form:
    for form in get_args(Form):
        if path.suffix == f".{form}" and wanted in (None, form):
            return cast("Form", form)
    raise ModelFileError(f"{path}: a model file is named {f'.{wanted}' if wanted else '.onnx or .safetensors'}")


def _sealed(header: ModelHeader, weights_sha256: str) -> tuple[ModelHeader, str]:
    """The header with both hashes, and its text."""
    filled = {**header.model_dump(mode="json"), "weights_sha256": weights_sha256}
    try:
        filled["header_sha256"] = _sha256_of_header(filled)
        header = ModelHeader.model_validate(filled)
    except ValueError as error:  # a NaN among the results, or a field that was slipped past validation
        raise ModelFileError(f"model {header.name!r}: the header cannot be written: {error}") from error
    return header, json.dumps(filled, allow_nan=False)


def _parse(path: Path, text: str) -> ModelHeader:
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise ModelFileError(f"{path}: damaged saqm header: {error}") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if not isinstance(version, int) or version < 1:
        raise ModelFileError(f"{path}: damaged saqm header: no format_version")
    if version > FORMAT_VERSION:
        raise ModelFileError(f"{path}: format {version} is newer than this saqm reads ({FORMAT_VERSION}): upgrade saqm")
    try:
        header = ModelHeader.model_validate(raw)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'header'}: {e['msg']}" for e in error.errors())
        raise ModelFileError(f"{path}: bad saqm header: {wrong}") from error
    if header.header_sha256 != _sha256_of_header(raw):
        raise ModelFileError(f"{path}: wrong hash: the header was changed after it was written; fetch it again")
    return header


def _sha256_of_header(raw: Mapping[str, object]) -> str:
    kept = {key: value for key, value in raw.items() if key != "header_sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _split_safetensors(data: bytes) -> tuple[str | None, str]:
    """The header's text, if there is one, and the sha256 of the tensors: their names, types, shapes and bytes."""
    stop = 8 + int.from_bytes(data[:8], "little")
    table = json.loads(data[8:stop])
    metadata = table.pop("__metadata__", {}) if isinstance(table, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError("no table of tensors")
    text = metadata.get(KEY)
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode())
    digest.update(memoryview(data)[stop:])
    return text, digest.hexdigest()


def _split_onnx(data: bytes) -> tuple[str | None, str]:
    """The header's text, if there is one, and the sha256 of every byte that is not it."""
    digest = hashlib.sha256()
    for piece in _without_header(data):
        digest.update(piece)
    found = [_header_text(number, value) for number, _, _, value in _fields(memoryview(data))]
    texts = [text for text in found if text is not None]
    if len(texts) > 1:
        raise ValueError("two saqm headers")
    return texts[0] if texts else None, digest.hexdigest()


def _without_header(data: bytes) -> Iterator[memoryview]:
    view = memoryview(data)
    for number, start, stop, value in _fields(view):
        if _header_text(number, value) is None:
            yield view[start:stop]


def _header_text(number: int, value: memoryview | None) -> str | None:
    """What a top-level field of a ModelProto holds if it is our metadata entry."""
    if number != _METADATA_PROPS or value is None:
        return None
    entry = {key: bytes(part) for key, _, _, part in _fields(value) if part is not None}
    return entry.get(_ENTRY_VALUE, b"").decode() if entry.get(_ENTRY_KEY) == KEY.encode() else None


def _fields(data: memoryview) -> Iterator[tuple[int, int, int, memoryview | None]]:
    """The fields of one protobuf message: number, first byte, byte after the last, and the value where it has bytes.

    https://protobuf.dev/programming-guides/encoding/. Raises ValueError where the bytes are no message.
    """
    at = 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        value = None
        if wire == _VARINT:
            _, at = _varint(data, at)
        elif wire == _FIXED64:
            at += 8
        elif wire == _FIXED32:
            at += 4
        elif wire == _BYTES:
            length, at = _varint(data, at)
            value = data[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {wire} at byte {start}")
        if number == 0 or at > len(data):
            raise ValueError(f"broken field at byte {start}")
        yield number, start, at, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number written seven bits a byte, low bits first, and the byte after it."""
    number = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError(f"broken number at byte {at}")
        number |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return number, at


def _bytes_field(number: int, value: bytes) -> bytes:
    head, rest = bytearray([number << 3 | _BYTES]), len(value)
    while rest > 0x7F:
        head.append(rest & 0x7F | 0x80)
        rest >>= 7
    head.append(rest)
    return bytes(head) + value
