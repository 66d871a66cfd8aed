"""Quality maps as DICOM objects: a parametric map where the image lies in space, else a fractional segmentation.

What decides is the image's header. One with a place in the patient (frame of reference, position, orientation, pixel
spacing: CT, MR) gets a Parametric Map: the map's own numbers, float32, in {0:100}. Any other (ultrasound, radiographs,
captures) gets what DICOM has for flat pictures, a fractional Segmentation in 8 bits. That holds likelihoods and not
ratings: how likely a place is an artefact is taken as 1 - rating / 100. Axes: H W picture.
"""

from __future__ import annotations

import hashlib
import math
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saqm.errors import ImageError, SaqmError
from saqm.outputs.dicom import building
from saqm.outputs.dicom.building import RATING, RATING_UNIT, coded, highdicom_at_work
from saqm.outputs.dicom.maker import PRODUCT, Coded, Maker, derived_uid
from saqm.outputs.dicom.reported import Reported

if TYPE_CHECKING:
    from datetime import datetime

    from highdicom import SOPClass
    from pydicom.dataset import Dataset

    from saqm.maps import QualityMap
    from saqm.scorer import Score

WHAT = "a quality map"
PLACE = ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
TAKEN_ALONG = (
    *PLACE, "SliceThickness", "SpacingBetweenSlices", "PositionReferenceIndicator", "Laterality", "PatientOrientation",
    "ImageType", "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
)  # fmt: skip
FLAT = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture: of other classes highdicom demands a geometry
PADDING = -1000.0  # of places that were not judged; no rating comes near it
FRACTIONS = 255  # steps of a likelihood
ARTIFACT = Coded("111207", "DCM", "Image artifact(s)")
SEGMENTS = (
    ("image artifact likelihood", "likelihood = 1 - rating / 100", ARTIFACT),
    ("not judged", "1 where nothing was judged: segment 1 says nothing there", Coded("111213", "DCM", "No image")),
)
INTELLIGENCE = Coded("123109", "DCM", "Artificial Intelligence")  # CID 7162
MAP_DESCRIPTION = "Image quality map (saqm)"
LIKELIHOOD_DESCRIPTION = "Image artifact likelihood (saqm)"


def quality_map(header: Dataset, quality: QualityMap, score: Score, maker: Maker, *, now: datetime) -> Dataset:
    """A map of a score as a DICOM object of the image: a Parametric Map, or a fractional Segmentation.

    In a Parametric Map a place that was not judged holds FloatPixelPaddingValue, -1000. In a Segmentation it is marked
    by a second segment; likelihoods end at 0 and 1 though a single place of a map may lie beyond 0 or 100. Each frame
    of a clip gets an object of its own, with its number in the reference to the image.
    The UIDs are made of the maker, the image, the model and the map's values. Raises ImageError where the map is not of
    this image, and for frames of an enhanced CT or MR; SaqmError for a score that is none; MissingExtra.
    """
    said = Reported.of(score.to_record(), building.uids_of(header))
    instance = said.uids["instance"]
    if said.score is None:
        raise SaqmError(f"image {instance}: not scored, so it has no map")
    shape = int(header.Rows), int(header.Columns)
    if quality.score_HW.shape != shape:
        raise ImageError(
            f"image {instance}: a map of {quality.score_HW.shape} pixels for an image of {shape}: they do not belong "
            "together"
        )
    if said.frame is not None and "PerFrameFunctionalGroupsSequence" in header:
        raise ImageError(
            f"image {instance}: maps of single frames of an enhanced CT or MR cannot be written as DICOM yet: take npy "
            "or png"
        )
    key = (maker.device_uid, instance, said.frame, dict(said.model), dict(said.settings), quality.stride)
    digest = hashlib.sha256(np.ascontiguousarray(quality.score_HW, "<f4").tobytes()).hexdigest()
    uids = {
        "series_instance_uid": derived_uid("map series", maker.device_uid, said.uids["series"], dict(said.model)),
        "sop_instance_uid": derived_uid("map", *key, digest),
        "series_number": building.MAP_SERIES,
        "instance_number": max(building.number_of(header) or 1, 1) if said.frame is None else said.frame + 1,
    }
    with highdicom_at_work(WHAT, instance):
        stub = _with_place(header)
        placed = all(header.get(keyword) for keyword in PLACE)
        if not placed:
            _flatten(stub)
        make = _parametric_map if placed else _segmentation
        made: Dataset = make(stub, quality.score_HW, said, {**uids, **building.equipment(maker)})
        _refer_to(made, said)
        _rename_dimensions(made, derived_uid("map dimensions", uids["sop_instance_uid"]))
        building.given_to(made, header, now)
        return made


