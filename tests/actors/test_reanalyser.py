"""The reanalyser beside a real server with real Redis: what it writes and must not touch, what the learner sees."""

from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch

from actors.actor import SearchFactory
from actors.reanalyser import Pace, ReanalyserLoop, ReanalyserSettings, ResultWriter, run_reanalyser
from actors.reanalyser_metrics import ReanalyserMetrics
from actors.reanalysis import WINDOWS, Reanalysis, choose_positions
from actors.self_play import SelfPlay
from actors.tuning import Tuning
from actors.weights_client import WeightsClient
from learner.learner import Learner
from learner.metrics import LearnerMetrics
from replay_server.answers import ReplayTimeout, UpdateResult
from replay_server.client import ReplayClient
from replay_server.server import ReplayServer, ReplayServerSettings
from tests.replay_server.killable import killable_server
from tests.roles import running, wait_until
from zero.config import parse_config
from zero.games.registry import make_game
from zero.networks.inference import make_inference
from zero.networks.make_network import make_network
from zero.networks.weights import weights_to_bytes
from zero.search.make_search import make_search
from zero.search_ages import SEARCH_WINDOWS, search_ages
from zero.self_play_table import TABLE_NAME, self_play_table
from zero.trajectories import SequenceBatch, Trajectory

WIDTH = 16
CONFIG = parse_config(
    "",
    [
        "game.name=tic_tac_toe",
        "discount=1.0",
        "search.num_simulations=6",
        "search.max_num_considered_actions=4",
        "network.channels=8",
        "network.blocks=1",
        "network.support_min=-1.0",
        "network.support_max=1.0",
        f"self_play.games_per_actor={WIDTH}",
        "self_play.dtype=float32",
        "self_play.max_moves=9",
        "replay.min_size_to_sample=20",
        "replay.capacity=400",
        "replay.error_buffer=4000.0",
        "learner.td_steps=4",
        "reanalyse.steps_per_insert=0.0",
    ],
)
GAME = make_game("tic_tac_toe", {})
TUNING = Tuning(WIDTH, torch.float32, 1.0, 0.0)


def network(seed: int) -> torch.nn.Module:
    """Weights of their own, which tell positions apart."""
    made = make_network(GAME, CONFIG.network, seed)
    torch.nn.init.normal_(made.value[2].weight, generator=torch.Generator().manual_seed(seed))
    return made


def games(number: int, version: int = 1, seed: int = 0) -> list[Trajectory]:
    """So many finished games of an actor."""
    self_play = SelfPlay(GAME, CONFIG.self_play, 6, f"actor-{seed}", np.random.SeedSequence(seed), WIDTH)
    search = make_search(GAME, make_inference(network(0)), CONFIG, WIDTH)
    finished: list[Trajectory] = []
    while len(finished) < number:
        finished += self_play.play_move(search, version)[0]
    return finished[:number]


class NotingClient(ReplayClient):
    """Shows the table once and notes what; when something was written, it ends the role. Calls `between` in between."""

    def __init__(self, address: str, stop: Event, between=lambda _: None) -> None:
        super().__init__(address)
        self._ended = stop
        self._between = between
        self.seen: list[SequenceBatch] = []

    def peek(self, *arguments, **keywords) -> SequenceBatch:
        """See ReplayClient."""
        if self.seen:
            assert self._ended.wait(60)
            raise ReplayTimeout("DEADLINE_EXCEEDED", "shown once")
        self.seen.append(super().peek(*arguments, **keywords))
        self._between(self.seen[-1])
        return self.seen[-1]

    def update_columns(self, *arguments, **keywords) -> UpdateResult:
        """See ReplayClient."""
        result = super().update_columns(*arguments, **keywords)
        self._ended.set()
        return result


def reanalyse_once(address: str, seed: int, between=lambda _: None) -> tuple[NotingClient, ReanalyserMetrics]:
    """A reanalyser that ends when it has written for the first time; what was looked at, and its metrics."""
    stop, metrics = Event(), ReanalyserMetrics()
    reanalysis = Reanalysis(GAME, CONFIG, np.random.default_rng(seed))
    searches = SearchFactory(CONFIG, GAME, network(9), TUNING)
    with (
        NotingClient(address, stop, between) as client,
        closing(WeightsClient(client)) as weights_client,
        closing(ResultWriter(client, metrics.report_written, stop)) as writer,
    ):
        ReanalyserLoop(client, reanalysis, searches, weights_client, writer, Pace(0), metrics).run(stop)
    return client, metrics


