"""A pydicom decoder for 12-bit JPEG (1.2.840.10008.1.2.4.51) on imagecodecs, of the extra `dicom-decoders`.

Pillow and GDCM refuse 12-bit JPEG, and pylibjpeg-libjpeg is GPL-3; so we bring our own plug-in. The names
`is_available`, `decode` and `DECODER_DEPENDENCIES` are pydicom's (its guide, "Decoder plugins").
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

DECODER_DEPENDENCIES = {"1.2.840.10008.1.2.4.51": ("numpy", "imagecodecs")}


def is_available(uid: str) -> bool:
    """Whether this plug-in can decode the transfer syntax `uid` here."""
    return uid in DECODER_DEPENDENCIES and find_spec("imagecodecs") is not None


def decode(src: bytes, runner: Any) -> bytes:
    """One encoded frame as raw bytes; tells `runner` (pydicom's DecodeRunner) the depth and colours that came out."""
    import imagecodecs

    frame = imagecodecs.jpeg_decode(src)
    runner.set_option("bits_allocated", frame.dtype.itemsize * 8)
    if frame.ndim == 3:
        runner.set_option("photometric_interpretation", "RGB")  # libjpeg has converted
    return bytes(frame.tobytes())


def register() -> None:
    """Offer the plug-in to pydicom; does nothing the second time."""
    from pydicom.pixels.decoders.base import JPEGExtended12BitDecoder

    known = set(JPEGExtended12BitDecoder.available_plugins) | set(JPEGExtended12BitDecoder.missing_dependencies)
    if not any(plugin.startswith("imagecodecs") for plugin in known):
        JPEGExtended12BitDecoder.add_plugin("imagecodecs", (__name__, "decode"))