def _rename_dimensions(made: Dataset, uid: str) -> None:
    """Give the dimensions a UID made of the object's own, in place of a random one."""
    for sequence in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in made[sequence].value:
            item.DimensionOrganizationUID = uid


def _flatten(stub: Dataset) -> None:
    """Take away what is left of a geometry that is not whole: highdicom would build on it."""
    stub.SOPClassUID = FLAT
    for keyword in (*PLACE, "SliceThickness", "SpacingBetweenSlices"):
        if keyword in stub:
            delattr(stub, keyword)


def _with_place(header: Dataset) -> Dataset:
    """What highdicom needs of the image, and nothing of its patient."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    stub = building.stub_of(header)
    stub.Modality = header.get("Modality") or "OT"
    for keyword in TAKEN_ALONG:
        if keyword in header:
            stub[keyword] = header[keyword]
    stub.file_meta = FileMetaDataset()
    stub.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian  # what is read of an image; its pixels are not
    return stub


def _parametric_map(stub: Dataset, score_HW: NDArray[np.float32], said: Reported, named: dict[str, Any]) -> SOPClass:
    import highdicom

    judged_HW = np.isfinite(score_HW)
    low, high = float(np.nanmin(score_HW)), float(np.nanmax(score_HW))
    if low <= PADDING:
        raise ImageError(f"image {said.uids['instance']}: a map value of {low:g}: not in the score's units")
    mapping = highdicom.pm.RealWorldValueMapping(
        lut_label="IQ",
        lut_explanation="Image quality rating, higher is better",
        unit=coded(RATING_UNIT),
        slope=1.0,
        intercept=0.0,
        value_range=(float(min(0, math.floor(low))), float(max(100, math.ceil(high)))),
        quantity_definition=coded(RATING),
    )
    made = highdicom.pm.ParametricMap(
        [stub],
        np.where(judged_HW, score_HW, np.float32(PADDING)),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        window_center=50,
        window_width=100,
        content_label="IQMAP",
        content_description="Where the image quality rating comes from",
        series_description=MAP_DESCRIPTION,
        **named,
    )
    made.FloatPixelPaddingValue = made.FloatPixelPaddingRangeLimit = PADDING  # a range of this one value
    if "Laterality" not in made:
        made.Laterality = None  # type 2C; where the image does not say, nobody can
    return made


def _segmentation(stub: Dataset, score_HW: NDArray[np.float32], said: Reported, named: dict[str, Any]) -> SOPClass:
    from highdicom import AlgorithmIdentificationSequence, seg

    algorithm = AlgorithmIdentificationSequence(
        said.model.get("name", PRODUCT), coded(INTELLIGENCE), said.model.get("version", "not said")
    )
    judged_HW = np.isfinite(score_HW)
    likelihood_HW = np.clip(1 - np.where(judged_HW, score_HW, 100) / 100, 0, 1)
    segments = []
    for number, (label, described, what) in enumerate(SEGMENTS, start=1):
        segment = seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=coded(building.QUALITY),
            segmented_property_type=coded(what),
            algorithm_type=seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        segment.SegmentDescription = described
        segments.append(segment)
    made = seg.Segmentation(
        [stub],
        np.stack([likelihood_HW, ~judged_HW], axis=-1).astype(np.float32)[None],
        seg.SegmentationTypeValues.FRACTIONAL,
        segments,
        fractional_type=seg.SegmentationFractionalTypeValues.PROBABILITY,
        max_fractional_value=FRACTIONS,
        omit_empty_frames=False,
        content_label="IQMAP",
        content_description=SEGMENTS[0][1],
        series_description=LIKELIHOOD_DESCRIPTION,
        **named,
    )
    if "PatientOrientation" not in made:
        made.PatientOrientation = ""  # type 2C: asked for where there is no geometry
    return made


def _refer_to(dataset: Dataset, said: Reported) -> None:
    """Say in each reference to the image of which class it really is, and which of its frames is meant."""
    for element in dataset:
        if element.VR != "SQ":
            continue
        if element.keyword == "SourceImageSequence":
            element.value = deepcopy(element.value)  # highdicom has the same items in the list of referenced series
        for item in element.value:
            if item.get("ReferencedSOPInstanceUID") == said.uids["instance"]:
                item.ReferencedSOPClassUID = said.uids["sop_class"]
                if element.keyword == "SourceImageSequence" and said.frame is not None:
                    item.ReferencedFrameNumber = said.frame + 1
            _refer_to(item, said)
