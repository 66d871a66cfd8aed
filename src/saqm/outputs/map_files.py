"""Quality maps on the disk: pictures, numbers, and for a volume one NIfTI on the grid of its file.

Axes: H W picture, I J K T voxels and volumes of a file.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from numpy.typing import NDArray

from saqm.errors import ImageError, SaqmError
from saqm.image import Grid, Image
from saqm.outputs.heatmap import refuse_unscored, save_heatmap
from saqm.writing import replacing

if TYPE_CHECKING:
    from datetime import datetime

    from saqm.maps import QualityMap
    from saqm.outputs.dicom import Maker
    from saqm.scorer import Score

MapFormat = Literal["png", "npy", "nii", "dcm"]


def map_name(image: Image, model: str | None = None, *, of_volume: bool = False) -> str:
    """What the files of an image's map are called, without suffix: its own name, enough of its hash, and the frame.

    `model` where several score the same image; `of_volume` leaves the frame out.
    """
    frame = "" if of_volume or image.source.frame is None else f".frame{image.source.frame:04d}"
    drawn_by = "" if model is None else f".{model}"
    return f"{Path(image.source.path).name}.{image.source.sha256[:8]}{frame}{drawn_by}"


class MapFiles:
    """Writes the maps of one file's pictures into a folder, each in every format asked for.

    png: the picture of `save_heatmap`. npy: the score of each pixel, float32 (H, W), NaN where nothing was judged, and
    beside it in NAME.weight.npy what it counts: sum(score * weight) is the map's mean. nii: the same two as NIfTI
    (NAME.nii.gz, NAME.weight.nii.gz); the slices of a volume go into one, voxel for voxel on the grid of its file, and
    are written when the `with` ends well. dcm: an object of the image's own study (`saqm.outputs.dicom.quality_map`),
    for which `maker` says who makes it, and when. Raises NotScorable for an image that was not scored, OutputError.
    """

    def __init__(
        self, folder: Path, formats: tuple[MapFormat, ...], maker: tuple[Maker, datetime] | None = None
    ) -> None:
        if "dcm" in formats:
            from saqm.outputs.dicom import need_highdicom

            need_highdicom("a DICOM map")
            if maker is None:
                raise SaqmError("a DICOM map says who made it and when: give a maker and the time")
        self.folder, self.formats, self.maker = folder, formats, maker
        self._temporary = ExitStack()
        self._volumes: dict[str, tuple[Grid, NDArray[np.float32]]] = {}  # file name -> its grid and values so far

    def add(
        self, image: Image, quality_map: QualityMap, score: Score | None = None, model: str | None = None
    ) -> tuple[str, ...]:
        """Write one picture's map; `model` goes into the name, where several score the same picture.

        Gives what to tell of the picture: why it has no DICOM map, where it cannot have one.
        """
        refuse_unscored(score)
        stem, grid = map_name(image, model), image.source.grid
        if "png" in self.formats:
            save_heatmap(image, quality_map, self.folder / f"{stem}.png", score)
        for part, values_HW in (("", quality_map.score_HW), (".weight", quality_map.weight_HW.astype(np.float32))):
            if "npy" in self.formats:
                with replacing(self.folder / f"{stem}{part}.npy") as beside, beside.open("wb") as file:
                    np.save(file, values_HW, allow_pickle=False)
            if "nii" in self.formats and grid is not None:
                self._fill(f"{map_name(image, model, of_volume=True)}{part}.nii.gz", grid, values_HW)
            elif "nii" in self.formats:
                save_nifti(values_HW.T[:, :, None], self.folder / f"{stem}{part}.nii.gz", spacing_mm=image.spacing_mm)
        return self._add_object(image, quality_map, score, stem) if "dcm" in self.formats else ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._temporary:
            if kind is None:
                for name, (grid, values) in self._volumes.items():
                    save_nifti(values if grid.shape[3] > 1 else values[..., 0], self.folder / name, affine=grid.affine)

    def _add_object(self, image: Image, quality_map: QualityMap, score: Score | None, stem: str) -> tuple[str, ...]:
        from saqm.outputs import dicom

        if score is None or self.maker is None:
            raise SaqmError(f"{image.source.path}: a DICOM map belongs to a score: give it, too")
        if image.source.format != "dicom":
            return ("no DICOM map: the image is no DICOM file",)
        maker, now = self.maker
        try:
            made = dicom.quality_map(dicom.header_of(image.source.path), quality_map, score, maker, now=now)
        except ImageError as error:
            return (f"no DICOM map: {error}",)
        dicom.save_object(made, self.folder / f"{stem}.dcm")
        return ()

    def _fill(self, name: str, grid: Grid, values_HW: NDArray[np.float32]) -> None:
        """Put a slice into its volume, which stands in a temporary file until it is whole: memory does not grow."""
        if name not in self._volumes:
            file = self._temporary.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
            values = np.memmap(file, np.float32, "w+", shape=grid.shape, order="F")
            values[...] = np.nan
            self._volumes[name] = grid, values
        row, column = np.ogrid[: values_HW.shape[0], : values_HW.shape[1]]
        voxel = tuple(down * row + across * column + start for down, across, start in grid.to_voxel)
        self._volumes[name][1][voxel] = values_HW


def save_nifti(
    values: NDArray[np.float32],
    path: Path,
    *,
    affine: Sequence[Sequence[float]] | None = None,
    spacing_mm: tuple[float, float] | None = None,
) -> None:
    """Write voxels (I, J, K) or (I, J, K, T) as .nii.gz; the same voxels are the same bytes.

    affine: voxel to RAS millimetres. Without one the file says that its orientation is unknown; of a picture whose
    rows are J and whose columns are I, `spacing_mm` is that between rows and between columns, and without that the
    unit is unknown, too. Raises OutputError.
    """
    from nibabel.nifti1 import Nifti1Image

    made = Nifti1Image(values, None if affine is None else np.array(affine))
    if affine is not None or spacing_mm is not None:
        made.header.set_xyzt_units("mm")
    if spacing_mm is not None:
        between_rows, between_columns = spacing_mm
        made.header.set_zooms((between_columns, between_rows, *made.header.get_zooms()[2:]))
    with replacing(path) as beside, beside.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        made.to_stream(packed)
