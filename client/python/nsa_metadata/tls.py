"""Credentials of connections by TLS."""

import os
from pathlib import Path

import grpc


def tls_credentials(
    ca: str | os.PathLike[str] | None = None,
    certificate: str | os.PathLike[str] | None = None,
    key: str | os.PathLike[str] | None = None,
) -> grpc.ChannelCredentials:
    """What Client takes as credentials, from PEM files, which are read once.

    ca: the roots of the server's certificate; None: the system's.
    certificate, key: the caller's own certificate and those that lead to its root, and its key, for servers that ask
        for them; both or neither.

    OSError: a file can't be read. ValueError names one that does not hold what it should.
    """
    if (certificate is None) != (key is None):
        raise ValueError("a certificate and its key need each other")
    return grpc.ssl_channel_credentials(
        _pem(ca, b"CERTIFICATE"), _pem(key, b"PRIVATE KEY"), _pem(certificate, b"CERTIFICATE")
    )


def _pem(path: str | os.PathLike[str] | None, what: bytes) -> bytes | None:
    if path is None:
        return None
    text = Path(path).read_bytes()
    if b"-----BEGIN " not in text or what + b"-----" not in text:
        raise ValueError(f"{os.fspath(path)} has to hold a {what.decode()} in PEM form")
    return text
