"""Who gets in, and who does not: TLS, certificates and tokens on every call, also while their files change."""

import datetime
import itertools
import logging
import math
import os
import pty
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from replay_server.channel import open_channel
from replay_server.client import ReplayClient, ReplayError, ReplayTimeout
from replay_server.credentials import MAX_CLIENTS, Credentials, CredentialsError, SecuritySettings, read_tokens
from replay_server.metrics import Levels, ServerMetrics
from replay_server.security import Security, SecurityError
from replay_server.server import BoundAddresses, ReplayServer, ReplayServerError, ReplayServerSettings
from tests.certificates import Authority, KeyPair
from tests.replay_server.played import played, table_config
from tests.replay_server.test_metrics_and_health import scrape
from zero.trajectories import PriorityUpdates
from zero.wire import replay_pb2, weights_pb2

TOKENS = ("actors-token-8c1f0a9e7d", "learner-token-5b2e4477aa")
WRONG_TOKEN = "nobodys-token-000000000"
UNAUTHENTICATED = ("UNAUTHENTICATED", "UNAUTHENTICATED")
UNREACHABLE = ("UNAVAILABLE", None)
METHODS = [
    (f"/{service.full_name}/{method.name}", method.client_streaming, method.server_streaming)
    for file in (replay_pb2.DESCRIPTOR, weights_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
] + [("/zero.v1.ReplayService/Nothing", False, False), ("/nobody.Service/Nothing", True, True)]
"""Path, whether the client streams, whether the server does: all that a server has, and two that it has not."""


@dataclass(frozen=True)
class Guarded:
    """A server with TLS and tokens, and what fits it."""

    bound: BoundAddresses
    settings: ReplayServerSettings
    authority: Authority
    clients: Authority
    folder: Path
    good: Credentials

    def token_file(self, text: str) -> Path:
        """A new file with this text."""
        path = self.folder / f"token-{next(_numbers)}"
        path.write_text(text)
        return path

    def with_certificate(self, pair: KeyPair) -> Credentials:
        """The good credentials with another certificate of the client."""
        return replace(self.good, certificate_file=pair.certificate_file, key_file=pair.key_file)


_numbers = itertools.count()


def guard(folder: Path, server: KeyPair, authority: Authority, *, mutual: bool) -> Guarded:
    """Settings and credentials of a guarded server; not started."""
    clients = Authority(folder)
    tokens = folder / "tokens"
    tokens.write_text(f"# who may call\nactors:{TOKENS[0]}\n\nlearner:{TOKENS[1]}\n")
    token = folder / "token"
    token.write_text(TOKENS[0])
    security = SecuritySettings(
        server.certificate_file,
        server.key_file,
        clients.file if mutual else None,
        tokens,
        reload_seconds=0.05,
    )
    settings = ReplayServerSettings(folder / "replay", security=security, health_port=0)
    pair = clients.issue()
    good = Credentials(
        authority.file, pair.certificate_file if mutual else None, pair.key_file if mutual else None, token
    )
    return Guarded(BoundAddresses("", ""), settings, authority, clients, folder, good)


@pytest.fixture(scope="module", params=[False, True], ids=["TLS", "mTLS"])
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A running server with TLS and tokens, and one that asks for certificates as well."""
    folder = tmp_path_factory.mktemp("guarded")
    authority = Authority(folder)
    idle = guard(folder, authority.issue(), authority, mutual=request.param)
    with ReplayServer(idle.settings) as bound:
        yield replace(idle, bound=bound)


@pytest.fixture
def rotating(tmp_path: Path) -> Iterator[Guarded]:
    """A running server with mutual TLS whose files a test may change."""
    authority = Authority(tmp_path)
    idle = guard(tmp_path, authority.issue(), authority, mutual=True)
    with ReplayServer(idle.settings) as bound:
        yield replace(idle, bound=bound)


def call(channel: grpc.Channel, path: str, client_streams: bool, server_streams: bool) -> tuple[str, str | None]:
    """Call a method with bytes that mean nothing; code and reason of the answer."""
    kind = f"{'stream' if client_streams else 'unary'}_{'stream' if server_streams else 'unary'}"
    method = getattr(channel, kind)(path)
    try:
        answer = method(iter([b"\xff"]) if client_streams else b"\xff", timeout=10)
        if server_streams:
            list(answer)
    except grpc.RpcError as error:
        return error.code().name, dict(error.trailing_metadata() or ()).get("zero-reason")
    return "OK", None


def call_everything(address: str, credentials: Credentials) -> dict[str, tuple[str, str | None]]:
    """What every method answers, by path."""
    with open_channel(address, credentials, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        return {method[0]: call(channel, *method) for method in METHODS}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_has_all_that_is_asked_for_is_served(guarded: Guarded) -> None:
    """Every call of the client works, and so do health and reflection, for each token of the file."""
    table = f"table-{next(_numbers)}"
    with ReplayClient(guarded.bound.address, credentials=guarded.good) as client:
        assert client.create_table(table_config(table), timeout=10)
        assert client.insert(table, [played(1)]).stored == 1
        batch = client.sample(table, 4, {"action": 1})
        assert client.update_priorities(table, PriorityUpdates(batch.keys, batch.probabilities)).updated > 0
        version = client.publish_weights(b"weights" * 400_000, 1)
        assert client.get_weights(0).version == version
        assert table in client.server_info().tables
        assert client.register_process("actor", "actor-0", "127.0.0.1:1", 1) > 0
    other = replace(guarded.good, token_file=guarded.token_file(f"learner:{TOKENS[1]}\n"))
    with open_channel(guarded.bound.address, other, []) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=10)
        assert len(answer.list_services_response.service) == 4
    answers = set(call_everything(guarded.bound.address, guarded.good).values())
    assert not answers & {UNAUTHENTICATED, UNREACHABLE}


@pytest.mark.parametrize("text", [None, WRONG_TOKEN, TOKENS[0][:-1], f"{TOKENS[0]}x", TOKENS[0].upper()])
def test_without_a_known_token_every_call_is_refused(guarded: Guarded, text: str | None) -> None:
    """No token and a wrong one: UNAUTHENTICATED with the reason from every method of every kind, and counted."""
    token_file = None if text is None else guarded.token_file(text)
    counter = "zero_replay_rejected_requests_total{reason=UNAUTHENTICATED}"
    before = scrape(guarded.bound.metrics_address)[counter]
    answers = call_everything(guarded.bound.address, replace(guarded.good, token_file=token_file))
    assert answers == dict.fromkeys(answers, UNAUTHENTICATED)
    assert {method[1:] for method in METHODS} == set(itertools.product((False, True), repeat=2))
    assert scrape(guarded.bound.metrics_address)[counter] == before + len(METHODS)


@pytest.mark.parametrize(
    "values",
    [
        [f"Basic {TOKENS[0]}"],
        [TOKENS[0]],
        ["Bearer"],
        ["Bearer "],
        [""],
        [f"Bearer  {TOKENS[0]}"],
        [f"Bearer {TOKENS[0]} {TOKENS[1]}"],
        [f"Bearer {TOKENS[0]}", f"Bearer {TOKENS[1]}"],
        [f"Bearer {WRONG_TOKEN}", f"Bearer {TOKENS[0]}"],
        ["Bearer " + "x" * 4000],
    ],
)
def test_other_forms_of_the_header_are_refused(guarded: Guarded, values: list[str]) -> None:
    """Exactly one header, with the scheme and one token."""
    with open_channel(guarded.bound.address, replace(guarded.good, token_file=None), []) as channel:
        info = channel.unary_unary("/zero.v1.ReplayService/GetServerInfo")
        assert info(b"", timeout=10, metadata=[("authorization", f"bearer {TOKENS[0]}")])
        with pytest.raises(grpc.RpcError) as caught:
            info(b"", timeout=10, metadata=[("authorization", value) for value in values])
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_the_certificate_may_be_for_a_name_that_is_not_the_address(guarded: Guarded) -> None:
    """As of machines that are reached by addresses: the name that is given is the one that is checked."""
    for name, is_right in (("localhost", True), ("elsewhere", False)):
        answers = set(call_everything(guarded.bound.address, replace(guarded.good, server_name=name)).values())
        assert (UNREACHABLE in answers) != is_right
        assert len(answers) > 1 or not is_right


def test_who_trusts_another_authority_or_none_gets_no_connection(guarded: Guarded, tmp_path: Path) -> None:
    """Neither a client that speaks no TLS nor one that cannot verify the server gets a call through."""
    plain = Credentials(token_file=guarded.good.token_file)
    for credentials in (plain, replace(guarded.good, ca_file=Authority(tmp_path).file)):
        answers = call_everything(guarded.bound.address, credentials)
        assert answers == dict.fromkeys(answers, UNREACHABLE)


def test_a_client_without_tls_is_told_what_may_be_missing(guarded: Guarded) -> None:
    """The server cannot tell it: it ends the connection at the first byte."""
    with ReplayClient(guarded.bound.address, repeat=False) as client, pytest.raises(ReplayTimeout, match="its CA file"):
        client.server_info(timeout=5)


def test_an_expired_certificate_of_the_server_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The client does not connect; the server says why nobody does."""
    authority = Authority(tmp_path)
    idle = guard(tmp_path, authority.issue_expired(), authority, mutual=False)
    with ReplayServer(idle.settings) as bound:
        answers = call_everything(bound.address, idle.good)
        assert answers == dict.fromkeys(answers, UNREACHABLE)
        assert scrape(bound.metrics_address)["zero_replay_certificate_expiry_timestamp_seconds{}"] < time.time()
        with (
            ReplayClient(bound.address, credentials=idle.good) as client,
            pytest.raises(ReplayTimeout, match="certificate has expired"),
        ):
            client.server_info(timeout=0.5)
    assert "the server's certificate ended at" in caplog.text


def test_a_client_without_a_valid_certificate_is_refused_by_mutual_tls(rotating: Guarded, tmp_path: Path) -> None:
    """None, one of another authority, one that has expired: no call gets through, whatever the token."""
    none = replace(rotating.good, certificate_file=None, key_file=None)
    foreign = rotating.with_certificate(Authority(tmp_path).issue())
    own_server = rotating.with_certificate(rotating.authority.issue())
    expired = rotating.with_certificate(rotating.clients.issue_expired())
    for credentials in (none, foreign, own_server, expired):
        answers = call_everything(rotating.bound.address, credentials)
        assert answers == dict.fromkeys(answers, UNREACHABLE)
    assert UNREACHABLE not in call_everything(rotating.bound.address, rotating.good).values()


def write_at_once(path: Path, text: str) -> None:
    """Nobody reads a part of it."""
    beside = path.with_name(f"{path.name}-{next(_numbers)}")
    beside.write_text(text)
    beside.chmod(path.stat().st_mode)
    beside.replace(path)


def test_tokens_change_without_a_restart(rotating: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    """A new file is in force soon, a client reads its own again; a damaged one leaves the earlier in force."""
    caplog.set_level(logging.INFO)
    security = rotating.settings.security
    stale = "zero_replay_stale_credentials{kind=tokens}"
    with ReplayClient(rotating.bound.address, credentials=rotating.good) as client:
        client.server_info(timeout=10)
        write_at_once(security.token_file, f"actors:{TOKENS[0]}\nactors:{WRONG_TOKEN}\n")
        newer = replace(rotating.good, token_file=rotating.token_file(WRONG_TOKEN))
        wait_until(lambda: UNAUTHENTICATED not in call_everything(rotating.bound.address, newer).values())
        client.server_info(timeout=10)
        write_at_once(rotating.good.token_file, WRONG_TOKEN)
        write_at_once(security.token_file, f"actors:{WRONG_TOKEN}\n")
        older = replace(rotating.good, token_file=rotating.token_file(TOKENS[0]))
        wait_until(lambda: set(call_everything(rotating.bound.address, older).values()) == {UNAUTHENTICATED})
        client.server_info(timeout=10)
        for number, damaged in enumerate(("", "actors:short", f"{WRONG_TOKEN}\n"), start=1):
            write_at_once(security.token_file, damaged)
            wait_until(lambda number=number: caplog.text.count("earlier credentials stay in force") == number)
            client.server_info(timeout=10)
            assert scrape(rotating.bound.metrics_address)[stale] == 1
        write_at_once(rotating.good.token_file, "")
        for _ in range(3):
            client.server_info(timeout=10)
        write_at_once(security.token_file, f"actors:{WRONG_TOKEN}\n")
        wait_until(lambda: scrape(rotating.bound.metrics_address)[stale] == 0)
    assert caplog.text.count("earlier credentials stay in force") == 4, "one line for each damaged file"


def mount(folder: Path, **files: Path) -> None:
    """Put copies of files into `folder` in one step, as Kubernetes does: the folder is a link that is turned over."""
    version = folder.with_name(f"{folder.name}-{next(_numbers)}")
    version.mkdir()
    for name, path in files.items():
        (version / name).write_bytes(path.read_bytes())
    link = version.with_suffix(".link")
    link.symlink_to(version)
    link.replace(folder)


def test_certificates_change_without_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who connects from now on meets the new certificate and the new authority of clients; who is connected stays.

    A damaged file, and a key that belongs to another certificate, leave the earlier in force.
    """
    folder = tmp_path / "mounted"
    old, new = Authority(tmp_path), Authority(tmp_path)
    idle = guard(tmp_path, old.issue(), old, mutual=True)
    first, ends = old.issue(), datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3)
    second = new.issue(ends)
    mount(folder, crt=first.certificate_file, key=first.key_file, ca=idle.clients.file)
    security = replace(
        idle.settings.security,
        certificate_file=folder / "crt",
        key_file=folder / "key",
        client_ca_file=folder / "ca",
    )
    with ExitStack() as stack:
        bound = stack.enter_context(ReplayServer(replace(idle.settings, security=security)))

        def gets_in(credentials: Credentials) -> bool:
            answers = set(call_everything(bound.address, credentials).values())
            assert answers == {UNREACHABLE} or UNREACHABLE not in answers
            return answers != {UNREACHABLE}

        def metric(name: str) -> float:
            return scrape(bound.metrics_address)[f"zero_replay_{name}"]

        stale = "stale_credentials{kind=certificate}"
        early = stack.enter_context(ReplayClient(bound.address, credentials=idle.good))
        early.server_info(timeout=10)
        clients = Authority(tmp_path)
        own = clients.issue()
        newer = replace(idle.good, ca_file=new.file, certificate_file=own.certificate_file, key_file=own.key_file)
        assert gets_in(idle.good)
        assert not gets_in(newer)
        mount(folder, crt=second.certificate_file, key=second.key_file, ca=clients.file)
        wait_until(lambda: gets_in(newer))
        assert not gets_in(idle.good)
        early.server_info(timeout=10)
        assert metric("certificate_expiry_timestamp_seconds{}") == int(ends.timestamp())
        for crt, key, ca in (
            (first.certificate_file, second.key_file, clients.file),
            (second.certificate_file, second.certificate_file, clients.file),
            (second.certificate_file, second.key_file, second.key_file),
            (second.key_file, second.key_file, clients.file),
        ):
            before = caplog.text.count("earlier credentials stay in force")
            mount(folder, crt=crt, key=key, ca=ca)
            wait_until(lambda before=before: caplog.text.count("earlier credentials stay in force") == before + 1)
            assert gets_in(newer)
            wait_until(lambda: metric(stale) == 1)
        mount(folder, crt=first.certificate_file, key=first.key_file, ca=idle.clients.file)
        wait_until(lambda: gets_in(idle.good))
        wait_until(lambda: metric(stale) == 0)


def without(settings: SecuritySettings, *names: str) -> SecuritySettings:
    return replace(settings, **dict.fromkeys(names))


TLS = ("certificate_file", "key_file", "client_ca_file")


@pytest.mark.parametrize(
    ("host", "missing", "expected"),
    [
        ("0.0.0.0", (*TLS, "token_file"), "without TLS and tokens: give --tls-certificate, --tls-key and --token-file"),
        ("::", (*TLS, "token_file"), "without TLS and tokens"),
        ("", (*TLS, "token_file"), "without TLS and tokens"),
        ("10.1.2.3", (*TLS, "token_file"), "without TLS and tokens"),
        ("replay.example.org", (*TLS, "token_file"), "without TLS and tokens"),
        ("0.0.0.0", TLS, "without TLS:"),
        ("0.0.0.0", ("token_file",), "without tokens:"),
        ("127.0.0.1", ("key_file",), "go together"),
        ("127.0.0.1", ("certificate_file",), "go together"),
        ("127.0.0.1", ("certificate_file", "key_file"), "over TLS only"),
    ],
)
def test_a_server_that_others_could_use_does_not_start(
    guarded: Guarded, tmp_path: Path, host: str, missing: tuple[str, ...], expected: str
) -> None:
    """One line with the remedy, before anything is opened or written."""
    security = replace(guarded.settings.security, client_ca_file=guarded.clients.file)
    settings = ReplayServerSettings(tmp_path / "replay", host=host, security=without(security, *missing))
    with pytest.raises(SecurityError) as caught:
        ReplayServer(settings).start()
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not settings.data_dir.exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_loopback_needs_nothing(host: str) -> None:
    """Only this machine's own processes get there: no files, no warning, not insecure, nothing that expires."""
    metrics = server_metrics()
    assert not Security(SecuritySettings(), host, metrics).interceptors(refuse)
    assert metrics.registry.get_sample_value("zero_replay_insecure") == 0
    assert metrics.registry.get_sample_value("zero_replay_certificate_expiry_timestamp_seconds") == math.inf


def test_insecure_is_said_once_and_shown(guarded: Guarded, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """--insecure lets other machines in, with one warning and a metric; it changes nothing where all is there."""
    settings = ReplayServerSettings(tmp_path / "replay", host="0.0.0.0", security=SecuritySettings(insecure=True))
    with ReplayServer(settings) as bound:
        port = bound.address.rpartition(":")[2]
        with ReplayClient(f"127.0.0.1:{port}") as client:
            client.server_info(timeout=10)
        assert scrape(bound.metrics_address.replace("0.0.0.0", "127.0.0.1"))["zero_replay_insecure{}"] == 1
    assert [record.levelno for record in caplog.records if "INSECURE" in record.message] == [logging.WARNING]
    assert "no TLS and no tokens" in caplog.text
    caplog.clear()
    metrics = server_metrics()
    Security(replace(guarded.settings.security, insecure=True), "0.0.0.0", metrics)
    assert metrics.registry.get_sample_value("zero_replay_insecure") == 0
    assert not caplog.records


def test_a_health_port_answers_probes_and_nothing_else(guarded: Guarded) -> None:
    """There, without TLS and token: Check, for every service; no other method of any service."""
    with grpc.insecure_channel(guarded.bound.health_address) as channel:
        for service in ("", "zero.v1.ReplayService", "zero.v1.WeightsService"):
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=10
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        answers = {method[0]: call(channel, *method)[0] for method in METHODS}
    del answers["/grpc.health.v1.Health/Check"]
    assert set(answers.values()) == {"UNIMPLEMENTED"}


def server_metrics() -> ServerMetrics:
    return ServerMetrics(lambda: Levels((), (), store_available=True))


async def refuse(*_: object) -> None:
    raise AssertionError("nobody calls")


def _seconds(year: int) -> int:
    return int(datetime.datetime(year, 1, 1, tzinfo=datetime.UTC).timestamp())


@hypothesis_settings(max_examples=30, deadline=None)
@given(
    ends=st.lists(
        st.integers(_seconds(1951), _seconds(9999)).map(lambda end: datetime.datetime.fromtimestamp(end, datetime.UTC)),
        min_size=1,
        max_size=2,
    )
)
def test_the_end_of_the_certificate_is_read_for_every_date(
    tmp_path_factory: pytest.TempPathFactory, ends: list[datetime.datetime]
) -> None:
    """Both ways to write a time, RFC 5280 section 4.1.2.5; of several certificates the first to end counts."""
    folder = tmp_path_factory.mktemp("ends")
    authority = Authority(folder)
    leaf, *others = (authority.issue(end) for end in ends)
    with leaf.certificate_file.open("ab") as chain:
        for other in others:
            chain.write(other.certificate_file.read_bytes())
    metrics = server_metrics()
    Security(SecuritySettings(leaf.certificate_file, leaf.key_file), "127.0.0.1", metrics)
    shown = metrics.registry.get_sample_value("zero_replay_certificate_expiry_timestamp_seconds")
    assert shown == min(ends).timestamp()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "holds 0 tokens"),
        ("# actors:a-token-of-an-actor\n", "holds 0 tokens"),
        (f"ok:{TOKENS[0]}\nactors:short-secret", "line 2 is no name:token"),
        (f"actors: {TOKENS[0]}", "line 1 is no name:token"),
        (f"actors:{TOKENS[0]} {TOKENS[1]}", "line 1 is no name:token"),
        (f"{'a' * 65}:{TOKENS[0]}", "line 1 is no name:token"),
        (f":{TOKENS[0]}", "line 1 is no name:token"),
        (f"actors:{'x' * 513}", "line 1 is no name:token"),
        (f"actors:{TOKENS[0]}\0", "line 1 is no name:token"),
        (TOKENS[0], "a line has no name"),
        (f"actors:{TOKENS[0]}\nlearner:{TOKENS[0]}", "stands there twice"),
        ("\n".join(f"c{number}:{number:016d}" for number in range(MAX_CLIENTS + 1)), "holds 1001 tokens"),
        ("x" * ((1 << 20) + 1), "more than 1048576 bytes"),
        (None, "No such file"),
    ],
)
def test_a_token_file_that_is_none_is_refused(tmp_path: Path, text: str | None, expected: str) -> None:
    """One line that names file and line and shows nothing of what stands there."""
    path = tmp_path / "tokens"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SecurityError) as caught:
        Security(SecuritySettings(token_file=path), "127.0.0.1", server_metrics())
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert not any(secret in str(caught.value) for secret in (*TOKENS, "short-secret"))


