"""Stored values become what a viewer shows: palette, modality LUT, VOI LUT or window, inversion; and where to look."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saqm.errors import ImageError
from saqm.image.decoded import Step
from saqm.image.dicom_elements import functional_group, integer, number, numbers, text
from saqm.image.dicom_header import Header
from saqm.image.window import DEFAULT_WINDOWS, PERCENTILES, WindowFunction, apply_range, apply_table, apply_window

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

LOSSY = (".4.50", ".4.51", ".4.81", ".4.91", ".4.203")  # endings of transfer syntaxes that (may) lose detail


TISSUE, COLOUR_FLOW = 1, 2  # RegionDataType (PS3.3 C.8.5.5.1.1); 3 and 4 are Doppler traces, 10 is an ECG strip
CENTIMETRES = 3  # PhysicalUnitsXDirection
# Files were made smaller without their regions (both of pydicom's): a region of which less lies inside is not believed.
LEAST_INSIDE = 0.5


def displayed(
    array: NDArray[Any], header: Header, index: int, window: tuple[float, float] | None, notes: list[str]
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None, list[Step], NDArray[Any] | None]:
    """Pixels in [0, 1], which of them are no padding (None: all), the steps, and the rescaled values (None: colour)."""
    steps: list[Step] = []
    if header.photometric == "PALETTE COLOR":
        array, details = _through_palette(array, header)
        steps.append(Step("palette", details))
        top = float(np.iinfo(array.dtype).max)
    elif array.ndim == 3:
        if header.photometric.startswith("YBR"):
            steps.append(Step("colour", {"from": header.photometric, "to": "RGB"}))
        top = float(2**header.bits_stored - 1)
    if array.ndim == 3:
        if window is not None:
            notes.append("the window asked for was not applied: a colour image has none")
        return apply_range(array[..., :3], 0, top), None, steps, None

    dataset = header.dataset
    padding, padding_details = _padding(array, header)
    values, low, high, rescaled, step = _through_modality(array, header, index, notes)
    steps += [step] if step else []
    inside = values if padding is None else values[~padding]
    pixels, details = _through_window(
        values, inside, header, index, limits=(low, high), rescaled=rescaled, window=window, notes=notes
    )
    steps.append(Step("window", details))
    if header.photometric == "MONOCHROME1" or text(dataset, "PresentationLUTShape") == "INVERSE":
        # pydicom's apply_presentation_lut leaves MONOCHROME1 as it is when the shape is absent
        pixels = 1 - pixels
        steps.append(Step("invert", {"from": header.photometric}))
    if padding is None:
        return pixels, None, steps, values
    pixels[padding] = 0  # no part of the picture: shown as air
    return pixels, ~padding, [*steps, Step("padding", {**padding_details, "share": float(padding.mean())})], values


def _through_palette(indices: NDArray[Any], header: Header) -> tuple[NDArray[Any], dict[str, object]]:
    """RGB from palette indices. Entries of 16 bits are brought to 8: the high byte is what every viewer shows."""
    dataset = header.dataset
    if "RedPaletteColorLookupTableData" in dataset:
        count, first, _ = dataset.RedPaletteColorLookupTableDescriptor
        tables = [dataset[f"{colour}PaletteColorLookupTableData"].value for colour in ("Red", "Green", "Blue")]
        wide = len(tables[0]) >= 2 * (count or 2**16)
        depth = ("<" if header.syntax.is_little_endian else ">") + "u2" if wide else "u1"
        colours = np.stack([apply_table(indices, first, np.frombuffer(table, depth)) for table in tables], -1)
    else:  # segmented tables
        from pydicom.pixels.processing import apply_color_lut

        colours = apply_color_lut(indices, dataset)
    details: dict[str, object] = {"entry_bits": 8 * colours.dtype.itemsize}
    if colours.dtype.itemsize == 2:
        # both: an 8-bit palette comes as 0..65280, and a mere change of type would turn everything black
        colours = (colours >> 8).astype(np.uint8)
        details["shift"] = 8
    return colours, details


def _padding(stored: NDArray[Any], header: Header) -> tuple[NDArray[np.bool_] | None, dict[str, object]]:
    """Where the file says that a stored value is no picture (PixelPaddingValue, up to PixelPaddingRangeLimit)."""
    first = integer(header.dataset, "PixelPaddingValue", header.name)
    if first is None:
        return None, {}
    last = integer(header.dataset, "PixelPaddingRangeLimit", header.name)
    low, high = sorted((first, first if last is None else last))
    padding = np.asarray((stored >= low) & (stored <= high))
    return (padding, {"low": low, "high": high}) if padding.any() else (None, {})


def _through_modality(
    stored: NDArray[Any], header: Header, index: int, notes: list[str]
) -> tuple[NDArray[Any], float, float, bool, Step | None]:
    """Rescaled values, the range they can take, whether the file rescales at all, and the step."""
    low, high = header.stored_range
    if tables := header.dataset.get("ModalityLUTSequence"):
        first, entries = _table(tables[0], header)
        step = Step("rescale", {"table": len(entries), "first": first, "from": "file"})
        return apply_table(stored, first, entries), float(entries.min()), float(entries.max()), True, step
    group, origin = functional_group(header.dataset, index, "PixelValueTransformationSequence")
    slope, intercept = number(group, "RescaleSlope"), number(group, "RescaleIntercept")
    if slope is None or intercept is None:
        return stored, low, high, False, None
    if slope == 0:
        notes.append("RescaleSlope is 0: not applied")
        return stored, low, high, False, None
    ends = sorted((low * slope + intercept, high * slope + intercept))
    step = Step("rescale", {"slope": slope, "intercept": intercept, "from": origin})
    return stored.astype(np.float64) * slope + intercept, ends[0], ends[1], True, step


def _through_window(
    values: NDArray[Any],
    inside: NDArray[Any],
    header: Header,
    index: int,
    *,
    limits: tuple[float, float],
    rescaled: bool,
    window: tuple[float, float] | None,
    notes: list[str],
) -> tuple[NDArray[np.float32], dict[str, object]]:
    """Display values and where the window came from: caller, file, modality's default, percentiles, stored range."""
    if window is not None:
        center, width = window
        if not (math.isfinite(center) and math.isfinite(width) and width > 0):
            raise ImageError(f"{header.name}: window {window}: a center and a positive width are wanted")
        return _windowed(values, center, width, "LINEAR", "caller")
    group, origin = functional_group(header.dataset, index, "FrameVOILUTSequence")
    if tables := group.get("VOILUTSequence"):
        first, entries = _table(tables[0], header)
        shown = apply_range(apply_table(values, first, entries), float(entries.min()), float(entries.max()))
        count = len(entries)
        return shown, _window_details(first + count / 2, count, "TABLE", f"{origin} (1 of {len(tables)})")
    centers, widths = numbers(group, "WindowCenter"), numbers(group, "WindowWidth")
    if centers and widths:
        if widths[0] > 0:
            function = (text(group, "VOILUTFunction") or "LINEAR").upper()
            if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
                notes.append(f"unknown VOILUTFunction {function!r}: taken as LINEAR")
                function = "LINEAR"
            return _windowed(values, centers[0], widths[0], function, f"{origin} (1 of {len(centers)})")  # type: ignore[arg-type]
        notes.append(f"window of width {widths[0]:g} in the file: not applied")
    if rescaled and header.modality in DEFAULT_WINDOWS:
        return _windowed(values, *DEFAULT_WINDOWS[header.modality], "LINEAR", f"default for {header.modality}")
    low, high = limits
    chosen = "stored range"
    if header.bits_stored > 8 and inside.size:  # 8 bits and no window: made to be shown as they are
        lower, upper = (float(value) for value in np.percentile(inside, PERCENTILES))
        if upper > lower:
            low, high, chosen = lower, upper, f"percentiles {PERCENTILES[0]}–{PERCENTILES[1]}"
    return apply_range(values, low, high), _window_details((low + high) / 2, high - low, "LINEAR_EXACT", chosen)


