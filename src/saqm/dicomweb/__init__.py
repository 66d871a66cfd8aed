"""A server of images on the web: what it holds (QIDO-RS), its instances (WADO-RS), ours to it (STOW-RS), PS3.18.

    server = from_environment("dicomweb://pacs.example:8042/dicom-web")
    for pulled in pull(server, Path("incoming"), Query(study="1.2.3")):
        print(pulled.name, pulled.path or pulled.problem)

Instances are streamed one by one to the disk as they are stored, so memory stays flat whatever a study weighs. Whoever
answers is not trusted: sizes, times and names are checked, a redirection is refused (credentials would travel with it),
and nothing that a server says is repeated in an error, as it may name a patient. No proxy and no .netrc is looked for.
"""

from saqm.dicomweb.pulling import Pulled, fetched, pull, search
from saqm.dicomweb.server import (
    EVERYTHING,
    DicomwebError,
    Found,
    Query,
    Server,
    from_environment,
    is_url,
    name_of,
    query_of,
)
from saqm.dicomweb.storing import Pushed, push, stow

__all__ = [
    "EVERYTHING",
    "DicomwebError",
    "Found",
    "Pulled",
    "Pushed",
    "Query",
    "Server",
    "fetched",
    "from_environment",
    "is_url",
    "name_of",
    "pull",
    "push",
    "query_of",
    "search",
    "stow",
]
