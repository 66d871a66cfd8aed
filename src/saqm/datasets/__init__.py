"""A downloaded folder becomes a Manifest: one function a data set.

Each looks for the layout as published, names whatever is missing, sets scale, direction and scenes, and carries licence
and citation along. None downloads, and none opens an image but `surrogate`, which makes a set from photographs. Where
each set is got, and on what terms: docs/data.md.
"""

from __future__ import annotations

from saqm.datasets.medical import CT_READER_STUDY_SCALE, ct_reader_study, ldctiqac2023, md72
from saqm.datasets.photographs import csiq, kadid10k, koniq10k, live, tid2013
from saqm.datasets.surrogate import surrogate
from saqm.datasets.unscored import folder

__all__ = [
    "CT_READER_STUDY_SCALE",
    "csiq",
    "ct_reader_study",
    "folder",
    "kadid10k",
    "koniq10k",
    "ldctiqac2023",
    "live",
    "md72",
    "surrogate",
    "tid2013",
]
