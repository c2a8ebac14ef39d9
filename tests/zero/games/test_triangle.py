"""What the puzzle's positions promise beside the rules: chance, ends, observations, masks for search, bad input."""

import pickle

import numpy as np
import pytest

from zero.games.game import GameError
from zero.games.triangle import Triangle, TriangleOptions
from zero.games.triangle_board import HEXAGON, SHAPE_OF_TEMPLATE, find_lines, live_cells

UP, DOWN = 0, 4
"""Templates of the single triangles."""

NO_OUTCOME = np.zeros((1, 3), np.int64)


def at(slot: int, row: int, column: int) -> np.ndarray:
    return np.array([slot * 120 + row * 15 + column])


def test_chance_waits_for_resolve():
    """The move that empties the hand pays for placing alone; the deal then pays for living, and was not foreseen."""
    game = Triangle()
    states = game.position([], [None, UP, None])
    applied = game.apply(states, at(1, 0, 3))
    assert applied.chance_pending.tolist() == [True]
    assert applied.terminated.tolist() == [False]
    assert applied.rewards[0] == np.float32(0.01)
    assert not game.legal_action_mask(applied.states).any()
    waiting = game.apply(applied.states, at(0, 0, 5))
    assert np.array_equal(waiting.states, applied.states)
    assert waiting.rewards[0] == 0
    dealt = game.resolve(applied.states, np.array([[1, 14, 30]]))
    assert dealt.rewards[0] == np.float32(0.005)
    assert game.observation(dealt.states)[0, -3:].tolist() == [SHAPE_OF_TEMPLATE[index] for index in (1, 14, 30)]


def test_the_deal_can_end_the_game():
    """With one free cell that points up, a deal of shapes that point down is the end, and pays nothing by default."""
    occupied = [cell for cell in live_cells(HEXAGON) if cell not in ((3, 0), (3, 1), (3, 2), (7, 4))]
    for penalty in (0.0, -10.0):
        game = Triangle(TriangleOptions(penalty_on_natural_end=penalty))
        applied = game.apply(game.position(occupied, [UP, None, None]), at(0, 3, 0))
        assert applied.chance_pending.all()
        dead, alive = (game.resolve(applied.states, np.array([hand])) for hand in ([14, 14, 14], [14, 14, DOWN]))
        assert (dead.terminated[0], alive.terminated[0]) == (True, False)
        assert (dead.rewards[0], alive.rewards[0]) == (np.float32(penalty), np.float32(0.005))
        assert game.end_reason(dead.states) == "no shape fits"
        assert game.end_reason(alive.states) == ""


def test_crossings_count_once():
    """One triangle that completes a row and a falling line empties their union."""
    game = Triangle()
    row, falling = (set(lines[0]) for lines in find_lines(HEXAGON, 2)[:2])
    assert row & falling == {(0, 3)}
    after = game.step(game.position((row | falling) - {(0, 3)}, [UP, DOWN, None]), at(0, 0, 3), NO_OUTCOME)
    assert game.stats(after.states)["triangles_cleared"].tolist() == [9 + 15 - 1]
    assert after.rewards[0] == np.float32(0.01 + 0.5 * 23 + 0.005)
    assert not game.observation(after.states)[0, :15].any()


def test_lines_are_cleared_before_the_game_is_judged():
    """The last free cell of a full board frees its own lines, and no others, and so the game goes on."""
    game = Triangle()
    states = game.position(set(live_cells(HEXAGON)) - {(0, 3)}, [UP, DOWN, None])
    after = game.step(states, at(0, 0, 3), NO_OUTCOME)
    through = {cell for lines in find_lines(HEXAGON, 2) for line in lines if (0, 3) in line for cell in line}
    assert not after.terminated[0]
    assert np.bitwise_count(game.observation(after.states)[0, :15]).sum() == 96 - len(through)


def test_an_illegal_action_ends_the_game():
    """It pays -10, counts no move and leaves board and slots; the finished game then stays as it is."""
    game = Triangle()
    states = game.position([(0, 3)], [UP, None, None])
    for action in (at(0, 0, 3), at(1, 0, 5), at(0, 0, 0), at(0, 0, 4), np.array([-1]), np.array([360])):
        after = game.step(states, action, NO_OUTCOME)
        assert (after.terminated[0], after.rewards[0]) == (True, -10)
        assert game.num_moves(after.states)[0] == 0
        assert game.end_reason(after.states) == "illegal action"
        assert np.array_equal(game.observation(after.states), game.observation(states))
        again = game.step(after.states, at(0, 0, 5), NO_OUTCOME)
        assert np.array_equal(again.states, after.states)
        assert again.rewards[0] == 0


