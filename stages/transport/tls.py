"""TLS for both ends: always version 1.3, always verified, on both sides.

There is deliberately no parameter that turns verification off. Keys are read from files without a
passphrase: nobody is there to type one when a machine has crashed.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import anyio

from pipeline.errors import UsageError
from stages.transport.errors import LOST

if TYPE_CHECKING:
    from anyio.abc import SocketStream
    from anyio.streams.tls import TLSStream

_ALERT_S: Final = 2.0


def client_context(
    ca_file: str | None, cert_file: str | None, key_file: str | None
) -> ssl.SSLContext:
    """For a sender: trusts `ca_file` or the system's authorities, shows `cert_file` if given.

    Raises:
        UsageError: a file cannot be read or does not hold what it should.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and name
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if ca_file is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _load_ca(context, ca_file)
    if cert_file is not None:
        _load_own(context, cert_file, key_file)
    return context


def server_context(cert_file: str, key_file: str | None, client_ca_file: str) -> ssl.SSLContext:
    """For a receiver: takes only peers whose certificate `client_ca_file` has signed.

    Raises:
        UsageError: a file cannot be read or does not hold what it should.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    _load_ca(context, client_ca_file)
    _load_own(context, cert_file, key_file)
    return context


def _load_ca(context: ssl.SSLContext, ca_file: str) -> None:
    try:
        context.load_verify_locations(ca_file)
    except ssl.SSLError as error:
        raise UsageError(f"{ca_file}: holds no certificate of an authority in PEM") from error
    except OSError as error:
        raise UsageError(f"{ca_file}: {error.strerror}") from error


def _load_own(context: ssl.SSLContext, cert_file: str, key_file: str | None) -> None:
    where = cert_file if key_file is None else f"{cert_file} and {key_file}"

    def no_passphrase() -> NoReturn:
        raise UsageError(f"{key_file or cert_file}: the key needs a passphrase; store it without")

    try:
        context.load_cert_chain(cert_file, key_file, password=no_passphrase)
    except ssl.SSLError as error:
        raise UsageError(
            f"{where}: no certificate with its key in PEM ({error.reason or error})"
        ) from error
    except OSError as error:
        raise UsageError(f"{where}: {error.strerror}") from error


def explain(error: ssl.SSLError) -> str | None:
    """What a failed handshake means, for people; None when chance may be to blame."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the receiver's certificate is not valid: {error.verify_message}"
    return _MEANINGS.get(error.reason or "")


_MEANINGS: Final = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the receiver wants a certificate (tcp.cert_file)",
    "TLSV1_ALERT_UNKNOWN_CA": "the receiver does not trust our certificate",
    "TLSV1_ALERT_DECRYPT_ERROR": "the receiver does not trust our certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "our certificate has expired",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the receiver refuses our certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the receiver refuses our certificate",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "our certificate is not one for clients",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the receiver does not speak TLS 1.3",
    "UNSUPPORTED_PROTOCOL": "the receiver does not speak TLS 1.3",
    "WRONG_VERSION_NUMBER": "the receiver does not speak TLS",
    "RECORD_LAYER_FAILURE": "the receiver does not speak TLS",
}


async def accept_tls(stream: SocketStream, context: ssl.SSLContext) -> tuple[TLSStream, str]:
    """Secure a connection that a peer opened; returns its subject too.

    Raises:
        ssl.SSLError: the peer has no valid certificate; it was told so.
    """
    from anyio.streams.tls import TLSAttribute, TLSStream

    handshake = _Handshake(context)
    try:
        secured = await TLSStream.wrap(
            stream,
            server_side=True,
            ssl_context=cast("ssl.SSLContext", handshake),
            standard_compatible=False,
        )
    except ssl.SSLError:
        await _tell(stream, handshake)
        raise
    return secured, _subject(secured.extra(TLSAttribute.peer_certificate, None))


class _Handshake:
    """Stands in for a context during one handshake, to keep hold of what is to be sent.

    anyio does not send the alert of a handshake that fails, and without it the peer cannot tell
    a certificate that is refused from a line that broke.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self.outgoing: ssl.MemoryBIO | None = None

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool,
        server_hostname: str | None,
        session: ssl.SSLSession | None,
    ) -> ssl.SSLObject:
        self.outgoing = outgoing
        return self._context.wrap_bio(incoming, outgoing, server_side, server_hostname, session)


async def _tell(stream: SocketStream, handshake: _Handshake) -> None:
    with anyio.move_on_after(_ALERT_S), contextlib.suppress(*LOST):
        alert = b"" if handshake.outgoing is None else handshake.outgoing.read()
        if alert:
            await stream.send(alert)
            await stream.send_eof()
            while True:  # or closing would reset the connection before the peer has read
                await stream.receive()


def _subject(certificate: Mapping[str, Any] | None) -> str:
    """Subject of a verified peer, such as ``O=example/CN=host``; stays the same when renewed."""
    names = (name for rdn in (certificate or {}).get("subject", ()) for name in rdn)
    return "/".join(f"{kind}={value}" for kind, value in names)
