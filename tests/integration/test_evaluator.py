"""The evaluator against a real replay server keeps the best of the weights that it measured."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from actors.best_weights import BestWeights, read_best
from actors.contests import Evaluation
from actors.evaluator import EvaluatorLoop, EvaluatorSettings, evaluate_weights, run_evaluator
from actors.evaluator_metrics import EvaluatorMetrics
from actors.weights_client import WeightsClient
from replay_server.client import ReplayClient
from replay_server.server import ReplayServer, ReplayServerSettings
from tests.roles import running, wait_until
from zero.config import ExperimentConfig, parse_config
from zero.games.registry import make_game
from zero.networks.make_network import make_network
from zero.networks.weights import weights_to_bytes

SMALL = [
    "game.name=tic_tac_toe",
    "network.channels=4",
    "network.blocks=1",
    "network.support_min=-1.0",
    "search.num_simulations=2",
    "self_play.max_moves=9",
    "evaluation.interval_seconds=0.05",
    "evaluation.num_games=20",
    'evaluation.baselines=["random", "greedy"]',
    "evaluation.simulations=[1]",
]
CONFIG = parse_config("", SMALL)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[ReplayClient]:
    """A client of a replay server of the test's own."""
    with ReplayServer(ReplayServerSettings(tmp_path / "replay")) as bound, ReplayClient(bound.address) as client:
        yield client


def payload_of(seed: int) -> bytes:
    """Fresh weights: bad ones, but some worse than others."""
    return weights_to_bytes(make_network(make_game("tic_tac_toe", {}), CONFIG.network, seed))


def score_of(config: ExperimentConfig, payload: bytes) -> float:
    """What an evaluation of its own gives the search with these weights."""
    evaluation = Evaluation(config, config.evaluation.num_games)
    return evaluate_weights(evaluation, payload, lambda _, __: None).scores["search"].mean


def measure(config: ExperimentConfig, client: ReplayClient, run_dir: Path, *payloads: bytes) -> EvaluatorMetrics:
    """Be an evaluator until each of the weights, published one after the other, was measured, and some are the best."""
    evaluation = Evaluation(config, config.evaluation.num_games)
    best = BestWeights(run_dir / "best", config, evaluation.opponents)
    metrics = EvaluatorMetrics()
    loop = EvaluatorLoop(evaluation, best, metrics, config.evaluation.interval_seconds)
    with (
        closing(WeightsClient(client)) as weights_client,
        running(lambda stop: loop.run(weights_client, stop)),
    ):
        for step, payload in enumerate(payloads):
            version = client.publish_weights(payload, step)
            wait_until(
                lambda version=version: metrics.registry.get_sample_value("zero_evaluator_weights_version") == version
            )
        wait_until(lambda: best.manifest is not None)
    return metrics


def test_the_best_of_all_measured_weights_is_kept(client: ReplayClient, tmp_path: Path) -> None:
    """Not the newest; a later evaluator of the same run goes on with it, and measures it anew if it searches deeper."""
    payloads = [payload_of(seed) for seed in range(4)]
    scores = [score_of(CONFIG, payload) for payload in payloads]
    order = sorted(range(4), key=scores.__getitem__)
    worst, middle, best = order[0], order[1], order[-1]
    assert scores[worst] < scores[middle] < scores[best]
    metrics = measure(CONFIG, client, tmp_path, payloads[middle], payloads[best], payloads[worst])
    found = read_best(tmp_path / "best", CONFIG)
    assert found is not None
    assert (found[0].training_step, found[0].score, found[1]) == (1, scores[best], payloads[best])
    assert metrics.registry.get_sample_value("zero_evaluator_best_score") == scores[best]
    assert metrics.registry.get_sample_value("zero_evaluator_best_training_step") == 1
    later = measure(CONFIG, client, tmp_path, payloads[middle])
    assert read_best(tmp_path / "best", CONFIG) == found
    assert later.registry.get_sample_value("zero_evaluator_best_score") == scores[best]
    deeper = parse_config("", [*SMALL, "search.num_simulations=6"])
    measure(deeper, client, tmp_path)
    measured_anew = read_best(tmp_path / "best", deeper)
    assert measured_anew is not None
    assert measured_anew[1] == payloads[best]
    assert measured_anew[0].score == score_of(deeper, payloads[best]) != scores[best]


def test_the_role_measures_whom_the_config_names(client: ReplayClient, tmp_path: Path) -> None:
    """Baselines and numbers of simulations; and keeps the best weights in the run's folder, in plain JSON."""
    settings = EvaluatorSettings(client.address, run_dir=tmp_path / "run")
    client.publish_weights(payload_of(0), 70)
    manifest = tmp_path / "run/best/best.json"
    with running(lambda stop: run_evaluator(CONFIG, settings, stop)):
        wait_until(manifest.exists)
    best = json.loads(manifest.read_text())
    assert (best["training_step"], best["weights_version"]) == (70, 1)
    assert best["score"] == score_of(CONFIG, payload_of(0))
    assert (manifest.parent / best["file"]).read_bytes() == payload_of(0)
    assert best["measured"]["evaluation"] == {"opponents": ["random", "greedy"], "num_games": 20, "seed": 1_000_000}


def test_config_and_request_add_up() -> None:
    """Names given replace the experiment's baselines; numbers of simulations come on top of its own."""
    assert Evaluation(CONFIG, 4).opponents == ("random", "greedy")
    assert Evaluation(CONFIG, 4).network_names == ("policy", "search-1", "search")
    asked = Evaluation(CONFIG, 4, ["greedy"], [4])
    assert asked.opponents == ("greedy",)
    assert asked.network_names == ("policy", "search-1", "search", "search-4")
    assert Evaluation(parse_config("", []), 4).opponents == ()
    plain = parse_config("", ["game.name=tic_tac_toe"])
    assert Evaluation(plain, 4).opponents == ("random", "greedy", "mcts-1000", "perfect")