def _windowed(
    values: NDArray[Any], center: float, width: float, function: WindowFunction, origin: str
) -> tuple[NDArray[np.float32], dict[str, object]]:
    if function == "LINEAR" and width < 1:
        function = "LINEAR_EXACT"  # LINEAR is not defined there (PS3.3 C.11.2.1.2.1); scaled values do need it
    return apply_window(values, center, width, function), _window_details(center, width, function, origin)


def _window_details(center: float, width: float, function: str, origin: str) -> dict[str, object]:
    return {"center": float(center), "width": float(width), "function": function, "from": origin}


def _table(item: Dataset, header: Header) -> tuple[int, NDArray[np.integer]]:
    """First mapped value and entries of a modality or VOI lookup table."""
    count, first, _ = item.LUTDescriptor
    data = item["LUTData"].value
    if isinstance(data, bytes):
        data = np.frombuffer(data, ("<" if header.syntax.is_little_endian else ">") + "u2")
    entries = np.atleast_1d(np.asarray(data)).astype(np.int64)[: int(count) or 2**16]
    if not entries.size:
        raise ImageError(f"{header.name}: lookup table without entries")
    return int(first), entries


# --- what the header says about the whole picture


def unit(dataset: Dataset, index: int) -> str | None:
    """The unit of rescaled values: RescaleType, of CT HU where it is silent; None where it is not said."""
    group, _ = functional_group(dataset, index, "PixelValueTransformationSequence")
    said = text(group, "RescaleType")
    if said is None and "RescaleSlope" in group and text(dataset, "Modality") == "CT":
        return "HU"  # PS3.3 C.8.2.1: the default of a CT image's rescale type
    return None if said in (None, "US") else said  # US: unspecified


