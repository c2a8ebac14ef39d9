"""Certificates, keys and tokens in files, of a server and of its clients: read, checked, read again, never shown."""

import logging
import re
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

TOKEN_METADATA_KEY = "authorization"  # noqa: S105 -- the name of the key
TOKEN_SCHEME = "Bearer"  # noqa: S105 -- precedes the token, RFC 6750
MAX_CLIENTS = 1_000
"""The most lines of a token file."""

_MAX_FILE_BYTES = 1 << 20
# A token is what RFC 6750, section 2.1, lets a bearer token be, and too long to be guessed.
_LINE = re.compile(rb"(?:(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63}):)?(?P<token>[A-Za-z0-9._~+/-]{16,512}=*)")

Content = TypeVar("Content")


class CredentialsError(Exception):
    """A certificate, key or token cannot be used; one line that names cause and remedy, and shows no secret."""


@dataclass(frozen=True)
class Credentials:
    """What a client trusts and shows; certificates are read once, when the client is made.

    Attributes:
        ca_file: PEM certificates that the server's is checked against; without it nothing is encrypted.
        certificate_file: the client's own, PEM, for a server that asks for one.
        key_file: its private key, PEM without a passphrase.
        token_file: the client's token, alone on a line or as the server has it, `name:token`; the first line counts,
            and is read again when the file changes.
        insecure: send the token to other machines even if nothing is encrypted.
        server_name: the name that the server's certificate is for, where it is reached by another one.
    """

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    token_file: Path | None = None
    insecure: bool = False
    server_name: str | None = None


@dataclass(frozen=True)
class SecuritySettings:
    """What a server shows and asks for.

    Attributes:
        certificate_file: the server's certificate and those between it and its authority, PEM; without it nothing is
            encrypted.
        key_file: its private key, PEM without a passphrase.
        client_ca_file: PEM certificates that a client's is checked against; with it every client must have one.
        token_file: a line `name:token` for every client; with it every call must bring one of them.
        insecure: serve other machines also without TLS or tokens.
        reload_seconds: how often the files are looked at; what has changed is read again.
    """

    certificate_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None
    token_file: Path | None = None
    insecure: bool = False
    reload_seconds: float = 1.0


@dataclass(frozen=True)
class NamedToken:
    """A line of a token file.

    Attributes:
        name: of the client; empty where the line has none.
        token: the secret.
    """

    name: str
    token: str = field(repr=False)


class Watched(Generic[Content]):
    """What files hold, read again when they change; what cannot be used leaves the earlier content in force.

    Attributes:
        content: in force.
        is_stale: the files have changed and cannot be used.

    Raises:
        CredentialsError: the files cannot be used.
    """

    def __init__(self, read: Callable[[], Content], *paths: Path) -> None:
        """Reads at once; read raises CredentialsError."""
        self._read = read
        self._paths = paths
        self._lock = threading.Lock()
        self._seen = self._fingerprint()
        self.content = read()
        self.is_stale = False

    def poll(self) -> bool:
        """Look at the files, from any thread; whether other content is in force now."""
        seen = self._fingerprint()
        if seen == self._seen:
            return False
        with self._lock:
            if seen == self._seen:
                return False
            try:
                content = self._read()
            except CredentialsError as error:
                logger.error("the earlier credentials stay in force: %s", error)  # noqa: TRY400 -- one line says all
                self._seen, self.is_stale = seen, True
                return False
            self._seen, self.is_stale = seen, False
            self.content = content
        logger.info("read again: %s", ", ".join(str(path) for path in self._paths))
        return True

    def _fingerprint(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(_fingerprint(path) for path in self._paths)


def read_tokens(path: Path) -> list[NamedToken]:
    """Read a token file: `name:token` or `token` on each line; empty ones and those that begin with # do not count.

    Raises:
        CredentialsError: it cannot be read, has no tokens, or a line is none.
    """
    tokens: list[NamedToken] = []
    for number, line in enumerate(map(bytes.strip, read_file(path).split(b"\n")), start=1):
        if not line or line.startswith(b"#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise CredentialsError(
                f"token file {path}: line {number} is no name:token; "
                "a token is 16 to 512 letters, digits or ._~+/-, for example the output of `openssl rand -hex 32`"
            )
        tokens.append(NamedToken((match["name"] or b"").decode(), match["token"].decode()))
    if not 1 <= len(tokens) <= MAX_CLIENTS:
        raise CredentialsError(f"token file {path} holds {len(tokens)} tokens; write 1 to {MAX_CLIENTS} of them")
    return tokens


def read_file(path: Path) -> bytes:
    """Read a certificate, key or token file.

    Raises:
        CredentialsError: it cannot be read, or is far too large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CredentialsError(f"cannot read {path}: {error.strerror}; name a file that may be read") from None
    if len(data) > _MAX_FILE_BYTES:
        raise CredentialsError(f"{path} has more than {_MAX_FILE_BYTES} bytes; name a smaller file")
    return data


def read_authorities(path: Path) -> bytes:
    """Read PEM certificates that others are checked against.

    Raises:
        CredentialsError: there are none.
    """
    data = read_file(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=data.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise CredentialsError(f"CA file {path} holds no certificates that can be used; give PEM") from None
    return data


def read_key_pair(certificate_file: Path, key_file: Path) -> tuple[bytes, bytes]:
    """Read a private key and its certificate, in this order.

    Raises:
        CredentialsError: one cannot be read, is damaged, or they do not belong together.
    """
    key, certificate = read_file(key_file), read_file(certificate_file)
    try:
        # The password, a wrong one for every key that has one, keeps OpenSSL from asking for it in a terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate_file, key_file, password="")
    except (ssl.SSLError, OSError, ValueError):
        raise CredentialsError(
            f"certificate {certificate_file} and key {key_file} cannot be used together: "
            "give PEM files of one pair, the key without a passphrase"
        ) from None
    return key, certificate


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _fingerprint(path: Path) -> tuple[int, int, int]:
    """What differs after every change; zeros while there is no file."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_mtime_ns, status.st_size)
