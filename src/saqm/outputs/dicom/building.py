"""What all objects share: highdicom, loaded late and kept quiet, and the patient and study that they belong to."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from saqm.errors import ImageError, MissingExtra, SaqmError
from saqm.outputs.dicom.header import IDENTITY, TYPE_2, pydicom_hushed
from saqm.outputs.dicom.maker import PRODUCT, PROJECT, Coded, Maker
from saqm.scorer import SOFTWARE

if TYPE_CHECKING:
    from datetime import datetime

    from highdicom import SOPClass
    from highdicom.sr import ObserverContext
    from pydicom.dataset import Dataset
    from pydicom.sr.coding import Code

RATING = Coded("111029", "DCM", "Image Quality Rating")
RATING_UNIT = Coded("{0:100}", "UCUM", "range:0:100")  # TID 4014
QUALITY = Coded("111101", "DCM", "Image Quality")
DEVICE = Coded("121007", "DCM", "Device")

HIGHDICOM = "Highdicom open-source contributors"  # as it names itself
DEIDENTIFICATION = ("DeidentificationMethod", "DeidentificationMethodCodeSequence")

# Dates and times of ACR-NEMA had marks within, which a reader has to take and a writer may not (PS3.5 6.2).
FORMERLY_MARKED = (("StudyDate", "."), ("PatientBirthDate", "."), ("StudyTime", ":"))
FORMER = re.compile(r"\d{4}\.\d\d\.\d\d|\d\d:\d\d(:\d\d(\.\d{1,6})?)?")

# Series numbers of what is made, high so that a viewer lists them behind the images.
REPORT_SERIES, MAP_SERIES, NOTE_SERIES = 9901, 9902, 9905


def need_highdicom(what: str) -> None:
    """Raise MissingExtra where highdicom is not installed; to load it takes a second, to look for it does not."""
    if find_spec("highdicom") is None:
        raise MissingExtra("highdicom", "dicom", what)


@contextmanager
def highdicom_at_work(what: str, uid: str) -> Iterator[None]:
    """Makes of highdicom's complaints an ImageError that names the image by its UID, never by what stands in it.

    Its warnings and its messages quote values, a patient's name among them: neither is passed on. MissingExtra without
    highdicom.
    """
    need_highdicom(what)
    with pydicom_hushed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except SaqmError:
            raise
        except Exception as error:
            raise ImageError(
                f"image {uid}: {what} cannot be made of its header ({type(error).__name__} in highdicom); its class "
                "is one that highdicom does not know, or its geometry is incomplete"
            ) from error


def coded(concept: Coded) -> Code:
    """The concept as pydicom's type."""
    from pydicom.sr.coding import Code

    return Code(*concept)


def stub_of(header: Dataset) -> Dataset:
    """What tells which image it is, and nothing of its patient: highdicom checks, logs and refuses odd values."""
    from pydicom.dataset import Dataset

    stub = Dataset()
    for keyword in IDENTITY:
        setattr(stub, keyword, str(header[keyword].value))
    for keyword in TYPE_2:
        setattr(stub, keyword, None)
    stub.Rows, stub.Columns = header.Rows, header.Columns
    stub.Modality = ""  # or the library of images would demand geometry that real files lack
    return stub


def given_to(made: SOPClass, header: Dataset, now: datetime) -> None:
    """Give an object the patient and the study of the image it is of, as they stand there, and its own time."""
    made.copy_patient_and_study_information(header)
    if character_set := header.get("SpecificCharacterSet"):
        made.SpecificCharacterSet = character_set
    if not any(method in made for method in DEIDENTIFICATION):
        # Type 1C (PS3.3 C.7.1.1): who says that the identity was removed has to say how. Some files do not.
        made.pop("PatientIdentityRemoved", None)
    for keyword, mark in FORMERLY_MARKED:
        value = made.get(keyword)
        if isinstance(value, str) and FORMER.fullmatch(value.strip()):
            setattr(made, keyword, value.strip().replace(mark, ""))
    for item in made.get("ContributingEquipmentSequence") or ():
        if item.get("Manufacturer") == HIGHDICOM:
            item.ContributionDateTime = now.strftime("%Y%m%d%H%M%S")  # else the clock's
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    made.InstanceCreationDate = made.ContentDate = made.SeriesDate = date
    made.InstanceCreationTime = made.ContentTime = made.SeriesTime = time
    if (offset := now.strftime("%z")) and "TimezoneOffsetFromUTC" not in made:
        made.TimezoneOffsetFromUTC = offset[:5]


