"""Parameter files: what is written is read back, what was changed or is foreign is refused, official files come in."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray
from safetensors.numpy import load, save
from tests.metrics import reference

from saqm.errors import ModelFileError, OutputError
from saqm.metrics.parameters import (
    KEY,
    KIND,
    SHAPES,
    Parameters,
    Provenance,
    _sha256_of,
    _split,
    import_official,
    load_parameters,
    read_parameters_card,
    save_parameters,
    shipped_parameters,
)

Arrays = dict[str, NDArray[np.float64]]


def arrays_of(metric: str, vectors: int = 5) -> Arrays:
    """Arrays of the right names and shapes, all different."""
    rng = np.random.default_rng(0)
    made = {
        name: rng.normal(size=tuple(vectors if size < 0 else size for size in shape))
        for name, shape in SHAPES[metric].items()
    }
    if metric == "brisque":
        made["maximum"] = made["minimum"] + 1
    return made


def toy(metric: str = "niqe") -> Parameters:
    return Parameters(
        metric=metric,
        name=f"toy-{metric}",
        arrays=arrays_of(metric),
        version="3",
        scale="toy points; lower is better",
        provenance=Provenance("numbers drawn at random", "CC0", {"snap": True, "threshold": 0.75}, ("0" * 64,)),
    )


@pytest.fixture
def written(tmp_path: Path) -> Path:
    save_parameters(toy(), tmp_path / "toy.safetensors")
    return tmp_path / "toy.safetensors"


def rewritten(path: Path, change: Callable[[dict[str, Any]], None], *, sealed: bool = True) -> Path:
    """The file with another header; `sealed`: with the hash that belongs to it."""
    data = path.read_bytes()
    header = json.loads(_split(data)[0] or "")
    change(header)
    if sealed:
        header["header_sha256"] = _sha256_of(header)
    path.write_bytes(save(load(data), metadata={KEY: json.dumps(header)}))
    return path


# Round trip


@pytest.mark.parametrize("metric", SHAPES)
def test_what_is_written_is_read_back(tmp_path: Path, metric: str) -> None:
    before = toy(metric)
    save_parameters(before, tmp_path / "a.safetensors")
    after = load_parameters(tmp_path / "a.safetensors")
    for name, array in before.arrays.items():
        assert after.arrays[name].dtype == np.float64
        np.testing.assert_array_equal(after.arrays[name], array)
    told = ("metric", "name", "version", "scale", "provenance", "official", "sha256")
    assert [getattr(after, what) for what in told] == [getattr(before, what) for what in told]


def test_the_same_parameters_are_the_same_bytes_whatever_the_layout_of_the_arrays(tmp_path: Path) -> None:
    first = toy()
    shuffled = {name: np.asfortranarray(array) for name, array in sorted(first.arrays.items())}
    save_parameters(first, tmp_path / "a.safetensors")
    save_parameters(replace(first, arrays=shuffled), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_hash_is_that_of_the_file_and_follows_every_change(written: Path) -> None:
    parameters = load_parameters(written)
    assert parameters.sha256 == hashlib.sha256(written.read_bytes()).hexdigest()
    assert replace(parameters, name="other").sha256 != parameters.sha256


def test_arrays_are_read_only(written: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        load_parameters(written).arrays["mean"][0] = 1


def test_a_metric_takes_only_its_own_parameters() -> None:
    toy("brisque").expect("brisque")
    with pytest.raises(ModelFileError, match=r"parameters of brisque given to niqe \(toy-brisque\)"):
        toy("brisque").expect("niqe")


# Refusals


def test_a_changed_array_is_refused(written: Path) -> None:
    data = bytearray(written.read_bytes())
    data[-1] ^= 1
    written.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"wrong hash: these are not the arrays .* fetch it again"):
        load_parameters(written)


def test_a_changed_header_is_refused(written: Path) -> None:
    rewritten(written, lambda header: header.update(scale="higher is better"), sealed=False)
    with pytest.raises(ModelFileError, match=r"wrong hash: the header was changed"):
        load_parameters(written)


def test_every_changed_byte_is_refused(written: Path) -> None:
    data = written.read_bytes()
    for place in range(0, len(data), 97):
        written.write_bytes(data[:place] + bytes([data[place] ^ 0x20]) + data[place + 1 :])
        with pytest.raises(ModelFileError):
            load_parameters(written)


def test_every_truncation_is_refused(written: Path) -> None:
    data = written.read_bytes()
    for length in [*range(0, len(data), 197), len(data) - 1]:
        written.write_bytes(data[:length])
        with pytest.raises(ModelFileError, match=r"damaged|wrong hash"):
            load_parameters(written)


def test_a_newer_format_is_refused(written: Path) -> None:
    rewritten(written, lambda header: header.update(format_version=2))
    with pytest.raises(ModelFileError, match=r"format 2 is newer than this saqm reads \(1\): upgrade saqm"):
        load_parameters(written)


def test_a_header_without_a_field_is_refused(written: Path) -> None:
    rewritten(written, lambda header: header.pop("scale"))
    with pytest.raises(ModelFileError, match="bad saqm header: 'scale'"):
        load_parameters(written)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    model = Path(__file__).parents[2] / "src" / "saqm" / "models" / "saqm-ct.safetensors"
    with pytest.raises(ModelFileError, match="a model of another kind, not a metric's parameters"):
        load_parameters(model)
    (tmp_path / "foreign.safetensors").write_bytes(save(arrays_of("niqe")))
    with pytest.raises(ModelFileError, match="foreign safetensors: no saqm header"):
        load_parameters(tmp_path / "foreign.safetensors")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    with pytest.raises(ModelFileError, match="not a parameter file, or a damaged one: no table of arrays"):
        load_parameters(tmp_path / "empty.safetensors")
    scipy.io.savemat(tmp_path / "official.mat", {"mu_prisparam": np.zeros((1, 36))})
    with pytest.raises(ModelFileError, match="official files are read by import_official"):
        load_parameters(tmp_path / "official.mat")


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no parameters 'niqe-ultrasound': shipped are .*; or give a \.safetens"):
        load_parameters("niqe-ultrasound")
    with pytest.raises(ModelFileError, match=r"none\.safetensors: cannot be read: No such file"):
        load_parameters(tmp_path / "none.safetensors")
    with pytest.raises(ModelFileError, match=r"a parameter file is named \.safetensors"):
        save_parameters(toy(), tmp_path / "toy.npz")
    with pytest.raises(OutputError, match="cannot be written"):
        save_parameters(toy(), tmp_path / "missing" / "toy.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": None}, r"parameters of niqe with no array 'mean'"),
        ({"median": np.zeros(36)}, r"parameters of niqe with an unknown array 'median'"),
        ({"mean": np.zeros(18)}, r"parameters of niqe: 'mean' has the shape \(18,\), not \(36,\)"),
        ({"covariance": np.full((36, 36), np.nan)}, r"'covariance' has NaN or infinity in it"),
    ],
)
def test_wrong_arrays_are_refused(change: dict[str, Any], message: str) -> None:
    arrays = {name: array for name, array in (arrays_of("niqe") | change).items() if array is not None}
    with pytest.raises(ModelFileError, match=message):
        Parameters("niqe", "wrong", arrays)


def test_a_regression_whose_parts_do_not_match_is_refused() -> None:
    arrays = arrays_of("brisque")
    with pytest.raises(ModelFileError, match=r"'support_vectors' has the shape \(4, 36\), not \(5, 36\)"):
        Parameters("brisque", "wrong", arrays | {"support_vectors": np.zeros((4, 36))})
    with pytest.raises(ModelFileError, match="feature 1 has an empty range"):
        Parameters("brisque", "wrong", arrays | {"maximum": arrays["minimum"]})
    with pytest.raises(ModelFileError, match="no metric 'biqaa' has parameters; known are niqe, brisque, bliinds"):
        Parameters("biqaa", "wrong", {})


# What ships


@pytest.mark.parametrize("name", shipped_parameters())
def test_shipped_parameters_load_say_where_they_come_from_and_have_a_card(name: str) -> None:
    parameters = load_parameters(name)
    assert parameters.name == name
    assert parameters.metric == name.partition("-")[0]
    assert not parameters.official
    assert "lower is better" in parameters.scale
    assert parameters.provenance.images_sha256
    assert "not said" not in (parameters.provenance.trained_on, parameters.provenance.licence)
    assert "not the official" in read_parameters_card(name)


def test_shipped_are_two_of_each_metric_with_a_regression_or_a_distance() -> None:
    assert shipped_parameters() == tuple(
        f"{metric}-{domain}" for metric in ("bliinds", "brisque", "niqe") for domain in ("ct", "natural")
    )


def test_a_file_without_a_card_says_so(written: Path) -> None:
    with pytest.raises(ModelFileError, match="these parameters have no card"):
        read_parameters_card(written)


# The authors' files


@pytest.mark.parametrize("metric", SHAPES)
def test_official_files_come_in_whatever_they_are_called(tmp_path: Path, metric: str) -> None:
    source = reference.official(metric)
    for file in (source, source.with_name("allrange")) if metric == "brisque" else (source,):
        shutil.copyfile(file, tmp_path / f"renamed-{file.name}.bin")
    renamed = import_official(tmp_path)
    assert (renamed.metric, renamed.name, renamed.version) == (metric, f"{metric}-official", "as released")
    assert renamed.official
    assert import_official(source).arrays.keys() == SHAPES[metric].keys()
    save_parameters(renamed, tmp_path / "mine.safetensors")
    saved = load_parameters(tmp_path / "mine.safetensors")
    assert saved.official
    assert saved.provenance == renamed.provenance


def test_official_niqe_is_what_the_file_holds() -> None:
    path = reference.official("niqe")
    arrays, variables = import_official(path).arrays, scipy.io.loadmat(path)
    np.testing.assert_array_equal(arrays["mean"], variables["mu_prisparam"][0])
    np.testing.assert_array_equal(arrays["covariance"], variables["cov_prisparam"])


def test_official_brisque_is_found_from_either_file() -> None:
    model, ranges = reference.official("brisque"), reference.official("brisque-ranges")
    first, second = import_official(model), import_official(ranges)
    assert first.sha256 == second.sha256
    arrays = first.arrays  # numbers of section 2 of the specification, and lines of the file
    assert arrays["support_vectors"].shape == (774, 36)
    assert (float(arrays["gamma"]), float(arrays["rho"])) == (0.05, -153.591)
    assert np.abs(arrays["coefficients"]).max() == 1024
    assert (float(arrays["lower"]), float(arrays["upper"])) == (-1, 1)
    lines = model.read_text().splitlines()
    last = dict(cell.split(":") for cell in lines[-1].split()[1:])
    assert arrays["support_vectors"][-1, int("36") - 1] == float(last.get("36", 0))
    index, low, high = ranges.read_text().splitlines()[-1].split()
    assert (arrays["minimum"][int(index) - 1], arrays["maximum"][int(index) - 1]) == (float(low), float(high))


def test_official_bliinds_is_rounded_as_the_released_predictor_has_it() -> None:
    found = import_official(reference.official("bliinds"))
    assert found.arrays["mean"][24] == 38.4298
    assert found.arrays["inverse_covariance"][24, 24] == 0.0112
    assert found.provenance.settings["note"] == "rounded to four decimals, as the released predictor has it"


def test_the_copyright_notice_travels_with_the_official_parameters() -> None:
    for metric in ("niqe", "brisque"):
        notice = (reference.official(metric).with_name("NOTICE.txt")).read_text()
        notice = notice.split("LINE------------", 1)[1].split("-----------COPYRIGHT", 1)[0]
        words = import_official(reference.official(metric)).provenance.licence.split()
        assert [word.rstrip(".") for word in words] == [word.rstrip(".") for word in notice.split()]


def test_a_changed_official_file_is_imported_but_not_called_official(tmp_path: Path) -> None:
    for file in (reference.official("brisque"), reference.official("brisque-ranges")):
        (tmp_path / file.name).write_bytes(file.read_bytes().replace(b"-153.591", b"-155.845"))
    found = import_official(tmp_path)
    assert (found.name, found.version, found.official) == ("brisque-imported", "unknown", False)
    assert found.provenance.trained_on == "not known: the bytes are not those of the release"
    assert float(found.arrays["rho"]) == -155.845


def libsvm(folder: Path, *, vectors: int = 3, model: str = "", ranges: str = "") -> Path:
    """A small made model in libsvm's formats; `model` and `ranges` replace a line: "old->new"."""
    header = "svm_type epsilon_svr\nkernel_type rbf\ngamma 0.05\nnr_class 2\ntotal_sv 3\nrho -50\nSV\n"
    texts = {
        "allmodel": header + "".join(f"{n + 1} 2:0.5 36:-{n}\n" for n in range(vectors)),
        "allrange": "x\n-1 1\n" + "".join(f"{n + 1} 0 {n + 1}\n" for n in range(36)),
    }
    for name, change in (("allmodel", model), ("allrange", ranges)):
        old, _, new = change.partition("->")
        (folder / name).write_text(texts[name].replace(old, new) if old else texts[name])
    return folder / "allmodel"


