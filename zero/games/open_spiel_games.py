"""Games of OpenSpiel, by the name that `pyspiel.load_game` takes: an optional adapter over its Python bindings."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyspiel
from numpy.typing import NDArray
from pydantic import Field

from zero.games.arrays import as_actions, as_outcomes, as_rows
from zero.games.game import Game, GameError, States, Transition
from zero.games.options import GameOptions, parse_options
from zero.search.randomness import uniform
from zero.trajectories import ColumnSpec

CACHED_POSITIONS = 2**16
"""Positions that a game keeps as OpenSpiel's own objects; others are played again from their beginning."""

CHECKED_GAMES = 16
"""Random games in which the turns of a game for two are watched before it is played at all."""

_WORD_BYTES = 8
_OUTCOMES = 2**53
_PLANE_AXES = 3


class OpenSpielOptions(GameOptions):
    """What is added to a game of OpenSpiel; its own parameters stand in its name, as in "hex(board_size=5)".

    Attributes:
        max_history: a game is over, without further reward, once that many actions and chance outcomes lie behind it;
            None for as many as the game allows. Positions are as long as this, so very long games should be cut.
        max_legal_actions: the most legal actions of any position; None for all actions, which costs search memory.
    """

    max_history: int | None = Field(default=None, ge=1)
    max_legal_actions: int | None = Field(default=None, ge=1)


class _Position(NamedTuple):
    """OpenSpiel's state, how many actions and outcomes led there, whose turn it is or will be, and whether it is over.

    The state is never changed: its children are.
    """

    state: Any
    length: int
    to_play: int
    over: bool

    @property
    def pending(self) -> bool:
        """Whether chance is to be resolved."""
        return not self.over and self.state.is_chance_node()


