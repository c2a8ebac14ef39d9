"""What a served agent answers, from bytes to bytes, without a web server."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from actors.evaluation import Schedule, play_games
from actors.players import RandomPlayer
from deploy.errors import DeployError
from deploy.run_folder import RunFolder
from deploy.run_weights import WeightsWatch, WhichWeights, read_weights
from deploy.serving_agent import WIDTHS, Agent
from deploy.serving_http import MAX_BODY_BYTES, AgentCalls, AgentHttp, Answer, Asked, Evaluated, Identity
from deploy.serving_metrics import ServeMetrics
from deploy.serving_positions import MAX_POSITIONS
from tests.deploy.served_runs import make_run, offer_best, save_checkpoint
from zero.games.game import Game
from zero.games.registry import make_game

Ask = Callable[..., tuple[int, Any]]
GAMES = ("tic_tac_toe", "connect_four", "triangle")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], AgentHttp]:
    """Makes an agent with fresh weights, once per game."""
    made: dict[str, AgentHttp] = {}

    def serve(name: str) -> AgentHttp:
        if name not in made:
            made[name] = make_http(make_run(tmp_path_factory.mktemp("runs") / name, name))
        return made[name]

    return serve


def make_http(folder: RunFolder) -> AgentHttp:
    config = folder.config()
    game = make_game(config.game.name, config.game.options)
    agent = Agent(config, game, read_weights(folder, config, WhichWeights.LATEST))

    async def decide(asked: Asked) -> Answer:
        return Answer(agent.decide(asked.states, asked.seeds), agent.version)

    async def evaluate(encoded: np.ndarray) -> Evaluated:
        return Evaluated(*agent.evaluate(encoded), agent.version)

    identity = Identity("a run", "id", config.name, "latest", config.game)
    return AgentHttp(game, identity, AgentCalls(decide, evaluate, lambda: agent.version), ServeMetrics())


def ask(http: AgentHttp, path: str, sent: object) -> tuple[int, Any]:
    """Status and body of the answer to a POST."""
    reply = asyncio.run(http.answer("POST", path, json.dumps(sent).encode()))
    return reply.status, json.loads(reply.body)


def random_moves(game: Game, count: int, seed: int) -> list[int]:
    """The first moves of a random game."""
    rng, moves = np.random.default_rng(seed), list[int]()
    states = game.initial(game.draw_chance(np.random.default_rng(seed), 1))
    chance = np.random.default_rng(seed)
    game.draw_chance(chance, 1)
    for _ in range(count):
        legal = np.flatnonzero(game.legal_action_mask(states)[0])
        moves.append(int(rng.choice(legal)))
        states = game.step(states, np.array(moves[-1:]), game.draw_chance(chance, 1)).states
    return moves


@pytest.mark.parametrize("name", GAMES)
def test_decisions_are_legal_whatever_the_batch(served: Callable[[str], AgentHttp], name: str) -> None:
    """Each action is legal and the policy sums to 1 over the legal ones, alike asked alone and among others."""
    game, http = make_game(name, {}), served(name)
    positions = [{"moves": random_moves(game, row % 4, row), "seed": row} for row in range(WIDTHS[-1] + 3)]
    status, answer = ask(http, "/act", {"positions": positions})
    assert status == 200
    assert len(answer["decisions"]) == len(positions)
    for position, decision in zip(positions, answer["decisions"], strict=True):
        shown = ask(http, "/game", position)[1]
        assert decision["legal_actions"] == shown["legal_actions"]
        assert decision["action"] in decision["legal_actions"]
        assert len(decision["policy"]) == len(decision["legal_actions"])
        assert sum(decision["policy"]) == pytest.approx(1, abs=1e-5)
        assert np.isfinite(decision["value"])
    for row in (0, 3, len(positions) - 1):
        alone = ask(http, "/act", positions[row])[1]["decisions"][0]
        assert alone["action"] == answer["decisions"][row]["action"]
        assert alone["policy"] == pytest.approx(answer["decisions"][row]["policy"], abs=1e-2)


@pytest.mark.parametrize("name", GAMES)
def test_an_observation_is_as_good_as_the_moves(served: Callable[[str], AgentHttp], name: str) -> None:
    """A position that is sent as an observation gets the same decision as the moves that lead to it."""
    game, http = make_game(name, {}), served(name)
    chance = np.random.default_rng(5)
    states = game.initial(game.draw_chance(chance, 1))
    moves = random_moves(game, 3, 5)
    for move in moves:
        states = game.step(states, np.array([move]), game.draw_chance(chance, 1)).states
    observation = game.observation(states)[0].tolist()
    by_moves = ask(http, "/act", {"moves": moves, "seed": 5})
    assert ask(http, "/act", {"observation": observation, "seed": 5}) == by_moves
    assert by_moves[0] == 200


def test_a_game_has_the_chance_and_the_score_of_an_evaluation(served: Callable[[str], AgentHttp]) -> None:
    """The moves of an evaluated game, sent with its seed, end it with the score that the evaluation gave."""
    game, seed = make_game("triangle", {}), 11
    moves: list[int] = []

    class Recorder(RandomPlayer):
        def choose(self, states: Any, seeds: Any) -> Any:
            actions = super().choose(states, seeds)
            moves.append(int(actions[0]))
            return actions

    player = Recorder(game)
    [score] = play_games(game, player, player, Schedule(1, seed, 2000))
    http = served("triangle")
    status, shown = ask(http, "/game", {"moves": moves, "seed": seed})
    assert status == 200
    assert shown["over"]
    assert shown["legal_actions"] == []
    assert shown["scores"] == [pytest.approx(score)]
    assert shown["stats"]["pieces_placed"] == len(moves)
    assert not ask(http, "/game", {"moves": moves[:-1], "seed": seed})[1]["over"]


def test_a_game_for_two_is_zero_sum(served: Callable[[str], AgentHttp]) -> None:
    """Who wins gains what the other loses, and the picture is the game's own."""
    status, shown = ask(served("tic_tac_toe"), "/game", {"moves": [0, 3, 1, 4, 2], "seed": 0})
    game = make_game("tic_tac_toe", {})
    states = game.decode(np.array([[1, 1, 1, 2, 2, 0, 0, 0, 0]], np.uint8))
    assert (status, shown["over"], shown["scores"]) == (200, True, [1, -1])
    assert shown["svg"] == game.render_svg(states)