def test_indices_that_libsvm_leaves_out_are_zero(tmp_path: Path) -> None:
    vectors = import_official(libsvm(tmp_path)).arrays["support_vectors"]
    assert np.flatnonzero(vectors[2]).tolist() == [1, 35]
    assert vectors[2, [1, 35]].tolist() == [0.5, -2]


@pytest.mark.parametrize(
    ("model", "ranges", "message"),
    [
        ("epsilon_svr->c_svc", "", r"allmodel: not a libsvm file of BRISQUE: svm_type is c_svc, not epsilon_svr"),
        ("rbf->linear", "", r"kernel_type is linear, not rbf"),
        ("total_sv 3->total_sv 4", "", r"3 support vectors, but total_sv says 4"),
        ("36:->37:", "", r"feature 37, but BRISQUE has 1 to 36"),
        ("SV\n->SW\n", "", r"allmodel: .*no line SV"),
        ("", "36 0 36\n->", r"allrange: .*ranges of 35 features, not of 36"),
        ("", "x\n->y\n", r"allrange: .*the scores were scaled too"),
        ("", "7 0 7->7 7 7", r"feature 7 has an empty range"),
    ],
)
def test_other_regressions_of_libsvm_are_refused(tmp_path: Path, model: str, ranges: str, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        import_official(libsvm(tmp_path, model=model, ranges=ranges))


def test_half_of_brisque_asks_for_the_other_half(tmp_path: Path) -> None:
    model = libsvm(tmp_path)
    shutil.copyfile(tmp_path / "allrange", tmp_path / "oldrange")
    with pytest.raises(ModelFileError, match=r"which range file \(allrange\)\? allrange, oldrange; put the two"):
        import_official(model)
    for file in tmp_path.glob("*range"):
        file.unlink()
    with pytest.raises(ModelFileError, match=r"allmodel: the range file \(allrange\) of BRISQUE is wanted beside it"):
        import_official(model)


def test_what_is_no_official_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x marks the spot\n")
    for what in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ModelFileError, match=r"no official parameter file known to saqm: modelparameters\.mat"):
            import_official(what)
    scipy.io.savemat(tmp_path / "other.mat", {"mu": np.zeros(3)})
    with pytest.raises(ModelFileError, match=r"without the variables of NIQE or BLIINDS-II \(mu_prisparam"):
        import_official(tmp_path / "other.mat")
    scipy.io.savemat(tmp_path / "small.mat", {"mu_prisparam": np.zeros((1, 18)), "cov_prisparam": np.eye(18)})
    with pytest.raises(ModelFileError, match=r"small\.mat: parameters of niqe: 'mean' has the shape \(18,\)"):
        import_official(tmp_path / "small.mat")
    (tmp_path / "small.mat").write_bytes((tmp_path / "small.mat").read_bytes()[:300])
    with pytest.raises(ModelFileError, match=r"small\.mat: a damaged MATLAB file"):
        import_official(tmp_path / "small.mat")
    libsvm(tmp_path)
    with pytest.raises(ModelFileError, match="official files of several metrics; name one of the files"):
        import_official(tmp_path)


def test_the_kind_of_the_file_is_written_in_it(written: Path) -> None:
    assert json.loads(_split(written.read_bytes())[0] or "")["kind"] == KIND
