"""saqm: how good a medical image looks, with no reference image, and how far that number can be trusted.

>>> import saqm
>>> scorer = saqm.load_scorer()                # the shipped default; or another model, or a metric: "niqe"
>>> result = saqm.score(saqm.read_image("scan.dcm"), scorer)      # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> the module that holds it; loaded on first use, so that `import saqm` costs next to nothing
_FACE = {
    "Image": "saqm.image",
    "read_image": "saqm.image",
    "read_frames": "saqm.image",
    "Manifest": "saqm.manifest",
    "read_manifest": "saqm.manifest",
    "Score": "saqm.scorer",
    "Scorer": "saqm.scorer",
    "load_scorer": "saqm.scorer",
    "score": "saqm.scorer",
    "quality_map": "saqm.scorer",
    "summarise": "saqm.outputs.summary",
    "gate": "saqm.gating",
    "Thresholds": "saqm.gating",
    "SaqmError": "saqm.errors",
}

__all__ = [*_FACE, "__version__"]  # noqa: PLE0604  the names are the table's keys

if TYPE_CHECKING:
    from saqm.errors import SaqmError as SaqmError
    from saqm.gating import Thresholds as Thresholds
    from saqm.gating import gate as gate
    from saqm.image import Image as Image
    from saqm.image import read_frames as read_frames
    from saqm.image import read_image as read_image
    from saqm.manifest import Manifest as Manifest
    from saqm.manifest import read_manifest as read_manifest
    from saqm.outputs.summary import summarise as summarise
    from saqm.scorer import Score as Score
    from saqm.scorer import Scorer as Scorer
    from saqm.scorer import load_scorer as load_scorer
    from saqm.scorer import quality_map as quality_map
    from saqm.scorer import score as score


def __getattr__(name: str) -> Any:
    if name in _FACE:
        return getattr(importlib.import_module(_FACE[name]), name)
    raise AttributeError(f"module 'saqm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