REFUSED: dict[str, tuple[object, str]] = {
    "neither": ({}, "give either an observation or moves"),
    "both": ({"moves": [], "observation": [0] * 9}, "give either an observation or moves"),
    "no list": ([], "the body must be a JSON object"),
    "no positions": ({"positions": []}, "positions: List should have at least 1 item"),
    "too many": ({"positions": [{"moves": []}] * (MAX_POSITIONS + 1)}, f"at most {MAX_POSITIONS} items"),
    "unknown field": ({"move": [1]}, "move: Extra inputs are not permitted"),
    "moves that are no numbers": ({"moves": ["a"]}, "moves[0]: Input should be a valid integer"),
    "negative seed": ({"moves": [], "seed": -1}, "seed: Input should be greater than or equal to 0"),
    "no such action": ({"moves": [4, 9]}, "positions[0].moves[1]: action 9: it is not legal; actions are 0 to 8"),
    "huge action": ({"moves": [2**70]}, "moves[0]"),
    "taken cell": ({"positions": [{"moves": [1]}, {"moves": [4, 4]}]}, "positions[1].moves[1]: action 4: it is not"),
    "after the end": ({"moves": [0, 3, 1, 4, 2, 5]}, "positions[0].moves[5]: action 5: the game is over before it"),
    "finished": ({"moves": [0, 3, 1, 4, 2]}, "positions[0]: there is nothing to play: the game is over"),
    "wrong shape": ({"observation": [0] * 8}, "positions[0].observation: has shape [8], must have [9]"),
    "ragged": ({"observation": [[0], [0, 1]]}, "positions[0].observation: must have shape [9]"),
    "text": ({"observation": ["x"] * 9}, "positions[0].observation: must hold numbers alone"),
    "fraction": ({"observation": [0.5] + [0] * 8}, "holds numbers that are no uint8"),
    "wrapping": ({"observation": [256] + [0] * 8}, "holds numbers that are no uint8"),
    "not a number": ({"observation": [float("nan")] + [0] * 8}, "holds numbers that are no uint8"),
    "beyond all types": ({"observation": [2**70] + [0] * 8}, "must hold numbers alone"),
    "no position": ({"observation": [3] + [0] * 8}, "positions[0].observation: tic_tac_toe"),
}


