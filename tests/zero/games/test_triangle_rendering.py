"""Pictures of positions, as text against a drawing, as SVG against its own parts."""

from collections import Counter
from xml.etree import ElementTree

import numpy as np

from zero.games.game import Game
from zero.games.tic_tac_toe import TicTacToe
from zero.games.triangle import Triangle


def test_text():
    """Every playable cell in its column, occupied ones by where they point; then the shapes."""
    game = Triangle()
    states = game.position([(0, 3), (0, 4), (7, 11)], [28, None, 14])
    text = game.render_ascii(states)
    assert text.splitlines()[:2] == ["   AV.'.'.'.", "  .'.'.'.'.'."]
    assert text.splitlines()[7] == "   '.'.'.'.V"
    assert text.splitlines()[8:] == ["0: VAV", "    V", "1: -", "2: A A", "   VAV"]


def test_text_of_a_finished_game_says_why():
    """The last line is the reason."""
    game = Triangle()
    states = game.apply(game.position([], [0, 0, 0]), np.array([0])).states
    assert game.render_ascii(states).splitlines()[-1] == "illegal action"
    assert "illegal action" in game.render_svg(states)


def test_svg_draws_every_triangle_once():
    """96 triangles that make a hexagon, the occupied ones filled, and a group per shape with its triangles."""
    game = Triangle()
    batch = np.concatenate([game.initial(np.array([[0, 0, 0]])), game.position([(0, 3), (0, 4)], [28, None, 14])])
    root = ElementTree.fromstring(game.render_svg(batch, 1))
    groups = list(root.iter("{http://www.w3.org/2000/svg}g"))
    assert [group.get("class") for group in groups] == ["board", "slot", "slot"]
    polygons = [list(group) for group in groups]
    assert [len(found) for found in polygons] == [96, 4, 5]
    fills = Counter(polygon.get("fill") for polygon in polygons[0])
    assert sorted(fills.values()) == [2, 94]
    corners = Counter(corner for polygon in polygons[0] for corner in polygon.get("points").split())
    # A hexagon of side 4 has 61 lattice points: 37 inside, in six triangles each, 6 corners in two, 18 others in three.
    assert Counter(corners.values()) == {6: 37, 3: 18, 2: 6}
    width, height = (float(number) for number in root.get("viewBox").split()[2:])
    points = [pair.split(",") for found in polygons for polygon in found for pair in polygon.get("points").split()]
    assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in points)


def test_svg_can_be_played_on():
    """The action is the number of the slot's piece plus that of the target, and the piece covers what it says."""
    game = Triangle()
    states = game.position([], [28, None, 14])
    root = ElementTree.fromstring(game.render_svg(states))
    targets = {int(polygon.get("data-target")) for polygon in root[0]}
    pieces = {int(group.get("data-piece")): group.get("data-covers") for group in root[1:]}
    legal = np.flatnonzero(game.legal_action_mask(states)[0])
    piece, covers = list(pieces.items())[1]
    target = next(action - piece for action in legal if action - piece in targets)
    after = game.apply(states, np.array([piece + target])).states
    bits = np.unpackbits(game.observation(after)[0, :-3], bitorder="little")
    assert np.flatnonzero(bits).tolist() == [target + int(difference) for difference in covers.split()]
    assert all(any(action - number in targets for number in pieces) for action in legal)


def test_svg_of_any_game_is_its_text():
    """A game that draws nothing still gives a document with its rows."""
    game = TicTacToe()
    root = ElementTree.fromstring(Game.render_svg(game, game.initial(np.zeros((1, 0), np.int64))))
    assert [element.text for element in root] == ["...", "...", "..."]
