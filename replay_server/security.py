"""What guards a server: TLS and a token with every call, read again when their files change; closed by default."""

import asyncio
import datetime
import hashlib
import hmac
import logging
import re
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import grpc

from replay_server.credentials import (
    TOKEN_METADATA_KEY,
    TOKEN_SCHEME,
    CredentialsError,
    SecuritySettings,
    Watched,
    is_loopback,
    read_authorities,
    read_key_pair,
    read_tokens,
)
from replay_server.errors import Refusal, ReplayServerError
from replay_server.metrics import ServerMetrics
from zero.wire.codec import Reason

logger = logging.getLogger(__name__)

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_DER_VERSION, _DER_UTC_TIME = 0xA0, 0x17

Context = grpc.aio.ServicerContext[bytes, bytes]
Refuse = Callable[[Context, Refusal], Awaitable[NoReturn]]


class SecurityError(ReplayServerError):
    """The server may not start with these settings."""


class Security:
    """Certificate and tokens of one server.

    Raises:
        SecurityError: others would get in, or a file cannot be used.
    """

    def __init__(self, settings: SecuritySettings, host: str, metrics: ServerMetrics) -> None:
        """Reads the files; host is where the server listens."""
        is_open = _check_closed(settings, host)
        self._reload_seconds = settings.reload_seconds
        self._metrics = metrics
        try:
            self._identity = _watched_identity(settings)
            self._clients = None
            if settings.token_file is not None:
                self._clients = _watched_clients(settings.token_file)
        except CredentialsError as error:
            raise SecurityError(str(error)) from None
        self._requires_certificates = settings.client_ca_file is not None
        self._fresh: deque[grpc.ServerCertificateConfiguration] = deque(maxlen=1)
        metrics.insecure.set(is_open)
        self._show_expiry()

    def interceptors(self, refuse: Refuse) -> list[grpc.aio.ServerInterceptor]:
        """What lets only calls with a token through; nothing where no tokens are asked for."""
        return [] if self._clients is None else [_TokenInterceptor(self._clients, refuse)]

    def add_port(self, server: grpc.aio.Server, address: str) -> int:
        """Listen, with TLS if there is a certificate; the port, 0 if it cannot be had.

        Raises:
            RuntimeError: it cannot be had.
        """
        if self._identity is None:
            return server.add_insecure_port(address)
        # gRPC asks before every handshake, in a thread of its own, and keeps what it has where None is answered.
        credentials = grpc.dynamic_ssl_server_credentials(
            self._identity.content.configuration(),
            self._next_configuration,  # pyright: ignore[reportArgumentType] -- may return None, whatever the stubs say
            self._requires_certificates,
        )
        return server.add_secure_port(address, credentials)

    async def watch(self) -> None:
        """Read changed files again, until cancelled."""
        while True:
            await asyncio.sleep(self._reload_seconds)
            if self._identity is not None or self._clients is not None:
                await asyncio.to_thread(self._look)

    def _look(self) -> None:
        if self._identity is not None:
            if self._identity.poll():
                self._fresh.append(self._identity.content.configuration())
                self._show_expiry()
            self._metrics.stale_credentials.labels("certificate").set(self._identity.is_stale)
        if self._clients is not None:
            self._clients.poll()
            self._metrics.stale_credentials.labels("tokens").set(self._clients.is_stale)

    def _next_configuration(self) -> grpc.ServerCertificateConfiguration | None:
        """Each is handed to gRPC once: it takes it over."""
        try:
            return self._fresh.pop()
        except IndexError:
            return None

    def _show_expiry(self) -> None:
        if self._identity is None:
            return
        expires_at = self._identity.content.expires_at
        self._metrics.certificate_expiry.set(expires_at)
        if expires_at < time.time():
            ended = datetime.datetime.fromtimestamp(expires_at, datetime.UTC)
            logger.error("the server's certificate ended at %s: clients will not connect; replace its file", ended)


def _check_closed(settings: SecuritySettings, host: str) -> bool:
    """Refuse to be open by mistake; whether the server is open on purpose."""
    if (settings.certificate_file is None) != (settings.key_file is None):
        raise SecurityError("a certificate and its key go together: give --tls-certificate and --tls-key")
    if settings.client_ca_file is not None and settings.certificate_file is None:
        raise SecurityError("clients show certificates over TLS only: give --tls-certificate and --tls-key, too")
    lacking = [
        what
        for what, file in (("TLS", settings.certificate_file), ("tokens", settings.token_file))
        if file is None and not is_loopback(host)
    ]
    if not lacking:
        return False
    if not settings.insecure:
        raise SecurityError(
            f"other machines would reach {host!r} without {' and '.join(lacking)}: give --tls-certificate, --tls-key "
            "and --token-file, listen on 127.0.0.1, or accept it with --insecure"
        )
    logger.warning(
        "INSECURE: whoever reaches %s can read and change all data, there is no %s", host, " and no ".join(lacking)
    )
    return True


