"""DICOM over TLS, both ways: who has no certificate signed by our authority is neither listened to nor spoken to."""

from __future__ import annotations

import ssl

from saqm.errors import SaqmError
from saqm.node.settings import Tls


def listening(tls: Tls) -> ssl.SSLContext:
    """For connections to us: their certificate is demanded and checked."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, tls)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def calling(tls: Tls) -> ssl.SSLContext:
    """For connections from us: the other's certificate is checked, and that it is of the host we meant."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, tls)


def _context(protocol: int, tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # BCP 195, which PS3.15 B.9 refers to
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        context.load_verify_locations(tls.ca)
    except (OSError, ssl.SSLError) as error:
        names = f"{tls.certificate}, {tls.key}, {tls.ca}"
        why = error.reason if isinstance(error, ssl.SSLError) and error.reason else error.strerror
        raise SaqmError(f"TLS: certificate, key and ca cannot be used ({names}): {why}") from error
    return context
