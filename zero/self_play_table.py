"""The table that a run plays into and learns from: which columns a self-play step has."""

from zero.config import ExperimentConfig
from zero.games.game import Game
from zero.tables import Durability, RateLimiterConfig, TableConfig
from zero.trajectories import ColumnSpec, Signature

TABLE_NAME = "self_play"

NO_CODE = 255
"""Stands for a chance code where nothing was random."""


def self_play_signature(game: Game) -> Signature:
    """The columns of a self-play trajectory.

    observation: compact, before the move. action: what was played. reward: what it earned the player who moved.
    discount: 0 if the step ended the game, else 1, or -1 where the player changed; the learner multiplies it with the
    config's discount. search_policy: the policy target over all actions, zeros where it is not to be learned.
    search_value: the root value of the search. search_version: the version of the weights that searched it last.
    reanalysed_at: Unix time at which it was last searched again, 0 if only in play. chance_code, where the game names
    codes: of the outcome that followed the action, NO_CODE where none did.
    """
    sizes = game.chance_code_sizes
    codes = (ColumnSpec("chance_code", "uint8", (len(sizes),)),) if sizes else ()
    return (
        game.observation_spec,
        ColumnSpec("action", "uint16"),
        ColumnSpec("reward", "float32"),
        ColumnSpec("discount", "float32"),
        ColumnSpec("search_policy", "float16", (game.num_actions,)),
        ColumnSpec("search_value", "float32"),
        ColumnSpec("search_version", "uint32"),
        ColumnSpec("reanalysed_at", "float64"),
        *codes,
    )


def self_play_table(config: ExperimentConfig, game: Game) -> TableConfig:
    """The table of a run."""
    replay = config.replay
    return TableConfig(
        name=TABLE_NAME,
        signature=self_play_signature(game),
        capacity=replay.capacity,
        selector=replay.selector,
        priority_exponent=replay.priority_exponent,
        rate_limiter=RateLimiterConfig(
            min_size_to_sample=replay.min_size_to_sample,
            samples_per_insert=replay.samples_per_insert,
            error_buffer=replay.error_buffer,
        ),
        durability=Durability(replay.durability),
    )
