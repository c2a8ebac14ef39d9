"""Reads the positions that people send, as observations or as moves from the start, and refuses what is none."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from zero.config import Seed
from zero.games.game import Game, GameError, States

MAX_POSITIONS = 256
"""Of one request, so that none keeps the others waiting for long."""
MAX_MOVES = 10_000
"""Of one game, for the same reason."""

Action = Annotated[int, Field(ge=0, lt=2**31)]


class RequestError(ValueError):
    """What somebody sent cannot be used; the text is one line that says what was given and is allowed."""


class _Sent(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SentPosition(_Sent):
    """One position: what the network is shown of it, or how it came about.

    Attributes:
        observation: a compact observation, as nested lists of numbers.
        moves: actions from the start; none for the start itself.
        seed: of the chance of the game, as `zero evaluate` draws it, and of the search.
    """

    observation: list[Any] | None = None
    moves: list[Action] | None = Field(default=None, max_length=MAX_MOVES)
    seed: Seed = 0

    @model_validator(mode="after")
    def _is_given_once(self) -> Self:
        if (self.observation is None) == (self.moves is None):
            raise ValueError("give either an observation or moves")
        return self


class _SentPositions(_Sent):
    positions: list[SentPosition] = Field(min_length=1, max_length=MAX_POSITIONS)


class SentGame(_Sent):
    """A game on the page, as a SentPosition has it."""

    moves: list[Action] = Field(max_length=MAX_MOVES)
    seed: Seed


@dataclass(frozen=True)
class Played:
    """B games after some moves.

    Attributes:
        states: uint64 [B, state_size], where no chance is pending.
        scores: float64 [B, num_players], rewards so far; what one of two players gains, the other loses.
    """

    states: States
    scores: NDArray[np.float64]


def read_positions(body: bytes) -> list[SentPosition]:
    """What the body of a request asks about: one SentPosition as JSON, or `{"positions": [...]}`.

    Raises:
        RequestError: it is neither.
    """
    sent = _parse(body)
    try:
        if "positions" in sent:
            return _SentPositions.model_validate(sent).positions
        return [SentPosition.model_validate(sent)]
    except ValidationError as error:
        raise RequestError(_one_line(error)) from None


def read_game(body: bytes) -> SentGame:
    """The game that the body of a request describes.

    Raises:
        RequestError: it describes none.
    """
    try:
        return SentGame.model_validate(_parse(body))
    except ValidationError as error:
        raise RequestError(_one_line(error)) from None


def states_of(game: Game, positions: Sequence[SentPosition]) -> States:
    """The positions [B, state_size] in which somebody is to move.

    Raises:
        RequestError: one is no position of the game, is over or waits for chance, or a move is not legal.
    """
    states = np.zeros((len(positions), game.state_size), np.uint64)
    observed = [row for row, position in enumerate(positions) if position.observation is not None]
    played = [row for row, position in enumerate(positions) if position.observation is None]
    for row in observed:
        observation = _observation(game, positions[row].observation, f"positions[{row}]")
        try:
            states[row] = game.decode(observation[None])[0]
        except GameError as error:
            raise RequestError(f"positions[{row}].observation: {error}") from None
    if played:
        moves = [positions[row].moves or [] for row in played]
        names = [f"positions[{row}]" for row in played]
        states[played] = play(game, [positions[row].seed for row in played], moves, names).states
    can_move = game.legal_action_mask(states).any(axis=1)
    if not can_move.all():
        row = int(np.flatnonzero(~can_move)[0])
        why = "the game is over" if game.terminated(states[row : row + 1])[0] else "no action is legal"
        raise RequestError(f"positions[{row}]: there is nothing to play: {why}")
    return states


def play(game: Game, seeds: Sequence[int], moves: Sequence[Sequence[int]], names: Sequence[str]) -> Played:
    """Play B games from the start.

    Args:
        game: the rules.
        seeds: [B], of each game's chance.
        moves: [B], actions of each game, one list each.
        names: [B], of the games in errors.

    Raises:
        RequestError: a move is not legal, or the game was over before it.
    """
    rngs = [np.random.default_rng(seed) for seed in seeds]
    size = game.chance_size
    states = game.initial(game.chance_from_uniforms(np.stack([rng.random(size) for rng in rngs])))
    scores = np.zeros((len(seeds), game.num_players))
    for move in range(max(len(own) for own in moves)):
        rows = np.array([row for row, own in enumerate(moves) if len(own) > move])
        actions = np.array([moves[row][move] for row in rows])
        before = states[rows]
        _refuse_illegal(game, before, actions, [f"{names[row]}.moves[{move}]" for row in rows])
        players = game.to_play(before)
        outcomes = game.chance_from_uniforms(np.stack([rngs[row].random(size) for row in rows]))
        transition = game.step(before, actions, outcomes)
        states[rows] = transition.states
        scores[rows, players] += transition.rewards
        if game.num_players == 2:
            scores[rows, 1 - players] -= transition.rewards
    return Played(states, scores)


def _refuse_illegal(game: Game, states: States, actions: NDArray[np.int64], names: Sequence[str]) -> None:
    in_range = (actions >= 0) & (actions < game.num_actions)
    legal = game.legal_action_mask(states)[np.arange(len(states)), np.where(in_range, actions, 0)] & in_range
    if legal.all():
        return
    row = int(np.flatnonzero(~legal)[0])
    why = "the game is over before it" if game.terminated(states[row : row + 1])[0] else "it is not legal"
    raise RequestError(f"{names[row]}: action {actions[row]}: {why}; actions are 0 to {game.num_actions - 1}")


def _observation(game: Game, sent: list[Any] | None, name: str) -> NDArray[np.generic]:
    """The numbers as the game stores them; none is rounded or wraps around."""
    spec = game.observation_spec
    try:
        given = np.asarray(sent)
    except ValueError:
        raise RequestError(f"{name}.observation: must have shape {list(spec.shape)}") from None
    if given.shape != tuple(spec.shape):
        raise RequestError(f"{name}.observation: has shape {list(given.shape)}, must have {list(spec.shape)}")
    if given.dtype.kind not in "biuf":
        raise RequestError(f"{name}.observation: must hold numbers alone")
    with np.errstate(all="ignore"):
        kept = given.astype(spec.dtype)
    is_integer = np.dtype(spec.dtype).kind in "biu"
    if not np.isfinite(given).all() or (is_integer and (kept != given).any()):
        raise RequestError(f"{name}.observation: holds numbers that are no {spec.dtype}")
    return kept


def _parse(body: bytes) -> dict[str, Any]:
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is no JSON: {error}") from None
    if not isinstance(sent, dict):
        raise RequestError("the body must be a JSON object")
    return sent


def _one_line(error: ValidationError) -> str:
    """Say the first problem: the field, and what is allowed."""
    problem = error.errors(include_url=False, include_input=False)[0]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    text = problem["msg"].removeprefix("Value error, ")
    return f"{field}: {text}" if field else text
