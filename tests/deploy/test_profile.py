"""`zero profile actor` says where the time of self-play goes."""

import json

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.profile_actor import NETWORK, PHASES, RULES, TREE, Stopwatch

SMALL = [
    "--experiment", "tic_tac_toe", "--set", "self_play.games_per_actor=4", "--set", "search.num_simulations=4"
]  # fmt: skip


def test_inner_phases_rest_the_outer_one() -> None:
    """Time goes to the innermost phase, and to none outside of all."""
    readings = iter([1.0, 3.0, 7.0, 8.0, 20.0, 21.0])
    stopwatch = Stopwatch(lambda: next(readings))
    with stopwatch.phase(TREE), stopwatch.phase(NETWORK):
        pass
    with stopwatch.phase(RULES):
        pass
    assert {name: seconds for name, seconds in stopwatch.seconds.items() if seconds} == {
        TREE: 3.0,
        NETWORK: 4.0,
        RULES: 1.0,
    }


def test_json_tells_shares_and_rates() -> None:
    """Every phase took part of the time, together nearly all of it, and the rates fit each other."""
    # Games of one move end, and are sent, with every move, however few of them a busy machine makes.
    short = [*SMALL, "--set", "self_play.max_moves=1"]
    result = CliRunner().invoke(app, ["profile", "actor", *short, "--seconds", "0.5", "--json"])
    assert result.exit_code == 0, result.output
    profile = json.loads(result.stdout)
    shares = profile["shares"]
    assert set(shares) == set(PHASES)
    assert all(share > 0 for share in shares.values())
    assert 0.8 < sum(shares.values()) <= 1.0
    assert profile["games"] == 4
    assert profile["simulations_per_second"] == pytest.approx(4 * profile["moves_per_second"])
    assert profile["finished_games"] > 0


def test_table_names_every_part() -> None:
    """For people there is a table."""
    result = CliRunner().invoke(app, ["profile", "actor", *SMALL, "--seconds", "0.1"])
    assert result.exit_code == 0, result.output
    for name in (*PHASES, "simulations/s", "moves/s"):
        assert name in result.stdout
