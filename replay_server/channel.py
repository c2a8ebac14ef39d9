"""Opens a client's channel: TLS, the client's certificate, and its token with every call of every kind."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import grpc

from replay_server.credentials import (
    TOKEN_METADATA_KEY,
    TOKEN_SCHEME,
    Credentials,
    CredentialsError,
    Watched,
    is_loopback,
    read_authorities,
    read_key_pair,
    read_tokens,
)

Request = TypeVar("Request")
Answer = TypeVar("Answer")


def open_channel(address: str, credentials: Credentials, options: Sequence[tuple[str, int | str]]) -> grpc.Channel:
    """Open a channel that connects when it is first used.

    Args:
        address: host:port.
        credentials: what to trust and show.
        options: of the channel.

    Raises:
        CredentialsError: a file cannot be used, or others could read the token.
    """
    if credentials.ca_file is None:
        _check_plaintext(address, credentials)
        channel = grpc.insecure_channel(address, options=options)
    else:
        name = credentials.server_name
        override = [("grpc.ssl_target_name_override", name)] if name else []
        channel = grpc.secure_channel(address, _tls(credentials, credentials.ca_file), options=[*options, *override])
    if credentials.token_file is None:
        return channel
    return grpc.intercept_channel(channel, _TokenSender(credentials.token_file))


def _check_plaintext(address: str, credentials: Credentials) -> None:
    if credentials.certificate_file is not None or credentials.key_file is not None:
        raise CredentialsError("a client's certificate is shown over TLS only: give the CA file of the server, too")
    host = address.rpartition(":")[0]
    if credentials.token_file is not None and not credentials.insecure and not is_loopback(host):
        raise CredentialsError(
            f"the token would go to {address} for all to read: give the CA file of the server, or allow it (insecure)"
        )


def _tls(credentials: Credentials, ca_file: Path) -> grpc.ChannelCredentials:
    authorities = read_authorities(ca_file)
    if credentials.certificate_file is None and credentials.key_file is None:
        return grpc.ssl_channel_credentials(authorities)
    if credentials.certificate_file is None or credentials.key_file is None:
        raise CredentialsError("a client's certificate and its key go together: give both files")
    return grpc.ssl_channel_credentials(authorities, *read_key_pair(credentials.certificate_file, credentials.key_file))


class _CallDetails(grpc.ClientCallDetails):
    """Those of another call, with more metadata; gRPC's own class for it is private."""

    def __init__(self, details: grpc.ClientCallDetails, key: str, value: str) -> None:
        self.method = details.method
        self.timeout = details.timeout
        self.metadata = (*(details.metadata or ()), (key, value))
        self.credentials = details.credentials
        self.wait_for_ready = details.wait_for_ready
        self.compression = details.compression


class _TokenSender(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the token of a file to every call.

    Not call credentials: gRPC takes those over TLS only, and a server on loopback may ask for tokens without it.
    """

    def __init__(self, path: Path) -> None:
        self._token = Watched(lambda: read_tokens(path)[0], path)

    def _with_token(self, details: grpc.ClientCallDetails) -> grpc.ClientCallDetails:
        self._token.poll()
        return _CallDetails(details, TOKEN_METADATA_KEY, f"{TOKEN_SCHEME} {self._token.content.token}")

    def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.ClientCallDetails, Request], Answer],
        client_call_details: grpc.ClientCallDetails,
        request: Request,
    ) -> Answer:
        """See UnaryUnaryClientInterceptor."""
        return continuation(self._with_token(client_call_details), request)

    def intercept_unary_stream(
        self,
        continuation: Callable[[grpc.ClientCallDetails, Request], Answer],
        client_call_details: grpc.ClientCallDetails,
        request: Request,
    ) -> Answer:
        """See UnaryStreamClientInterceptor."""
        return continuation(self._with_token(client_call_details), request)

    def intercept_stream_unary(
        self,
        continuation: Callable[[grpc.ClientCallDetails, Iterator[Request]], Answer],
        client_call_details: grpc.ClientCallDetails,
        request_iterator: Iterator[Request],
    ) -> Answer:
        """See StreamUnaryClientInterceptor."""
        return continuation(self._with_token(client_call_details), request_iterator)

    def intercept_stream_stream(
        self,
        continuation: Callable[[grpc.ClientCallDetails, Iterator[Request]], Answer],
        client_call_details: grpc.ClientCallDetails,
        request_iterator: Iterator[Request],
    ) -> Answer:
        """See StreamStreamClientInterceptor."""
        return continuation(self._with_token(client_call_details), request_iterator)