def table_of(client: ReplayClient) -> dict[int, dict[str, np.ndarray]]:
    """Every stored step by its key."""
    number = client.server_info().tables[TABLE_NAME].num_steps
    found: dict[int, dict[str, np.ndarray]] = {}
    while len(found) < number:
        batch = client.peek(TABLE_NAME, 1000, WINDOWS)
        for row, key in enumerate(batch.keys.tolist()):
            found[key] = {name: column[row, 0] for name, column in batch.columns.items()}
    return found


def fresh_search(seen: SequenceBatch, version: int, weights: int, seed: int) -> dict[int, tuple[np.ndarray, float]]:
    """What a search of what was looked at gives, made anew: key to policy and value."""
    positions = choose_positions(seen, version, WIDTH)
    assert positions is not None
    seeds = np.random.default_rng(seed).integers(0, 2**64, WIDTH, dtype=np.uint64)
    search = make_search(GAME, make_inference(network(weights)), CONFIG, WIDTH)
    number = len(positions.keys)
    rows = np.arange(WIDTH) % number
    result = search.run(GAME.decode(positions.observations[rows]), seeds, CONFIG.self_play.noise_scale)
    found = zip(result.search_policy[:number].astype(np.float16), result.search_value[:number], strict=True)
    return dict(zip(positions.keys.tolist(), found, strict=True))


@pytest.fixture
def settings(tmp_path: Path) -> ReplayServerSettings:
    """Of a server of the test's own."""
    return ReplayServerSettings(tmp_path / "replay")