def test_search_leaves_out_what_only_repeats():
    """Of slots with the same shape, also from twin templates, only the first is searched."""
    game = Triangle()
    states = game.position([(3, 3)], [2, 3, 7])
    legal, searched = (mask(states).reshape(3, 120) for mask in (game.legal_action_mask, game.search_action_mask))
    assert np.array_equal(legal[0], legal[1])
    assert np.array_equal(searched[0], legal[0])
    assert not searched[1].any()
    assert np.array_equal(searched[2], legal[2])


def test_every_template_is_equally_likely():
    """Uniforms are cut into 31 equal parts, the ends included, slot by slot."""
    game = Triangle()
    grid = (np.arange(31 * 64) + 0.5) / (31 * 64)
    outcomes = game.chance_from_uniforms(np.stack([grid, grid[::-1], grid], axis=1))
    assert np.bincount(outcomes[:, 0], minlength=31).tolist() == [64] * 31
    assert np.array_equal(outcomes[:, 1], outcomes[::-1, 0])
    edges = game.chance_from_uniforms(np.array([[0.0, np.nextafter(1.0, 0.0), 1 / 31]]))
    assert edges.tolist() == [[0, 30, 1]]


def test_an_observation_is_bits_and_shapes():
    """18 bytes by default: the cell (r, c) is bit 15 r + c from the lowest, then a shape per slot, 255 for none."""
    game = Triangle()
    observation = game.observation(game.position([(0, 3), (7, 11)], [4, None, 30]))[0]
    assert observation.shape == game.observation_spec.shape == (18,)
    number = int.from_bytes(observation[:15].tobytes(), "little")
    assert number == 1 << 3 | 1 << 7 * 15 + 11
    assert observation[15:].tolist() == [SHAPE_OF_TEMPLATE[4], 255, SHAPE_OF_TEMPLATE[30]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda game: game.apply(np.zeros((2, 4), np.uint64), np.zeros(2, np.int64)), "states must have shape"),
        (lambda game: game.apply(np.zeros((2, 5), np.uint64), np.zeros(3, np.int64)), "actions are for 3"),
        (lambda game: game.legal_action_mask(np.zeros((2, 5))), "states must be uint64, got float64"),
        (lambda game: game.initial(np.array([[0, 1, 31]])), r"templates 0 to 30, got \[0, 1, 31\]"),
        (lambda game: game.initial(np.array([[0, -1, 3]])), "templates 0 to 30"),
        (lambda game: game.decode(np.array([[0] * 15 + [0, 23, 0]], np.uint8)), "observation 0 is no position"),
        (lambda game: game.encode(np.array([[1] + [0] * 14 + [0, 22, 0]], np.uint8)), "observation 0 is no position"),
        (lambda game: game.position([(0, 0)], [0, 0, 0]), r"cell \(0, 0\) is not playable"),
        (lambda game: game.position([], [0, 0]), "3 slots, got 2"),
        (lambda game: game.position([], [0, 31, 0]), "no template 31"),
    ],
)
def test_impossible_input_is_refused(call, words: str):
    """Compiled code reads without bounds checks, so nothing impossible reaches it."""
    with pytest.raises(GameError, match=words):
        call(Triangle())


def test_layouts_do_not_matter():
    """Read-only, strided and big-endian arrays give what plain ones do."""
    game = Triangle()
    states = np.concatenate([game.initial(np.array([[0, 5, 9]])), game.initial(np.array([[1, 2, 3]]))])
    strided = np.repeat(states, 2, axis=1)[:, ::2]
    frozen = np.frombuffer(states.tobytes(), np.uint64).reshape(states.shape)
    for other in (strided, frozen, states.astype(">u8")):
        assert np.array_equal(game.legal_action_mask(other), game.legal_action_mask(states))
    observations = np.frombuffer(game.observation(states).tobytes(), np.uint8).reshape(2, 18)
    assert np.array_equal(game.encode(observations), game.encode(game.observation(states)))


def test_a_game_travels_between_processes():
    """A pickled copy plays the same."""
    game = Triangle(TriangleOptions(num_slots=2))
    copy = pickle.loads(pickle.dumps(game))
    hands = np.array([[3, 18], [29, 0]])
    assert np.array_equal(copy.legal_action_mask(copy.initial(hands)), game.legal_action_mask(game.initial(hands)))


def test_lines_are_the_rules_own():
    """Every line that can be cleared, as a mask over the planes."""
    lines = {frozenset(map(tuple, np.argwhere(line).tolist())) for line in Triangle().lines}
    assert lines == {frozenset(line) for lines in find_lines(HEXAGON, 2) for line in lines}