def spacing(dataset: Dataset, index: int) -> tuple[float, float] | None:
    """Row and column spacing of a frame in mm, from the first element that gives two positive numbers, else None."""
    measures, _ = functional_group(dataset, index, "PixelMeasuresSequence")
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        found = numbers(measures, keyword)
        if len(found) == 2 and min(found) > 0:
            return found[0], found[1]
    return None


def ultrasound_region(
    dataset: Dataset, rows: int, columns: int, notes: list[str]
) -> tuple[NDArray[np.bool_] | None, list[Step], tuple[float, float] | None]:
    """Where the tissue is by SequenceOfUltrasoundRegions (None: cannot be believed), the step, the spacing in mm."""
    regions = dataset.get("SequenceOfUltrasoundRegions") or ()
    kept: list[dict[str, object]] = []
    left_out = []
    region = np.zeros((rows, columns), bool)
    others = np.zeros((rows, columns), bool)
    clipped, spacing = False, None
    for item in regions:
        corners = [number(item, f"RegionLocation{end}") for end in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
        if any(corner is None for corner in corners):
            notes.append("ultrasound region without its corners: left out")
            continue
        left, top, right, bottom = (int(corner or 0) for corner in corners)
        right, bottom = right + 1, bottom + 1
        area = max(0, right - left) * max(0, bottom - top)
        c0, c1, r0, r1 = max(0, left), min(columns, right), max(0, top), min(rows, bottom)
        inside = max(0, c1 - c0) * max(0, r1 - r0)
        kind = number(item, "RegionDataType")
        if kind not in (TISSUE, COLOUR_FLOW):
            left_out.append(None if kind is None else int(kind))
            if inside:
                others[r0:r1, c0:c1] = True
            continue
        if not area or inside < LEAST_INSIDE * area:
            notes.append(
                f"ultrasound region (columns {left}..{right - 1}, rows {top}..{bottom - 1}) does not fit the "
                f"{rows}x{columns} picture: not believed, the sector is looked for instead"
            )
            return None, [Step("region", {"from": "not believed", "left": left, "top": top})], None
        clipped = clipped or inside < area
        region[r0:r1, c0:c1] = True
        kept.append({"rows": (r0, r1 - 1), "columns": (c0, c1 - 1), "type": int(kind)})
        spacing = spacing or _region_spacing(item)
    if not regions:
        return None, [], None
    details: dict[str, object] = {"from": "file", "kept": kept, "left_out": left_out, "clipped": clipped}
    if clipped:
        notes.append("ultrasound region reaches outside the picture: clipped")
    if kept:
        return region, [Step("region", details)], spacing
    return (~others if others.any() else None), [Step("region", details)], None


def _region_spacing(item: Dataset) -> tuple[float, float] | None:
    units = [number(item, f"PhysicalUnits{axis}Direction") for axis in "YX"]
    deltas = [abs(number(item, f"PhysicalDelta{axis}") or 0) for axis in "YX"]
    return (10 * deltas[0], 10 * deltas[1]) if units == [CENTIMETRES] * 2 and min(deltas) > 0 else None


def history(dataset: Dataset, syntax: UID, notes: list[str]) -> list[Step]:
    """What happened to the picture before it came here: lossy compression, text burned in."""
    steps = []
    ratios = numbers(dataset, "LossyImageCompressionRatio")
    said = text(dataset, "LossyImageCompression")
    if said == "01" or (said is None and syntax.endswith(LOSSY)):
        steps.append(Step("lossy_history", {"ratio": ratios or "unknown", "transfer_syntax": syntax.name}))
        notes.append(f"lossy compression in its history ({', '.join(f'{r:g}:1' for r in ratios) or 'ratio unknown'})")
    burned_in = text(dataset, "BurnedInAnnotation")
    if burned_in != "NO":  # absent means unknown, not none
        steps.append(Step("burned_in_text", {"annotation": "yes" if burned_in == "YES" else "unknown"}))
    return steps


def identity(dataset: Dataset) -> dict[str, str]:
    """The UIDs that say which object this is; no patient names."""
    names = {
        "study": "StudyInstanceUID",
        "series": "SeriesInstanceUID",
        "instance": "SOPInstanceUID",
        "sop_class": "SOPClassUID",
    }
    return {short: uid for short, keyword in names.items() if (uid := text(dataset, keyword))}
