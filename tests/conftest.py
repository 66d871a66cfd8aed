"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data that is no part of the project (SAQM_SHARED, default ../shared)."""
    folder = Path(os.environ.get("SAQM_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_absolute():
        folder = Path(__file__).parents[1] / folder
    if not (folder / "data").is_dir():
        pytest.skip(f"reference data not at hand: {folder} (set SAQM_SHARED)")
    return folder


@pytest.fixture(scope="session")
def ct_study(shared: Path) -> Path:
    """The CT reader study, a folder with scores.csv and images/."""
    return shared / "data" / "ct_reader_study"