@pytest.fixture
def client(settings: ReplayServerSettings) -> Iterator[ReplayClient]:
    """A client of a server with some games played by version 1, and newer weights."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        begin(client)
        yield client


def begin(client: ReplayClient) -> None:
    """Some games that version 1 has played, and version 2 published."""
    client.create_table(self_play_table(CONFIG, GAME))
    client.publish_weights(weights_to_bytes(network(0)), 1)
    client.insert(TABLE_NAME, games(12))
    client.publish_weights(weights_to_bytes(network(1)), 2)


def test_what_is_written_back_is_a_fresh_search(client: ReplayClient) -> None:
    """Bit for bit, by key, with the version of the weights; all other steps and columns stay as they were."""
    before = table_of(client)
    assert {int(step["search_version"]) for step in before.values()} == {1}
    reanalyser, metrics = reanalyse_once(client.address, seed=4)
    after = table_of(client)
    expected = fresh_search(reanalyser.seen[0], 2, weights=1, seed=4)
    assert len(expected) == WIDTH
    for key, step in after.items():
        np.testing.assert_array_equal(step["observation"], before[key]["observation"])
        if key in expected:
            policy, value = expected[key]
            np.testing.assert_array_equal(step["search_policy"], policy)
            assert step["search_value"] == value
            assert step["search_version"] == 2
            assert step["reanalysed_at"] > 1e9
        else:
            assert all(np.array_equal(value, before[key][name]) for name, value in step.items())
    value = metrics.registry.get_sample_value
    assert value("zero_reanalyser_steps_total", {"result": "updated"}) == WIDTH
    assert value("zero_reanalyser_simulations_total") == WIDTH * 6
    assert value("zero_reanalyser_weights_version") == 2
    assert value("zero_reanalyser_table_reanalysed_ratio") == 0
    assert value("zero_reanalyser_table_search_behind_versions") == 1


def test_the_table_is_shown_as_it_is(client: ReplayClient) -> None:
    """How much of it was searched again, and how long ago in versions and seconds."""
    first, _ = reanalyse_once(client.address, seed=4)
    client.publish_weights(weights_to_bytes(network(2)), 3)
    second, metrics = reanalyse_once(client.address, seed=5)
    (seen,) = second.seen
    share = float((seen.columns["reanalysed_at"] > 0).mean())
    assert 0 < share < 1
    value = metrics.registry.get_sample_value
    assert value("zero_reanalyser_table_reanalysed_ratio") == pytest.approx(share)
    assert value("zero_reanalyser_table_search_behind_versions") == pytest.approx(2 * (1 - share) + share)
    assert 0 <= value("zero_reanalyser_table_reanalysed_age_seconds") < 300
    chosen = choose_positions(seen, 3, WIDTH)
    assert chosen is not None
    written = set(fresh_search(first.seen[0], 2, weights=1, seed=4))
    assert not written & set(chosen.keys.tolist())  # there are older ones


def test_a_late_result_hits_no_newer_step(client: ReplayClient) -> None:
    """Games that came while it was searched, into the slots of what made room, stay as they were played."""

    def replace_all(_: SequenceBatch) -> None:
        for number in range(1, 8):
            client.insert(TABLE_NAME, games(12, version=2, seed=number))

    first = min(table_of(client))
    _, metrics = reanalyse_once(client.address, 4, replace_all)
    steps = table_of(client)
    assert min(steps) > first
    assert {(int(step["search_version"]), float(step["reanalysed_at"])) for step in steps.values()} == {(2, 0.0)}
    assert metrics.registry.get_sample_value("zero_reanalyser_steps_total", {"result": "evicted"}) == WIDTH


def test_older_weights_undo_nothing(client: ReplayClient) -> None:
    """What newer weights have found meanwhile stays."""

    def be_faster(seen: SequenceBatch) -> None:
        keys = np.unique(seen.keys)
        newer = {
            "search_value": np.full(len(keys), 0.5, np.float32),
            "search_version": np.full(len(keys), 3, np.uint32),
        }
        client.update_columns(TABLE_NAME, keys, newer, version_column="search_version")

    reanalyser, metrics = reanalyse_once(client.address, 4, be_faster)
    steps = table_of(client)
    for key in np.unique(reanalyser.seen[0].keys).tolist():
        assert (steps[key]["search_version"], steps[key]["search_value"]) == (3, 0.5)
    assert metrics.registry.get_sample_value("zero_reanalyser_steps_total", {"result": "outdated"}) == WIDTH


def test_a_move_that_was_searched_cheaply_gains_a_policy(client: ReplayClient) -> None:
    """What play recorded without a policy is learned like any other position from then on."""
    steps = table_of(client)
    keys = np.array(list(steps), np.uint64)
    client.update_columns(TABLE_NAME, keys, {"search_policy": np.zeros((len(keys), 9), np.float16)})
    reanalyse_once(client.address, seed=4)
    sums = [float(step["search_policy"].sum()) for step in table_of(client).values() if step["reanalysed_at"] > 0]
    assert len(sums) == WIDTH
    assert sums == pytest.approx([1.0] * WIDTH, abs=0.01)


def test_targets_follow(client: ReplayClient) -> None:
    """The policy target is the new one, the value target is built from the new values where the window has them."""
    as_they_are = CONFIG.learner.model_copy(update={"use_symmetries": False})
    learner = Learner(CONFIG.model_copy(update={"learner": as_they_are}), GAME, torch.device("cpu"))
    reanalyse_once(client.address, seed=4)
    batch = client.sample(TABLE_NAME, 400, learner.windows() | SEARCH_WINDOWS)
    steps = table_of(client)
    prepared = learner.prepare(batch)
    reanalysed = batch.columns["reanalysed_at"][:, 0] > 0
    assert 0 < reanalysed.mean() < 1
    for row in np.flatnonzero(reanalysed):
        policy = steps[int(batch.keys[row])]["search_policy"].astype(np.float32)
        np.testing.assert_allclose(prepared.target_policy[row, 0], policy / policy.sum(), rtol=1e-5)
    # The value of a later step in the window is that which the table has now.
    stored = {whole.trajectory_id: whole.columns for whole in client.read_trajectories(TABLE_NAME)}
    values = {column.tobytes() for whole in stored.values() for column in whole["search_value"][:, None]}
    within = np.arange(learner.windows()["search_value"]) < batch.lengths[:, None]
    assert all(value.tobytes() in values for value in batch.columns["search_value"][within])
    changed = np.where(reanalysed[:, None], batch.columns["search_value"] + 1, batch.columns["search_value"])
    other = learner.prepare(replace(batch, columns={**batch.columns, "search_value": changed.astype(np.float32)}))
    assert not torch.equal(other.target_value, prepared.target_value)


def test_the_learner_tells_how_old_its_searches_are(client: ReplayClient, tmp_path: Path) -> None:
    """Share, versions and seconds of what it learns from, against a count by hand."""
    learner, metrics = Learner(CONFIG, GAME, torch.device("cpu")), LearnerMetrics(tmp_path)
    value = metrics.registry.get_sample_value
    windows = learner.windows() | SEARCH_WINDOWS
    metrics.report_searches(search_ages(client.sample(TABLE_NAME, 200, windows), 2, 0.0))
    assert value("zero_learner_reanalysed_ratio") == 0
    assert value("zero_learner_search_staleness_versions") == 1
    assert np.isnan(value("zero_learner_reanalysed_age_seconds"))
    reanalyse_once(client.address, seed=4)
    batch = client.sample(TABLE_NAME, 200, windows)
    times = batch.columns["reanalysed_at"][:, 0]
    metrics.report_searches(search_ages(batch, 7, float(times.max()) + 10))
    share = float((times > 0).mean())
    assert 0 < share < 1
    assert value("zero_learner_reanalysed_ratio") == pytest.approx(share)
    assert value("zero_learner_search_staleness_versions") == pytest.approx(6 * (1 - share) + 5 * share)
    assert value("zero_learner_reanalysed_age_seconds") == pytest.approx(10)


def test_play_says_which_weights_searched_each_move() -> None:
    """Of every move, not only of the first one; nothing is reanalysed yet."""
    self_play = SelfPlay(GAME, CONFIG.self_play, 6, "actor-0", np.random.SeedSequence(0), WIDTH)
    search = make_search(GAME, make_inference(network(0)), CONFIG, WIDTH)
    finished = [game for version in range(20, 32) for game in self_play.play_move(search, version)[0]]
    assert finished
    for game in finished:
        versions = game.columns["search_version"]
        np.testing.assert_array_equal(versions, game.weights_version + np.arange(game.num_steps))
        assert not game.columns["reanalysed_at"].any()


def test_a_reanalyser_ends_when_it_is_told_to_while_nothing_is_there(tmp_path: Path) -> None:
    """No table, no weights, no server: it waits, and ends."""
    with running(lambda stop: run_reanalyser(CONFIG, ReanalyserSettings("127.0.0.1:1"), stop)):
        pass
    with (
        ReplayServer(ReplayServerSettings(tmp_path / "replay")) as bound,
        running(lambda stop: run_reanalyser(CONFIG, ReanalyserSettings(bound.address), stop)),
        ReplayClient(bound.address) as client,
    ):
        client.create_table(self_play_table(CONFIG, GAME))
        client.publish_weights(weights_to_bytes(network(1)), 1)


@pytest.mark.slow
def test_what_was_reanalysed_survives_a_kill_and_the_role_goes_on(settings: ReplayServerSettings) -> None:
    """kill -9 of the server in the middle: nothing acknowledged is lost, and the reanalyser comes through the table."""
    with killable_server(settings.data_dir) as server:
        with ReplayClient(server.address) as client:
            begin(client)
        reanalyse_once(server.address, seed=4)
        with ReplayClient(server.address) as client:
            held = table_of(client)
        assert sum(step["reanalysed_at"] > 0 for step in held.values()) == WIDTH
        server.kill()
        server.start()
        with ReplayClient(server.address) as client:
            found = table_of(client)
            assert found.keys() == held.keys()
            for key, step in held.items():
                assert all(np.array_equal(value, found[key][name]) for name, value in step.items())
            assert client.verify_table(TABLE_NAME).problems == ()

        def all_are(version: int) -> bool:
            with suppress(AssertionError), ReplayClient(server.address) as client:
                return {int(step["search_version"]) for step in table_of(client).values()} == {version}
            return False

        with running(lambda stop: run_reanalyser(CONFIG, ReanalyserSettings(server.address), stop)):
            wait_until(lambda: all_are(2))
            server.kill()
            server.start()
            with ReplayClient(server.address) as client:
                client.publish_weights(weights_to_bytes(network(2)), 3)
            wait_until(lambda: all_are(3))