@pytest.mark.parametrize(
    ("text", "token"),
    [
        (f"\n # mine \n\r\n{TOKENS[0]}\r\nother:{TOKENS[1]}", TOKENS[0]),
        (f"actors:{'x' * 16}==", "x" * 16 + "=="),
        (f"  {'A' * 512}  \n", "A" * 512),
    ],
)
def test_a_client_takes_the_first_token_of_its_file(tmp_path: Path, text: str, token: str) -> None:
    """Alone on a line or after a name, whatever the ends of lines."""
    path = tmp_path / "token"
    path.write_bytes(text.encode())
    assert read_tokens(path)[0].token == token
    assert token not in repr(read_tokens(path))


def test_a_client_whose_credentials_cannot_be_used_says_so_at_once(guarded: Guarded, tmp_path: Path) -> None:
    """One line before anything is sent; a token never goes to another machine unencrypted unless it is allowed."""
    good = replace(guarded.good, certificate_file=None, key_file=None)
    pair, other = guarded.clients.issue(), guarded.clients.issue()
    garbage = tmp_path / "garbage"
    garbage.write_text("garbage")
    for address, credentials, expected in (
        ("10.1.2.3:1", replace(good, ca_file=None), "the token would go to 10.1.2.3:1 for all to read"),
        ("replay:1", replace(good, ca_file=None), "for all to read"),
        ("127.0.0.1:1", replace(good, ca_file=garbage), "holds no certificates"),
        ("127.0.0.1:1", replace(good, ca_file=tmp_path / "nothing"), "No such file"),
        ("127.0.0.1:1", replace(good, token_file=garbage), "line 1 is no name:token"),
        ("127.0.0.1:1", replace(good, certificate_file=pair.certificate_file), "go together"),
        ("127.0.0.1:1", replace(good, key_file=pair.key_file), "go together"),
        ("127.0.0.1:1", replace(guarded.with_certificate(pair), key_file=other.key_file), "cannot be used together"),
        ("127.0.0.1:1", replace(guarded.with_certificate(pair), ca_file=None), "over TLS only"),
    ):
        with pytest.raises(CredentialsError, match=expected) as caught:
            ReplayClient(address, credentials=credentials)
        assert "\n" not in str(caught.value)
    for address, credentials in (
        ("10.1.2.3:1", replace(good, ca_file=None, insecure=True)),
        ("[::1]:1", replace(good, ca_file=None)),
        ("10.1.2.3:1", replace(good, ca_file=None, token_file=None)),
    ):
        ReplayClient(address, credentials=credentials).close()


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked(tmp_path: Path) -> None:
    """A server without a terminal must not wait for somebody to type."""
    pair = Authority(tmp_path).issue()
    key = serialization.load_pem_private_key(pair.key_file.read_bytes(), None)
    pair.key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )
    )
    read = f"""
import os
from pathlib import Path
from replay_server.credentials import read_key_pair
os.open(os.ttyname(0), os.O_RDWR)  # the terminal that OpenSSL would ask in
read_key_pair(Path({str(pair.certificate_file)!r}), Path({str(pair.key_file)!r}))
"""
    terminal, its_end = pty.openpty()
    try:
        result = subprocess.run(
            [sys.executable, "-c", read],
            check=False,
            stdin=its_end,
            capture_output=True,
            text=True,
            start_new_session=True,
            timeout=20,
            cwd=Path(__file__).parents[2],
        )
    finally:
        os.close(terminal)
        os.close(its_end)
    assert "without a passphrase" in result.stderr


