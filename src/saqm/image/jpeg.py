"""A pydicom decoder for 12-bit and lossless JPEG on imagecodecs, of the extra `dicom-decoders`.

Pillow decodes neither, pylibjpeg-libjpeg is GPL-3, and GDCM refuses 12 bits and ends the whole process on some damaged
frames (an uncaught C++ exception); so we bring our own plug-in and never call GDCM. The names `is_available`, `decode`
and `DECODER_DEPENDENCIES` are pydicom's (its guide, "Decoder plugins").
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

NAME = "imagecodecs"
DECODER_DEPENDENCIES = {
    "1.2.840.10008.1.2.4.51": ("numpy", NAME),  # extended, 8 and 12 bits
    "1.2.840.10008.1.2.4.57": ("numpy", NAME),  # lossless, any predictor
    "1.2.840.10008.1.2.4.70": ("numpy", NAME),  # lossless, first-order prediction
}


def is_available(uid: str) -> bool:
    """Whether this plug-in can decode the transfer syntax `uid` here."""
    return uid in DECODER_DEPENDENCIES and find_spec(NAME) is not None


def decode(src: bytes, runner: Any) -> bytes:
    """One encoded frame as raw bytes; tells `runner` (pydicom's DecodeRunner) the depth that came out."""
    import imagecodecs

    # no conversion here: pydicom converts, by what the header says
    colours = "RGB" if runner.samples_per_pixel == 3 else None
    frame = imagecodecs.jpeg_decode(src, colorspace=colours, outcolorspace=colours)
    runner.set_option("bits_allocated", frame.dtype.itemsize * 8)
    return bytes(frame.tobytes())


def register() -> None:
    """Offer the plug-in to pydicom; does nothing the second time."""
    from pydicom.pixels.decoders.base import get_decoder

    for uid in DECODER_DEPENDENCIES:
        decoder = get_decoder(uid)
        if not any(plugin.startswith(NAME) for plugin in (*decoder.available_plugins, *decoder.missing_dependencies)):
            decoder.add_plugin(NAME, (__name__, "decode"))
