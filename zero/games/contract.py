"""The contract of a game as a test that anyone can run on theirs: `check_game(MyGame())`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zero.games.game import Game, States, Symmetry, Transition

_CODED_OUTCOMES = 64
"""Outcomes of one position that are compared by their codes."""

_Arrays = dict[str, NDArray[Any]]


class ContractError(AssertionError):
    """A game breaks a property that self-play and search rely on; the text names it."""


def check_game(game: Game, num_games: int = 16, seed: int = 0, max_moves: int = 200) -> None:
    """Play random games and check at every move what the interface promises.

    Args:
        game: the game.
        num_games: how many games are played in lock step, at least 2.
        seed: of the random play.
        max_moves: games that last longer are left there.

    Raises:
        ContractError: the first broken property.
    """
    rng = np.random.default_rng(seed)
    _check_description(game)
    states = start = _check_initial(game, rng, num_games)
    _check_position(game, states[:0])
    for _ in range(max_moves):
        legal = _check_position(game, states)
        if not legal.any():
            break
        states = _check_step(game, rng, states, legal)
    _check_random_returns(game, rng, np.concatenate([start, states]), max_moves)
    for symmetry in game.symmetries:
        _check_symmetry(game, symmetry, rng, num_games, max_moves)


def _require(holds: bool | np.bool_, broken: str) -> None:
    if not holds:
        raise ContractError(broken)


def _check_description(game: Game) -> None:
    _require(game.num_actions >= 1, "num_actions must be at least 1")
    _require(1 <= game.max_legal_actions <= game.num_actions, "max_legal_actions must be within 1 to num_actions")
    _require(game.num_players in (1, 2), "num_players must be 1 or 2")
    _require(game.state_size >= 1, "state_size must be at least 1")
    _require(game.chance_size >= 0, "chance_size must not be negative")
    _require(game.observation_spec.name == "observation", 'observation_spec must be named "observation"')
    _require(len(game.planes_shape) == 3 and min(game.planes_shape) >= 1, "planes_shape must be (C, H, W), each >= 1")
    _require(game.num_features >= 0, "num_features must not be negative")
    sizes = game.chance_code_sizes
    _require(all(1 <= size <= 255 for size in sizes), "chance_code_sizes must be within 1 to 255 each")
    _require(game.chance_size > 0 or not sizes, "chance_code_sizes names codes although chance_size is 0")
    lines = game.lines
    _require_array("lines", lines, np.bool_, (len(lines), *game.planes_shape[1:]))
    _require(lines.any(axis=(1, 2)).all(), "a line of lines has no cell")


def _check_initial(game: Game, rng: np.random.Generator, num_games: int) -> States:
    uniforms = rng.random((num_games, game.chance_size))
    outcomes = _call("chance_from_uniforms", game.chance_from_uniforms, uniforms)
    _require_array("chance_from_uniforms", outcomes, np.int64, (num_games, game.chance_size))
    drawn = game.draw_chance(rng, num_games)
    _require_array("draw_chance", drawn, np.int64, (num_games, game.chance_size))
    states = _call("initial", game.initial, outcomes)
    _require_array("initial", states, np.uint64, (num_games, game.state_size))
    return states


def _check_position(game: Game, states: States) -> NDArray[np.bool_]:
    """Check everything that is asked of positions where no chance is pending; the legal actions [B, A]."""
    size = states.shape[0]
    legal = _check_masks(game, states)
    terminated = _call("terminated", game.terminated, states)
    _require_array("terminated", terminated, np.bool_, (size,))
    _require((legal.any(axis=1) == ~terminated).all(), "exactly the positions that are not over have legal actions")
    to_play = _call("to_play", game.to_play, states)
    _require_array("to_play", to_play, np.int8, (size,))
    players = (to_play >= 0) & (to_play < game.num_players)
    _require(players.all(), "to_play must name a player, 0 to num_players - 1")
    _check_observations(game, states, legal)
    for name, counts in game.stats(states).items():
        _require_array(f"stats[{name!r}]", counts, np.float64, (size,))
    if size:
        _require(game.render_ascii(states, 0) == game.render_ascii(states[:1], 0), "render_ascii reads other rows")
        _require(game.render_svg(states, 0) == game.render_svg(states[:1], 0), "render_svg reads other rows")
    return legal


def _check_masks(game: Game, states: States) -> NDArray[np.bool_]:
    shape = (states.shape[0], game.num_actions)
    legal = _call("legal_action_mask", game.legal_action_mask, states)
    _require_array("legal_action_mask", legal, np.bool_, shape)
    _require(legal.sum(axis=1).max(initial=0) <= game.max_legal_actions, "a position has more than max_legal_actions")
    searched = _call("search_action_mask", game.search_action_mask, states)
    _require_array("search_action_mask", searched, np.bool_, shape)
    _require(not (searched & ~legal).any(), "search_action_mask allows an illegal action")
    _require((searched.any(axis=1) == legal.any(axis=1)).all(), "search_action_mask leaves no legal action")
    return legal


def _check_observations(game: Game, states: States, legal: NDArray[np.bool_]) -> None:
    size = states.shape[0]
    observations = _call("observation", game.observation, states)
    spec = game.observation_spec
    _require_array("observation", observations, np.dtype(spec.dtype).type, (size, *spec.shape))
    decoded = _call("decode", game.decode, observations)
    _require_array("decode", decoded, np.uint64, (size, game.state_size))
    _require(
        np.array_equal(game.observation(decoded), observations),
        "an observation changes when decoded and observed again",
    )
    _require(np.array_equal(game.legal_action_mask(decoded), legal), "decode changes the legal actions")
    _require(
        np.array_equal(game.search_action_mask(decoded), game.search_action_mask(states)),
        "decode changes the search_action_mask",
    )
    _require(np.array_equal(game.terminated(decoded), game.terminated(states)), "decode changes what is over")
    _require(np.array_equal(game.to_play(decoded), game.to_play(states)), "decode changes the player to move")
    encoded = _call("encode", game.encode, observations)
    _require_array("encode", encoded, np.float32, (size, game.encoded_size))
    _require(np.isfinite(encoded).all(), "encode gives a number that is not finite")


def _check_random_returns(game: Game, rng: np.random.Generator, states: States, max_moves: int) -> None:
    size = states.shape[0]
    seeds = rng.integers(0, 2**64, size, dtype=np.uint64)
    returns = _call("random_returns", partial(game.random_returns, max_moves=max_moves), states, seeds)
    _require_array("random_returns", returns, np.float32, (size,))
    _require(np.isfinite(returns).all(), "random_returns gives a number that is not finite")
    _require(not returns[game.terminated(states)].any(), "random_returns gives a return from a finished position")


def _check_step(game: Game, rng: np.random.Generator, states: States, legal: NDArray[np.bool_]) -> States:
    """Play a random legal action in every game, check both halves of the step, and return where it leads."""
    size = states.shape[0]
    actions = np.where(legal, rng.random(legal.shape), -1.0).argmax(axis=1)
    outcomes = game.draw_chance(rng, size)
    over = game.terminated(states)
    applied = _call("apply", game.apply, states, actions)
    _check_transition("apply", game, applied, size)
    _check_pending(game, applied)
    _check_codes(game, rng, applied.states[applied.chance_pending])
    resolved = _call("resolve", game.resolve, applied.states, outcomes)
    _check_transition("resolve", game, resolved, size)
    pending = applied.chance_pending
    _require(
        np.array_equal(game.to_play(applied.states)[pending], game.to_play(resolved.states)[pending]),
        "the turn must pass with the action, not with chance",
    )
    settled = ~pending
    _require(
        np.array_equal(resolved.states[settled], applied.states[settled]) and not resolved.rewards[settled].any(),
        "resolve touches positions where no chance is pending",
    )
    _require(not resolved.chance_pending.any(), "chance is still pending after resolve")
    stepped = _call("step", game.step, states, actions, outcomes)
    _check_transition("step", game, stepped, size)
    _require(
        np.array_equal(stepped.states, resolved.states)
        and np.array_equal(stepped.rewards, applied.rewards + resolved.rewards),
        "step differs from apply and then resolve",
    )
    _require(
        np.array_equal(stepped.states[over], states[over]) and not stepped.rewards[over].any(),
        "a finished position changes or pays",
    )
    _check_turns(game, states, stepped)
    return stepped.states


def _check_symmetry(game: Game, symmetry: Symmetry, rng: np.random.Generator, num_games: int, max_moves: int) -> None:
    """Games in which every action has another name look the same but for the names, and pay the same."""
    size = int(np.prod(game.observation_spec.shape))
    _require(game.chance_size == 0, "a game with chance names symmetries")
    _check_permutation("observation", symmetry.observation, size)
    _check_permutation("actions", symmetry.actions, game.num_actions)
    renamed, nothing = np.argsort(symmetry.actions), game.draw_chance(rng, num_games)
    states = images = game.initial(nothing)
    for _ in range(max_moves):
        observations = game.observation(states).reshape(num_games, size)
        seen = game.observation(images).reshape(num_games, size)
        _require(np.array_equal(observations[:, symmetry.observation], seen), "a symmetry changes observations")
        legal, image_legal = game.legal_action_mask(states), game.legal_action_mask(images)
        _require(np.array_equal(legal[:, symmetry.actions], image_legal), "a symmetry changes the legal actions")
        if not legal.any():
            break
        actions = np.where(legal, rng.random(legal.shape), -1.0).argmax(axis=1)
        moved, image = game.step(states, actions, nothing), game.step(images, renamed[actions], nothing)
        _require(np.array_equal(moved.rewards, image.rewards), "a symmetry changes rewards")
        _require(np.array_equal(moved.terminated, image.terminated), "a symmetry changes what is over")
        states, images = moved.states, image.states


def _check_permutation(name: str, indices: NDArray[np.int64], size: int) -> None:
    _require_array(f"{name} of a symmetry", indices, np.int64, (size,))
    _require(np.array_equal(np.sort(indices), np.arange(size)), f"{name} of a symmetry must name every index once")


def _check_transition(name: str, game: Game, transition: Transition, size: int) -> None:
    _require_array(f"{name}: states", transition.states, np.uint64, (size, game.state_size))
    _require_array(f"{name}: rewards", transition.rewards, np.float32, (size,))
    _require_array(f"{name}: terminated", transition.terminated, np.bool_, (size,))
    _require_array(f"{name}: chance_pending", transition.chance_pending, np.bool_, (size,))
    _require(np.isfinite(transition.rewards).all(), f"{name} pays a reward that is not finite")
    _require(
        np.array_equal(transition.terminated, game.terminated(transition.states)),
        f"{name} and terminated disagree about what is over",
    )


def _check_pending(game: Game, applied: Transition) -> None:
    pending = applied.chance_pending
    _require(not (pending & applied.terminated).any(), "a position is over and waits for chance")
    _require(game.chance_size > 0 or not pending.any(), "chance is pending although chance_size is 0")
    _require(
        not game.legal_action_mask(applied.states)[pending].any(), "a position that waits for chance has legal actions"
    )
    observations = game.observation(applied.states[pending])
    _require(
        np.array_equal(game.observation(game.decode(observations)), observations),
        "the observation of a position that waits for chance changes when decoded and observed again",
    )


def _check_codes(game: Game, rng: np.random.Generator, afterstates: States) -> None:
    """Codes are within their sizes, and tell all that is seen of an outcome."""
    sizes = game.chance_code_sizes
    if not sizes or not len(afterstates):
        return
    count = len(afterstates)
    codes = _call("chance_codes", game.chance_codes, afterstates, game.draw_chance(rng, count))
    _require_array("chance_codes", codes, np.int64, (count, len(sizes)))
    states = np.repeat(afterstates[:1], _CODED_OUTCOMES, axis=0)
    outcomes = game.draw_chance(rng, _CODED_OUTCOMES)
    codes = game.chance_codes(states, outcomes)
    _require((codes >= 0).all() and (codes < sizes).all(), "chance_codes gives a code outside chance_code_sizes")
    observations = game.observation(game.resolve(states, outcomes).states).reshape(_CODED_OUTCOMES, -1)
    seen: dict[tuple[int, ...], NDArray[np.generic]] = {}
    for row, observation in zip(codes.tolist(), observations, strict=True):
        first = seen.setdefault(tuple(row), observation)
        _require(np.array_equal(first, observation), "outcomes with the same chance_codes lead to other observations")


def _check_turns(game: Game, before: States, after: Transition) -> None:
    running = ~after.terminated
    same = game.to_play(before)[running] == game.to_play(after.states)[running]
    if game.num_players == 2:
        _require(not same.any(), "players must move in turns")
    else:
        _require(same.all(), "to_play changes in a game for one player")


def _require_array(name: str, array: object, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray):
        raise ContractError(f"{name} must be an array, not {type(array).__name__}")
    _require(array.dtype == dtype, f"{name} must be {np.dtype(dtype).name}, not {array.dtype.name}")
    _require(array.shape == shape, f"{name} must have shape {shape}, not {array.shape}")


def _call(name: str, function: Callable[..., Any], *arguments: NDArray[Any]) -> Any:
    """Call twice, and on every row alone: the same results, inputs untouched, outputs that share nothing with them."""
    before = [argument.copy() for argument in arguments]
    result = function(*arguments)
    again = function(*arguments)
    unchanged = all(np.array_equal(old, new) for old, new in zip(before, arguments, strict=True))
    _require(unchanged, f"{name} changes its input")
    outputs, repeated = _arrays(result), _arrays(again)
    for output, array in outputs.items():
        _require(np.array_equal(array, repeated[output]), f"{name}: {output} differs when called again")
        shared = any(np.may_share_memory(array, argument) for argument in arguments)
        _require(not shared, f"{name}: {output} shares memory with an input")
    size = arguments[0].shape[0]
    lengths = {array.shape[0] for array in outputs.values()}
    _require(lengths == {size}, f"{name} must give one row per row")
    for row in range(size):
        alone = _arrays(function(*(argument[row : row + 1] for argument in arguments)))
        same = all(np.array_equal(alone[output][0], array[row]) for output, array in outputs.items())
        _require(same, f"{name} of a row depends on the other rows of the batch")
    return result


def _arrays(result: NDArray[Any] | Transition) -> _Arrays:
    if isinstance(result, Transition):
        return {
            "states": result.states,
            "rewards": result.rewards,
            "terminated": result.terminated,
            "chance_pending": result.chance_pending,
        }
    return {"result": result}
