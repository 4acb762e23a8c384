"""Reaching a receiver: the address in a URL, the connection, and what went wrong in one line."""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import anyio
from anyio.abc import ByteStream

from pipeline.errors import SinkError, UsageError
from stages.sink.retry import TransientError
from stages.transport.errors import RefusedError
from stages.transport.limits import check_name

DEFAULT_PORT: Final = 7420


@dataclass(frozen=True, slots=True)
class Address:
    """``tcp://host[:port][/NAME]`` or ``tls://...``; an empty name lets the receiver choose."""

    scheme: str
    host: str
    port: int
    name: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """The parts of `url`.

        Raises:
            UsageError: it has parts that these targets do not have, or lacks a host.
        """
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UsageError(f"{parts.scheme}:// takes host, port and name, nothing else")
        try:
            port = parts.port or DEFAULT_PORT
        except ValueError as error:
            raise UsageError(f"{url}: {error}") from error
        if not parts.hostname:
            raise UsageError(f"{url}: no host")
        name = parts.path.removeprefix("/")
        try:
            name = check_name(name) if name else ""
        except RefusedError as error:
            raise UsageError(f"{url}: {error}") from error
        return cls(parts.scheme.lower(), parts.hostname, port, name)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}" + (f"/{self.name}" if self.name else "")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect to, and how.

    Attributes:
        tls: None for ``tcp://``.
        server_name: in the receiver's certificate.
    """

    address: Address
    connect_timeout_s: float
    tls: ssl.SSLContext | None = None
    server_name: str = ""

    async def connect(self) -> ByteStream:
        """A connection, encrypted and verified if it is to be.

        Raises:
            TransientError: not reachable now.
            SinkError: the receiver cannot be trusted.
        """
        try:
            with anyio.fail_after(self.connect_timeout_s):
                return await self._connect()
        except TimeoutError:
            raise TransientError(
                f"{self.address}: no answer for {self.connect_timeout_s:g} s"
            ) from None
        except ssl.SSLError as error:
            raise tls_failure(self.address, error) from error
        except (anyio.BrokenResourceError, anyio.EndOfStream) as error:
            raise TransientError(f"{self.address}: closed while connecting") from error
        except OSError as error:
            raise TransientError(f"{self.address}: {_why(error)}") from error

    async def _connect(self) -> ByteStream:
        address = self.address
        stream = await anyio.connect_tcp(address.host, address.port)
        if self.tls is None:
            return stream
        from anyio.streams.tls import TLSStream

        try:
            return await TLSStream.wrap(
                stream,
                hostname=self.server_name or address.host,
                ssl_context=self.tls,
                standard_compatible=False,
            )
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise


def tls_failure(address: Address, error: ssl.SSLError) -> SinkError:
    """A failed handshake or a broken record; what is about certificates is not worth a retry."""
    from stages.transport.tls import explain

    why = explain(error)
    if why is None:
        return TransientError(f"{address}: {error.reason or 'TLS failed'}")
    return SinkError(f"{address}: {why}")


def _why(error: OSError) -> str:
    cause: BaseException | None = error
    # anyio wraps what each address of the host answered.
    while isinstance(cause, OSError) and not cause.strerror and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, socket.gaierror):
        return f"host not found ({cause.strerror})"
    number = getattr(cause, "errno", None)
    return os.strerror(number) if number else str(error)
