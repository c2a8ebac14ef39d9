"""Leaves that a served agent evaluates are searched as if the network were here."""

import socket
from collections.abc import Iterator
from contextlib import closing
from threading import Event, Thread, Timer
from typing import Any

import numpy as np
import pytest
import torch

from actors import inference_client
from actors.inference_client import Address, InferenceClient, InferenceError, InferenceStopped
from actors.metrics import ActorMetrics
from actors.self_play import SelfPlay
from deploy.experiment_files import load_experiment
from tests.deploy.http_agents import PublishingAgent, over_http, payload_of
from tests.deploy.served_runs import SMALL
from zero.config import ConfigError, ExperimentConfig
from zero.games.registry import make_game
from zero.networks.inference import make_inference
from zero.networks.make_network import make_network
from zero.networks.weights import load_weights
from zero.search.make_search import make_search
from zero.trajectories import Trajectory

GAMES = 6
CONFIGS = {
    name: load_experiment(name, [*SMALL, "search.chance_draws=2", "self_play.max_moves=6"])
    for name in ("tic_tac_toe", "triangle")
}
CONFIG = CONFIGS["tic_tac_toe"]
GAME = make_game("tic_tac_toe", {})


def client_of(url: str, metrics: ActorMetrics | None = None, stop: Event | None = None) -> InferenceClient:
    return InferenceClient(Address(url), GAME, metrics or ActorMetrics(), stop or Event())


def observations(count: int) -> np.ndarray:
    """Positions with one stone."""
    return np.eye(9, dtype=np.uint8)[np.arange(count) % 9]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def agent() -> PublishingAgent:
    return PublishingAgent(CONFIG)


@pytest.fixture
def url(agent: PublishingAgent) -> Iterator[str]:
    with over_http(agent.http) as address:
        yield address


def played(config: ExperimentConfig, network: Any, version: Any, moves: int) -> list[Trajectory]:
    game = make_game(config.game.name, config.game.options)
    self_play = SelfPlay(game, config.self_play, 4, "actor-0", np.random.SeedSequence(7), GAMES)
    search = make_search(game, network, config, GAMES)
    return [trajectory for _ in range(moves) for trajectory in self_play.play_move(search, version)[0]]


@pytest.mark.parametrize("name", CONFIGS)
def test_served_and_local_games_are_the_same(name: str) -> None:
    """From the same seeds and weights, bit for bit, in games with and without chance."""
    config = CONFIGS[name]
    game = make_game(name, config.game.options)
    network = make_network(game, config.network, 1)
    load_weights(network, payload_of(config, 0))
    publishing = PublishingAgent(config, version=5)
    local = played(config, make_inference(network, publishing.agent.dtype), 5, 12)
    with over_http(publishing.http) as address:
        client = InferenceClient(Address(address), game, ActorMetrics(), Event())
        with closing(client):
            served = played(config, client, client.take_version, 12)
    assert len(served) == len(local) > 2
    for here, there in zip(local, served, strict=True):
        assert (here.trajectory_id, here.weights_version) == (there.trajectory_id, there.weights_version)
        for column, numbers in here.columns.items():
            np.testing.assert_array_equal(numbers, there.columns[column], column)


def test_a_search_that_versions_mix_in_counts_as_of_the_oldest(agent: PublishingAgent, url: str) -> None:
    """Newer weights in the middle of a search leave it with the version that it began by; the next has the new one."""
    agent.swap(0, 8)
    metrics = ActorMetrics()
    with closing(client_of(url, metrics)) as client:
        old, _ = client.evaluate_observations(observations(3))
        agent.swap(1, 9)
        new, _ = client.evaluate_observations(observations(3))
        assert (old != new).any()
        assert client.take_version() == 8
        client.evaluate_observations(observations(3))
        assert client.take_version() == 9
        assert client.training_step == 10
        with pytest.raises(ValueError, match="nothing was evaluated"):
            client.take_version()
    assert metrics.inference_leaves._value.get() == 9


def test_a_service_that_comes_back_is_used_again(agent: PublishingAgent) -> None:
    """While it is away the leaves wait; nothing is lost, and the actor says once that it waits."""
    metrics = ActorMetrics()
    with over_http(agent.http) as url:
        client = client_of(url, metrics)
        before, _ = client.evaluate_observations(observations(4))
    answers: list[np.ndarray] = []
    asking = Thread(target=lambda: answers.append(client.evaluate_observations(observations(4))[0]))
    asking.start()
    while metrics.inference_retries._value.get() < 2:
        assert asking.is_alive()
    with over_http(agent.http, int(url.rpartition(":")[2])):
        asking.join(30)
    np.testing.assert_array_equal(answers[0], before)
    client.close()


def test_a_service_that_stays_away_ends_the_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a bounded time, with one line that says what to do; it does not go on by itself."""
    monkeypatch.setattr(inference_client, "RETRY_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    with closing(client_of(url)) as client, pytest.raises(InferenceError, match=r"refused.*zero serve RUN") as caught:
        client.evaluate_observations(observations(1))
    assert "\n" not in str(caught.value)


def test_an_actor_that_is_to_end_waits_for_no_service() -> None:
    """Neither at its start nor in a search."""
    stop = Event()
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    with closing(client_of(url, stop=stop)) as client:
        Timer(0.1, stop.set).start()
        assert not client.wait_until_served(CONFIG.game)
        with pytest.raises(InferenceStopped):
            client.evaluate_observations(observations(1))


def test_an_agent_that_cannot_evaluate_is_refused_at_the_start(agent: PublishingAgent, url: str) -> None:
    """Of another game, of weights that nobody published, or no agent at all: one line each."""
    with closing(client_of(url)) as client:
        assert client.wait_until_served(CONFIG.game)
        with pytest.raises(InferenceError, match=r"its agent plays with game.name \"tic_tac_toe\", .*triangle"):
            client.wait_until_served(CONFIGS["triangle"].game)
        with pytest.raises(InferenceError, match="refuses: the body has 0 bytes"):
            client.evaluate_observations(observations(0))
        with pytest.raises(InferenceError, match=r"refuses: .* 7"):
            client.evaluate_observations(observations(1) * 7)
        agent.swap(0, None)
        with pytest.raises(InferenceError, match="--weights published"):
            client.wait_until_served(CONFIG.game)
        with pytest.raises(InferenceError, match="--weights published"):
            client.evaluate_observations(observations(1))
        agent.swap(0, 1)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a", "http://", "http://a:b", "http://a:1?x=2"])
def test_an_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(ConfigError, match="--inference: write it as"):
        Address(url)