def equipment(maker: Maker) -> dict[str, Any]:
    """The arguments by which highdicom names the maker: Enhanced General Equipment, the same for every object."""
    named = {
        "manufacturer": PROJECT,
        "manufacturer_model_name": PRODUCT,
        "software_versions": SOFTWARE,
        "device_serial_number": maker.device_uid,
    }
    return named if maker.institution is None else {**named, "institution_name": maker.institution}


def observer(maker: Maker) -> ObserverContext:
    """The maker as the one who observed: a device."""
    from highdicom import sr

    return sr.ObserverContext(
        observer_type=coded(DEVICE),
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=maker.device_uid,
            name=PRODUCT,
            manufacturer_name=PROJECT,
            model_name=PRODUCT,
            serial_number=SOFTWARE,
            **({} if maker.station is None else {"physical_location": maker.station}),
        ),
    )


def plain(made: SOPClass) -> Dataset:
    """An object as a data set and nothing more, ready to be written."""
    from pydicom.dataset import Dataset

    dataset = Dataset()
    dataset.update(made)
    dataset.file_meta = made.file_meta
    return dataset


def evidence_of(headers: Iterable[Dataset]) -> list[Dataset]:
    """The images of a study, as a document names what it rests on: by study and series."""
    from pydicom.dataset import Dataset

    of_series: dict[str, list[Dataset]] = {}
    study = Dataset()
    for header in headers:
        image = Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        of_series.setdefault(str(header.SeriesInstanceUID), []).append(image)
        study.StudyInstanceUID = header.StudyInstanceUID
    study.ReferencedSeriesSequence = []
    for uid, images in of_series.items():
        series = Dataset()
        series.SeriesInstanceUID, series.ReferencedSOPSequence = uid, images
        study.ReferencedSeriesSequence.append(series)
    return [study]


def one_study(headers: Iterable[Dataset]) -> Sequence[Dataset]:
    """The headers, one for each image, by series and number of the image, whatever the order they came in.

    Raises SaqmError for several studies, or none.
    """
    by_instance = {str(header.SOPInstanceUID): header for header in headers}
    studies = sorted({str(header.StudyInstanceUID) for header in by_instance.values()})
    if len(studies) > 1:
        raise SaqmError(
            f"images of {len(studies)} studies ({', '.join(studies[:3])}{', ...' if len(studies) > 3 else ''}): an "
            "object belongs to one study; make one for each"
        )
    if not studies:
        raise SaqmError("no image: an object needs at least one to refer to")
    return sorted(by_instance.values(), key=place_of)


def place_of(header: Dataset) -> tuple[str, int, str]:
    """Where an image stands among others of its study: series, number, UID."""
    return str(header.SeriesInstanceUID), int(number_of(header) or 0), str(header.SOPInstanceUID)


def number_of(header: Dataset) -> int | None:
    """InstanceNumber, None where there is none."""
    from saqm.image.dicom_elements import integer

    try:
        return integer(header, "InstanceNumber", str(header.SOPInstanceUID))
    except ImageError:
        return None


def uids_of(header: Dataset) -> dict[str, str]:
    """An image's UIDs by the names that a record has for them."""
    names = ("study", "series", "instance", "sop_class")
    return {name: str(header[keyword].value) for name, keyword in zip(names, IDENTITY, strict=True)}
