"""A DICOM node: images in by C-STORE, reports on their quality out by C-STORE or STOW, and nothing lost between.

    settings = read_settings(Path("saqm.toml"), os.environ)
    run(settings)        # until SIGTERM or Ctrl-C

An image is accepted once it is on the disk and in the queue. It is scored as soon as a process is free, reported on
once its series is complete, and removed once every destination has confirmed the report. Needs `saqm[dicom]`.
"""

from __future__ import annotations

from saqm.node.settings import Settings, read_settings

__all__ = ["Settings", "read_settings"]
