"""Real servers on free ports with real, embedded Redis."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from replay_server.answers import ReplayError
from replay_server.client import ReplayClient
from replay_server.server import BoundAddresses, ReplayServer, ReplayServerSettings
from tests.replay_server.played import table_config
from zero.tables import TableConfig

_numbers = itertools.count()


@pytest.fixture(scope="session")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BoundAddresses]:
    """A server that all tests share; each brings tables of its own."""
    with ReplayServer(ReplayServerSettings(tmp_path_factory.mktemp("replay"))) as bound:
        yield bound


@pytest.fixture
def client(addresses: BoundAddresses) -> Iterator[ReplayClient]:
    """A client of the shared server."""
    with ReplayClient(addresses.address) as client:
        yield client


@pytest.fixture
def make_table(client: ReplayClient) -> Iterator[Callable[..., TableConfig]]:
    """Creates a table with a name of its own on the shared server; takes what differs from table_config()."""
    made: list[str] = []

    def make(**changes: object) -> TableConfig:
        config = replace(table_config(f"table-{next(_numbers)}"), **changes)
        assert client.create_table(config, timeout=10)
        made.append(config.name)
        return config

    yield make
    for name in made:  # a server holds so many only
        with suppress(ReplayError):  # the test may have deleted it
            client.delete_table(name)


@pytest.fixture
def settings(tmp_path: Path) -> ReplayServerSettings:
    """Settings of a server of the test's own."""
    return ReplayServerSettings(tmp_path / "replay")
