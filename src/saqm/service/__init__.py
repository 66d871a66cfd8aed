"""The HTTP service and its page: files in; records, maps and DICOM reports out.

    service(read_settings(Path("saqm.toml"), os.environ)).run()

What comes is checked while it comes, and read in processes of their own, never here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saqm.errors import MissingExtra

if TYPE_CHECKING:
    from saqm.service.server import Service
    from saqm.service.settings import ServeSettings


def service(settings: ServeSettings) -> Service:
    """A service, its workers started, ready to run. Raises SaqmError, and MissingExtra without what it is served by."""
    try:
        from saqm.service.server import Service
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "saqm":
            raise
        raise MissingExtra(error.name, "serve", "the HTTP service") from error
    return Service(settings)