@dataclass(frozen=True)
class _Identity:
    """A server's certificate; expires_at is a Unix time."""

    key: bytes = field(repr=False)
    chain: bytes
    client_authorities: bytes | None
    expires_at: float

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.chain)], self.client_authorities)


def _watched_identity(settings: SecuritySettings) -> Watched[_Identity] | None:
    certificate_file, key_file, client_ca_file = settings.certificate_file, settings.key_file, settings.client_ca_file
    if certificate_file is None or key_file is None:
        return None

    def read() -> _Identity:
        key, chain = read_key_pair(certificate_file, key_file)
        authorities = None if client_ca_file is None else read_authorities(client_ca_file)
        try:
            expires_at = _first_expiry(chain)
        except (ValueError, IndexError):
            raise CredentialsError(f"certificate {certificate_file} does not say when it ends; issue another") from None
        return _Identity(key, chain, authorities, expires_at)

    return Watched(read, *(path for path in (certificate_file, key_file, client_ca_file) if path is not None))


def _first_expiry(chain: bytes) -> float:
    """When the first of some PEM certificates ends, as Unix time."""
    return min(_expiry(ssl.PEM_cert_to_DER_cert(match[0].decode("ascii"))) for match in _CERTIFICATE.finditer(chain))


def _expiry(certificate: bytes) -> float:
    """The field notAfter of a DER certificate that OpenSSL has accepted: RFC 5280, section 4.1. `ssl` shows no leaf's.

    Certificate { tbsCertificate { [0] version?, serialNumber, signature, issuer, validity { notBefore, notAfter } ...
    """
    _, outer, _ = _der_element(certificate, 0)
    _, start, end = _der_element(certificate, outer)
    fields = list(_der_elements(certificate, start, end))
    _, start, end = fields[4 if fields[0][0] == _DER_VERSION else 3]
    _, (tag, start, end) = _der_elements(certificate, start, end)
    text = certificate[start:end].decode("ascii")
    if tag == _DER_UTC_TIME:
        text = ("19" if text >= "50" else "20") + text
    return datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.UTC).timestamp()


def _der_elements(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    while start < end:
        element = _der_element(data, start)
        yield element
        start = element[2]


def _der_element(data: bytes, at: int) -> tuple[int, int, int]:
    """Tag, start and end of the content of the element that begins there."""
    start, length = at + 2, data[at + 1]
    if length >= 0x80:
        start += length - 0x80
        length = int.from_bytes(data[at + 2 : start], "big")
    return data[at], start, start + length


def _watched_clients(path: Path) -> Watched[list[tuple[str, bytes]]]:
    """Names and sha256 of tokens: the tokens themselves are not kept."""

    def read() -> list[tuple[str, bytes]]:
        tokens = read_tokens(path)
        if not all(token.name for token in tokens):
            raise CredentialsError(f"token file {path}: a line has no name; write name:token on every line")
        if len({token.token for token in tokens}) < len(tokens):
            raise CredentialsError(f"token file {path}: a token stands there twice; give every client its own")
        return [(token.name, _digest(token.token.encode())) for token in tokens]

    return Watched(read, path)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


class _TokenInterceptor(grpc.aio.ServerInterceptor):
    """Lets a call of any kind through if it brings a known token; of the others not a byte is read."""

    def __init__(self, clients: Watched[list[tuple[str, bytes]]], refuse: Refuse) -> None:
        self._clients = clients
        self._refuse = refuse
        self._seen: set[str] = set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "Awaitable[grpc.RpcMethodHandler[Any, Any] | None]"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """See ServerInterceptor."""
        given = [value for key, value in handler_call_details.invocation_metadata if key == TOKEN_METADATA_KEY]
        name = self._client_of(given[0]) if len(given) == 1 else None
        if name is not None:
            return await continuation(handler_call_details)
        refusal = Refusal(
            Reason.UNAUTHENTICATED,
            "the token is not known here; give the client one of the server's token file"
            if given
            else "a token is asked for; give the client a token file",
        )

        # Whatever kind the call is of: streams are the same on the wire, and this one takes no message.
        async def deny(_: AsyncIterator[bytes], context: Context) -> None:
            await self._refuse(context, refusal)

        return grpc.stream_stream_rpc_method_handler(deny)

    def _client_of(self, header: str | bytes) -> str | None:
        """Whose token it is; takes the same time for all that are not known."""
        data = header if isinstance(header, bytes) else header.encode()
        scheme, _, token = data.partition(b" ")
        given = _digest(token)
        found = None
        for name, digest in self._clients.content:
            if hmac.compare_digest(given, digest):
                found = name
        if found is None or scheme.decode(errors="replace").lower() != TOKEN_SCHEME.lower():
            return None
        if found not in self._seen:
            self._seen.add(found)
            logger.info("client %s has shown its token", found)
        return found