class OpenSpielGame(Game):
    """A game of OpenSpiel: one player, or two with opposite interests in turns; chance, but no hidden information.

    A position is the history that led to it: actions and chance outcomes + 1, a byte or two each, zeros behind them;
    the observation is the same. OpenSpiel's objects for recent positions are kept, so that playing on is one step.
    An outcome is one number, from which all chance events of a step are drawn. Rewards are what OpenSpiel's returns
    grow by. Planes are OpenSpiel's observation tensor for the player to move. It does not always say whose turn it is,
    so in games for two a feature does: 1 for player 0. Where nobody moves, all are zeros.

    Args:
        spiel_name: as `pyspiel.load_game` takes it.
        options: what is added.

    Raises:
        GameError: no such game, or one of another kind.
    """

    name = "open_spiel"

    def __init__(self, spiel_name: str, options: OpenSpielOptions) -> None:
        self._spiel_name = spiel_name
        self._game: Any = _load(spiel_name)
        _refuse_other_kinds(spiel_name, self._game)
        self._is_cut = options.max_history is not None
        self._length: int = options.max_history or self._game.max_history_length()
        self.num_actions = self._game.num_distinct_actions()
        self.max_legal_actions = min(options.max_legal_actions or self.num_actions, self.num_actions)
        self.num_players = self._game.num_players()
        chance_mode = self._game.get_type().chance_mode
        self.chance_size = 0 if chance_mode == pyspiel.GameType.ChanceMode.DETERMINISTIC else 1
        most = max(self.num_actions, self._game.max_chance_outcomes())
        self.observation_spec = ColumnSpec("observation", "uint8" if most < 2**8 else "uint16", (self._length,))
        self._dtype = np.dtype(self.observation_spec.dtype)
        self.state_size = -(-self._length * self._dtype.itemsize // _WORD_BYTES)
        if self.num_players == 2:
            self._refuse_second_moves()
        shape = tuple(self._game.observation_tensor_shape())
        self.planes_shape = _planes_shape(shape)
        self.num_features = self.num_players - 1
        self._positions: dict[bytes, _Position] = {}

    def initial(self, outcomes: NDArray[np.int64]) -> States:
        """Start positions; chance that comes first is drawn from outcomes [B, chance_size]."""
        outcomes = as_rows("outcomes", outcomes, np.int64, (self.chance_size,))
        states = np.zeros((outcomes.shape[0], self.state_size), np.uint64)
        return self.resolve(states, outcomes).states

    def legal_action_mask(self, states: States) -> NDArray[np.bool_]:
        """bool [B, A]; none where the game is over or chance is pending."""
        mask = np.zeros((len(states), self.num_actions), np.bool_)
        for row, position in enumerate(self._each(states)):
            if not (position.over or position.pending):
                mask[row, position.state.legal_actions()] = True
        return mask

    def apply(self, states: States, actions: NDArray[np.int64]) -> Transition:
        """Play actions [B]; positions that are over or wait for chance stay, with reward 0.

        Raises:
            GameError: an action that is not legal, in a game that is not over.
        """
        actions = as_actions(actions, len(states))
        after, rewards = self._checked(states).copy(), np.zeros(len(states), np.float32)
        codes = self._codes(after)
        for row, position in enumerate(self._each(states)):
            if position.over or position.pending:
                continue
            action, player = int(actions[row]), position.to_play
            if action not in position.state.legal_actions():
                raise GameError(f"{self._spiel_name}: action {action} is not legal")
            child = position.state.child(action)
            codes[row, position.length] = action + 1
            rewards[row] = child.player_return(player) - position.state.player_return(player)
            self._keep(after[row], self._position(child, position.length + 1, self._other(player)))
        return self._transition(after, rewards)

    def resolve(self, states: States, outcomes: NDArray[np.int64]) -> Transition:
        """Draw what is left to chance from outcomes [B, chance_size], by OpenSpiel's probabilities."""
        outcomes = as_outcomes(outcomes, len(states), self.chance_size)
        after, rewards = self._checked(states).copy(), np.zeros(len(states), np.float32)
        codes = self._codes(after)
        for row, position in enumerate(self._each(states)):
            if not position.pending:
                continue
            drawn = list(_draw_chance(position.state, np.uint64(outcomes[row, 0]), self._length - position.length))
            codes[row, position.length : position.length + len(drawn)] = np.array(drawn) + 1
            state = position.state.clone()
            for outcome in drawn:
                state.apply_action(outcome)
            mover = self._other(position.to_play)
            rewards[row] = state.player_return(mover) - position.state.player_return(mover)
            self._keep(after[row], self._position(state, position.length + len(drawn), position.to_play))
        return self._transition(after, rewards)

    def chance_from_uniforms(self, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """The uniforms as integers below 2^53."""
        return (as_rows("uniforms", uniforms, np.float64, (self.chance_size,)) * _OUTCOMES).astype(np.int64)

    def terminated(self, states: States) -> NDArray[np.bool_]:
        """bool [B], the game is over, or as long as it may be."""
        return np.array([position.over for position in self._each(states)], np.bool_)

    def to_play(self, states: States) -> NDArray[np.int8]:
        """int8 [B]; at chance and at the end, the other one than who moved last."""
        return np.array([position.to_play for position in self._each(states)], np.int8)

    def observation(self, states: States) -> NDArray[np.generic]:
        """The history, actions and outcomes + 1, [B, max_history]."""
        return self._codes(self._checked(states)).copy()

    def decode(self, observations: NDArray[np.generic]) -> States:
        """Positions by playing their history.

        Raises:
            GameError: a history that is no game.
        """
        codes = as_rows("observations", observations, self._dtype.type, self.observation_spec.shape)
        states = np.zeros((len(codes), self.state_size), np.uint64)
        self._codes(states)[:] = codes
        for _ in self._each(states):
            pass
        return states

    def encode(self, observations: NDArray[np.generic]) -> NDArray[np.float32]:
        """float32 [B, C * H * W + F], OpenSpiel's observation tensor, then in games for two whether player 0 moves.

        Raises:
            GameError: a history that is no game.
        """
        encoded = np.zeros((len(observations), self.encoded_size), np.float32)
        for row, position in enumerate(self._each(self.decode(observations))):
            if not (position.over or position.pending):
                player_0_moves = [float(position.to_play == 0)] * self.num_features
                encoded[row] = position.state.observation_tensor(position.to_play) + player_0_moves
        return encoded

    def render_ascii(self, states: States, index: int = 0) -> str:
        """OpenSpiel's own text."""
        return str(next(self._each(states[index : index + 1])).state)

    def _each(self, states: States) -> Iterator[_Position]:
        """The positions of a batch."""
        for row in self._checked(states):
            yield self._positions.get(row.tobytes()) or self._replay(row)

    def _replay(self, row: NDArray[np.uint64]) -> _Position:
        """Play a history from the start; it is kept."""
        codes = self._codes(row[None])[0]
        length = int(np.count_nonzero(codes))
        state, player = self._game.new_initial_state(), 0
        for code in codes[:length].tolist():
            if state.is_terminal() or code - 1 not in state.legal_actions():
                raise GameError(f"{self._spiel_name}: {codes.tolist()} is no history of a game")
            if not state.is_chance_node():
                player = self._other(state.current_player())
            state.apply_action(code - 1)
        position = self._position(state, length, player)
        self._keep(row, position)
        return position

    def _position(self, state: Any, length: int, player: int) -> _Position:
        """A position where `player` moves, if chance or the end of the game leaves that open."""
        over = state.is_terminal() or (self._is_cut and length >= self._length)
        if not over and length >= self._length:
            raise GameError(
                f"{self._spiel_name} goes on after {length} actions, its longest history by its own account: "
                "set the option max_history"
            )
        to_play = player if state.is_terminal() or state.is_chance_node() else state.current_player()
        # Chance at the beginning may say who begins.
        if to_play != player and any(past.player >= 0 for past in state.full_history()):
            raise self._second_move(state)
        return _Position(state, length, to_play, over)

    def _refuse_second_moves(self) -> None:
        """Raise GameError if a player moves twice in a row in random games: the check of the contract is too short."""
        rng = np.random.default_rng(0)
        for _ in range(CHECKED_GAMES):
            state, last = self._game.new_initial_state(), None
            for _ in range(self._length):
                if state.is_terminal():
                    break
                if not state.is_chance_node():
                    if state.current_player() == last:
                        raise self._second_move(state)
                    last = state.current_player()
                actions = state.legal_actions()
                state.apply_action(actions[int(rng.integers(len(actions)))])

    def _second_move(self, state: Any) -> GameError:
        before = ", ".join(state.action_to_string(past.player, past.action) for past in state.full_history()[-3:])
        return GameError(
            f"OpenSpiel's {self._spiel_name!r} cannot be played here: a player moves twice in a row, for example after "
            f"{' '.join(before.split())}"
        )

    def _keep(self, row: NDArray[np.uint64], position: _Position) -> None:
        if len(self._positions) >= CACHED_POSITIONS:
            del self._positions[next(iter(self._positions))]
        self._positions[row.tobytes()] = position

    def _other(self, player: int) -> int:
        return self.num_players - 1 - player

    def _transition(self, states: States, rewards: NDArray[np.float32]) -> Transition:
        pending = np.array([position.pending for position in self._each(states)], np.bool_)
        return Transition(states, rewards, self.terminated(states), pending)

    def _codes(self, states: States) -> NDArray[Any]:
        """A view of positions [B, state_size] as their histories [B, max_history]."""
        return states.view(self._dtype)[:, : self._length]

    def _checked(self, states: NDArray[Any]) -> States:
        return as_rows("states", states, np.uint64, (self.state_size,))


def make_game(spiel_name: str, options: Mapping[str, Any]) -> Game:
    """A game of OpenSpiel by its name, with `OpenSpielOptions`.

    Raises:
        GameError: no such game, one of another kind, or an option that is not allowed.
    """
    return OpenSpielGame(spiel_name, parse_options(f"open_spiel:{spiel_name}", OpenSpielOptions, options))


def _load(spiel_name: str) -> Any:
    if spiel_name.partition("(")[0] not in pyspiel.registered_names():
        raise GameError(f"OpenSpiel has no game {spiel_name!r}; pyspiel.registered_names() lists them")
    try:
        return pyspiel.load_game(spiel_name)
    except (RuntimeError, LookupError) as error:  # a SpielError, or what its C++ let through
        raise GameError(f"OpenSpiel refuses {spiel_name!r}: {str(error).splitlines()[0]}") from error


def _refuse_other_kinds(spiel_name: str, game: Any) -> None:
    """Raise GameError for what a search over true positions cannot play."""
    kind, kinds = game.get_type(), pyspiel.GameType
    for holds, reason in (
        (kind.dynamics == kinds.Dynamics.SEQUENTIAL, "its players do not move one after the other"),
        (kind.information == kinds.Information.PERFECT_INFORMATION, "it hides information from its players"),
        (kind.chance_mode != kinds.ChanceMode.SAMPLED_STOCHASTIC, "it keeps its chance to itself"),
        (game.num_players() <= 2, f"it has {game.num_players()} players, and one or two are played"),
        (game.num_players() == 1 or kind.utility == kinds.Utility.ZERO_SUM, "its players' interests are not opposite"),
        (kind.provides_observation_tensor, "it gives no observation tensor"),
    ):
        if not holds:
            raise GameError(f"OpenSpiel's {spiel_name!r} cannot be played here: {reason}")


def _planes_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width of an observation tensor; what has no board is all channels."""
    if len(shape) > _PLANE_AXES or len(shape) == 1:
        return int(np.prod(shape)), 1, 1
    channels, height, width = (1,) * (_PLANE_AXES - len(shape)) + shape
    return channels, height, width


def _draw_chance(state: Any, seed: np.uint64, most: int) -> Iterator[int]:
    """Outcomes of the chance events up to the next decision, or of `most` of them."""
    state = state.clone()
    for event in range(most):
        if not state.is_chance_node():
            return
        outcomes, probabilities = zip(*state.chance_outcomes(), strict=True)
        index = int(np.searchsorted(np.cumsum(probabilities), uniform(seed, event), side="right"))
        outcome = outcomes[min(index, len(outcomes) - 1)]
        yield outcome
        state.apply_action(outcome)