def test_no_secret_is_shown(
    rotating: Guarded, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither tokens nor keys nor the password of Redis are in logs, output, metrics, errors or reprs."""
    caplog.set_level(logging.DEBUG)
    security = rotating.settings.security
    shown: list[str] = []
    with ReplayClient(rotating.bound.address, credentials=rotating.good) as client:
        client.create_table(table_config(f"table-{next(_numbers)}"))
        shown += [repr(client), repr(vars(client))]
    for text in (WRONG_TOKEN, f"name:{WRONG_TOKEN}"):
        wrong = replace(rotating.good, token_file=rotating.token_file(text))
        with ReplayClient(rotating.bound.address, credentials=wrong) as client:
            with pytest.raises(ReplayError) as caught:
                client.server_info(timeout=10)
            shown += [str(caught.value), repr(caught.value), repr(vars(caught.value))]
    security.token_file.write_text(f"actors:{TOKENS[0]}:{TOKENS[1]}\n")
    security.key_file.write_text("garbage")
    wait_until(lambda: caplog.text.count("earlier credentials stay in force") == 2)
    password = "pass-word/1"
    for url in (f"redis://:{password}@127.0.0.1:1/0", f"redis://me:{password}@h:nan/0", f"{password}@h", "http://h"):
        settings = replace(rotating.settings, redis_url=url, security=SecuritySettings())
        with pytest.raises(ReplayServerError) as refused:
            ReplayServer(settings).start()
        shown += [str(refused.value), repr(settings)]
    with urllib.request.urlopen(f"http://{rotating.bound.metrics_address}/metrics", timeout=10) as response:
        shown.append(response.read().decode())
    captured = capfd.readouterr()
    everything = "\n".join((*shown, caplog.text, captured.out, captured.err))
    body = rotating.good.key_file.read_text().splitlines()[1]
    for secret in (*TOKENS, WRONG_TOKEN, body, "Bearer", "pass-word"):
        assert secret not in everything
    assert str(security.token_file) in everything, "the log was looked at"