@pytest.mark.parametrize(("sent", "expected"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_in_one_line(served: Callable[[str], AgentHttp], sent: object, expected: str) -> None:
    """Status 400 and one line that names the place and what is allowed."""
    status, answer = ask(served("tic_tac_toe"), "/act", sent)
    assert status == 400
    assert list(answer) == ["error"]
    assert expected in answer["error"]
    assert "\n" not in answer["error"]
    assert len(answer["error"]) < 300


def test_other_requests_are_refused(served: Callable[[str], AgentHttp]) -> None:
    """No JSON, too much of it, a wrong method and an unknown path each have their status."""
    http = served("tic_tac_toe")

    def status(method: str, path: str, body: bytes = b"") -> int:
        return asyncio.run(http.answer(method, path, body)).status

    assert status("POST", "/act", b"{") == 400
    assert status("POST", "/act", b"[" * 100_000) == 400
    assert status("POST", "/act", b"\xff") == 400
    assert status("POST", "/act", b" " * (MAX_BODY_BYTES + 1)) == 413
    assert status("GET", "/act") == 405
    assert status("GET", "/nowhere") == 404


def test_metrics_count_what_was_answered(tmp_path: Path) -> None:
    """Requests by route and kind of status, positions, and the training step that decides."""
    http = make_http(make_run(tmp_path / "run", "tic_tac_toe", training_step=21))
    ask(http, "/act", {"positions": [{"moves": []}, {"moves": [4]}]})
    ask(http, "/act", {})
    asyncio.run(http.answer("GET", "/made-up", b""))
    page = asyncio.run(http.answer("GET", "/metrics", b"")).body.decode()
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert values["zero_serve_requests_total", "/act", "2xx"] == 1
    assert values["zero_serve_requests_total", "/act", "4xx"] == 1
    assert values["zero_serve_requests_total", "4xx", "other"] == 1
    assert values["zero_serve_positions_total",] == 2
    assert values["zero_serve_training_step",] == 21
    assert values["zero_serve_act_seconds_count",] == 1


def test_the_watch_gives_weights_once(tmp_path: Path) -> None:
    """The first time and whenever there are others; those that are not better are no best ones."""
    folder = make_run(tmp_path / "run", "tic_tac_toe", training_step=1)
    config = folder.config()
    latest = WeightsWatch(folder, config, WhichWeights.LATEST)
    best = WeightsWatch(folder, config, WhichWeights.BEST)

    def steps(watch: WeightsWatch) -> list[int]:
        found = [watch.poll(), watch.poll()]
        return [weights.training_step for weights in found if weights is not None]

    with pytest.raises(DeployError, match="no best weights"):
        best.poll()
    assert best.poll() is None
    offer_best(folder, 1, 0.5)
    assert (steps(latest), steps(best)) == ([1], [1])
    save_checkpoint(folder, 2)
    offer_best(folder, 2, 0.25)
    assert (steps(latest), steps(best)) == ([2], [])
    offer_best(folder, 3, 0.75)
    assert (steps(latest), steps(best)) == ([], [3])


def test_damaged_weights_are_refused_once(tmp_path: Path) -> None:
    """An error that names the file; then nothing until there are others."""
    folder = make_run(tmp_path / "run", "tic_tac_toe")
    offer_best(folder, 1, 0.5)
    watch = WeightsWatch(folder, folder.config(), WhichWeights.BEST)
    [weights] = folder.best.glob("*.safetensors")
    weights.write_bytes(b"damaged")
    with pytest.raises(DeployError, match="does not match its sha256"):
        watch.poll()
    assert watch.poll() is None
    shutil.rmtree(folder.best)
    offer_best(folder, 2, 0.75)
    assert watch.poll() is not None
