"""The engine of the triangle puzzle against the rules, told a second time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.zero.games.naive_triangle import NaiveTriangle
from zero.games.random_play import random_legal_actions
from zero.games.shape_stream import ShapeStream
from zero.games.triangle import Triangle, TriangleOptions


def compare(game: Triangle, states: np.ndarray, naive: list[NaiveTriangle], encoded_rows: slice) -> None:
    """Everything that can be seen of a position agrees with the naive games; what the network sees, of some rows."""
    observations = game.observation(states)
    bits = np.unpackbits(observations[:, : -game.options.num_slots], axis=1, bitorder="little")
    mask = game.legal_action_mask(states)
    encoded = game.encode(observations)
    stats = game.stats(states)
    for row, one in enumerate(naive):
        occupied = {divmod(int(cell), game.options.cols) for cell in np.flatnonzero(bits[row])}
        assert occupied == one.occupied
        assert observations[row, -game.options.num_slots :].tolist() == one.shape_ids()
        assert np.flatnonzero(mask[row]).tolist() == ([] if one.over else one.legal())
        assert bool(game.terminated(states)[row]) == one.over
        assert game.num_moves(states)[row] == one.moves
        assert stats["pieces_placed"][row] == one.pieces
        assert stats["triangles_cleared"][row] == one.cleared
    for row in range(len(naive))[encoded_rows]:
        np.testing.assert_allclose(encoded[row], naive[row].encode(), rtol=1e-6, atol=1e-7)


def play_and_compare(
    options: TriangleOptions, seeds: list[int], max_moves: int, illegal: float = 0.0, encoded_games: int = 4
) -> int:
    """Play greedily for half of the games, at random for the others, and compare at every move; cells cleared."""
    game = Triangle(options)
    rng = np.random.default_rng(seeds[0])
    streams = [ShapeStream(seed) for seed in seeds]
    hands = np.stack([stream.deal(options.num_slots)[0] for stream in streams])
    states = game.initial(hands)
    naive = [NaiveTriangle(options, hand.tolist()) for hand in hands]
    cells = options.rows * options.cols
    for move in range(max_moves):
        first = move * encoded_games % len(seeds)  # the naive encoding takes a hundredth of a second
        compare(game, states, naive, slice(first, first + encoded_games))
        if all(one.over for one in naive):
            break
        actions = random_legal_actions(game.legal_action_mask(states), rng.random(len(seeds)))
        planes = game.encode(game.observation(states))[:, : 6 * cells + 4 * options.num_slots * cells]
        clears = planes.reshape(len(seeds), -1, cells)[:, 7::4].reshape(len(seeds), -1)
        greedy = np.flatnonzero(clears.max(axis=1) * (np.arange(len(seeds)) % 2))
        actions[greedy] = clears[greedy].argmax(axis=1)
        wrong = rng.random(len(seeds)) < illegal
        actions[wrong] = rng.integers(-3, game.num_actions + 3, wrong.sum())
        applied = game.apply(states, actions)
        needed = applied.chance_pending
        hands = np.full((len(seeds), options.num_slots), -1)
        hands[needed] = [streams[row].deal(options.num_slots)[0] for row in np.flatnonzero(needed)] or hands[needed]
        result = game.step(states, actions, hands)
        rewards = [
            one.step(int(action), hand.tolist()) for one, action, hand in zip(naive, actions, hands, strict=True)
        ]
        np.testing.assert_allclose(result.rewards, rewards, rtol=1e-6)
        states = result.states
    return sum(one.cleared for one in naive)


def test_agrees_with_the_naive_rules_on_the_default_board():
    """Over whole games, dealt by the reference stream, every position and reward is that of the naive rules."""
    assert play_and_compare(TriangleOptions(), list(range(16)), 60) > 80


@pytest.mark.slow
def test_agrees_with_the_naive_rules_over_many_games():
    """The same, over hundreds of games, some with illegal actions."""
    assert play_and_compare(TriangleOptions(), list(range(100, 400)), 200) > 1000
    play_and_compare(TriangleOptions(), list(range(400, 500)), 200, illegal=0.02)


def test_other_options_agree_with_the_naive_rules():
    """The published Python variant: a natural end costs, illegal actions are ignored, lines are 3 or longer."""
    options = TriangleOptions(
        penalty_on_natural_end=-10.0,
        illegal_action_mode="ignore",
        min_line_length=3,
        reward_placed=0.25,
        reward_cleared=2.0,
        reward_alive=0.125,
    )
    play_and_compare(options, list(range(50, 56)), 60, illegal=0.1)


@st.composite
def boards(draw: st.DrawFn) -> TriangleOptions:
    rows, cols = draw(st.integers(1, 7)), draw(st.integers(1, 12))
    ends = st.tuples(st.integers(0, cols), st.integers(0, cols)).map(lambda pair: (min(pair), max(pair)))
    return TriangleOptions(
        rows=rows,
        cols=cols,
        playable_ranges=tuple(draw(st.lists(ends, min_size=rows, max_size=rows))),
        num_slots=draw(st.integers(1, 4)),
        min_line_length=draw(st.integers(1, 4)),
        illegal_action_mode=draw(st.sampled_from(["end", "ignore"])),
    )


@settings(max_examples=40, deadline=None)
@given(options=boards(), seed=st.integers(0, 2**31))
def test_any_board_agrees_with_the_naive_rules(options: TriangleOptions, seed: int):
    """Whatever is playable, also with holes, empty rows and lines of one cell."""
    play_and_compare(options, [seed, seed + 1], 8, illegal=0.05)


@pytest.mark.parametrize(("rows", "cols"), [(1, 130), (3, 64), (4, 70), (9, 22), (64, 2)])
def test_boards_of_several_words_agree_with_the_naive_rules(rows: int, cols: int):
    """Shapes that cross from one 64-bit word to another, and words without a playable cell."""
    options = TriangleOptions(rows=rows, cols=cols, playable_ranges=((0, cols),) * rows, num_slots=2)
    play_and_compare(options, [7, 8], 6)


def test_random_play_scores_what_is_known_of_it():
    """Mean score 1.9 to 2.5 and about 20 moves, as the published game; nothing of it can be far off."""
    game, rng, games = Triangle(), np.random.default_rng(11), 4000
    states, scores = game.initial(game.draw_chance(rng, games)), np.zeros(games)
    while not game.terminated(states).all():
        actions = random_legal_actions(game.legal_action_mask(states), rng.random(games))
        result = game.step(states, actions, game.draw_chance(rng, games))
        states, scores = result.states, scores + result.rewards
    moves = game.num_moves(states)
    assert 1.9 < scores.mean() < 2.5
    assert 0.6 < np.median(scores) < 0.85
    assert 19 < moves.mean() < 20.5
    assert moves.min() >= 6


def test_greedy_play_is_better_than_random():
    """Taking what pays most at once scores more and lasts longer than random play does."""
    game, rng, games = Triangle(), np.random.default_rng(12), 300
    states, scores = game.initial(game.draw_chance(rng, games)), np.zeros(games)
    while not game.terminated(states).all():
        mask = game.legal_action_mask(states)
        rows, actions = np.nonzero(mask)
        paid = np.full(mask.shape, -np.inf)
        paid[rows, actions] = game.apply(states[rows], actions).rewards + 1e-6 * rng.random(len(rows))
        result = game.step(states, paid.argmax(axis=1), game.draw_chance(rng, games))
        states, scores = result.states, scores + result.rewards
    assert game.num_moves(states).mean() > 21
    assert scores.mean() > 4
