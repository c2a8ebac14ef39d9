"""Which statistics a run has: of which events, how they are aggregated, and how often."""

import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deploy.errors import BAD_INPUT, DeployError
from zero.events import EventSeries
from zero.self_play_table import TABLE_NAME


class Aggregation(StrEnum):
    """What a point says about the events since the point before it.

    LATEST, MEAN, SUM, MIN, MAX, COUNT; STD with n - 1, 0 of a single event; RATE is their sum per second, or per sum of
    `denominator`; TOTAL is the sum since the run began.
    """

    LATEST = "latest"
    MEAN = "mean"
    SUM = "sum"
    RATE = "rate"
    MIN = "min"
    MAX = "max"
    STD = "std"
    COUNT = "count"
    TOTAL = "total"


class Statistic(BaseModel):
    """One statistic; it has a point whenever its interval is over, if there was an event.

    Attributes:
        name: of its points, `group/name`.
        event: name of the metric whose events it aggregates.
        aggregation: how.
        every_seconds: how long an interval is; or
        every_steps: how many optimizer updates it spans. Exactly one of the two is given.
        labels: events must have these; `process` says who sent them, for example actor-0.
        by: a label; every value of it has points of its own, called NAME/VALUE.
        denominator: of a rate, the name of the metric to whose events it is relative; without, seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-/ ]+$", max_length=200)]
    event: Annotated[str, Field(min_length=1)]
    aggregation: Aggregation
    every_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    every_steps: Annotated[int, Field(gt=0)] | None = None
    labels: Mapping[str, str] = Field(default_factory=dict[str, str])
    by: str | None = None
    denominator: str | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> "Statistic":
        if (self.every_seconds is None) == (self.every_steps is None):
            raise ValueError("give one of every_seconds and every_steps")
        if self.denominator is not None and self.aggregation is not Aggregation.RATE:
            raise ValueError("denominator belongs to a rate")
        return self

    def takes(self, series: EventSeries, event: str) -> str | None:
        """The name of the points that a series of events goes into; None for none.

        Args:
            series: of the events.
            event: whose they must be, this statistic's event or denominator.
        """
        labels = dict(series.labels)
        if series.name != event or any(labels.get(name) != value for name, value in self.labels.items()):
            return None
        if self.by is None:
            return self.name
        return f"{self.name}/{labels[self.by]}" if self.by in labels else None


def _of(aggregation: Aggregation, **names: str) -> list[Statistic]:
    """Statistics by name, every ten seconds."""
    return [
        Statistic(name=name.replace("__", "/"), event=event, aggregation=aggregation, every_seconds=10)
        for name, event in names.items()
    ]


DEFAULTS: tuple[Statistic, ...] = (
    *_of(
        Aggregation.MEAN,
        loss__total="zero_learner_total_loss",
        loss__policy="zero_learner_policy_loss",
        loss__value="zero_learner_value_loss",
        loss__entropy="zero_learner_policy_entropy_nats",
        loss__td_error="zero_learner_td_error",
        loss__unrolled_policy="zero_learner_unrolled_policy_loss",
        loss__unrolled_value="zero_learner_unrolled_value_loss",
        loss__reward="zero_learner_reward_loss",
        loss__chance="zero_learner_chance_loss",
        loss__consistency="zero_learner_consistency_loss",
        loss__target_entropy="zero_learner_target_entropy",
        loss__clamped_targets="zero_learner_clamped_targets_ratio",
        loss__gradient_norm="zero_learner_gradient_norm",
        learner__value_bias="zero_learner_value_bias",
        learner__value_slope="zero_learner_value_slope",
        learner__staleness_versions="zero_learner_staleness_versions",
        learner__step_seconds="zero_learner_training_step_seconds",
        episode__score="zero_actor_score",
        episode__length="zero_actor_game_length_moves",
        episode__step_reward="zero_actor_step_reward",
        search__depth="zero_actor_search_depth_moves",
        search__unique_leaf_ratio="zero_actor_unique_leaf_ratio",
        search__policy_entropy="zero_actor_search_policy_entropy_nats",
        search__policy_divergence="zero_actor_search_policy_divergence_nats",
        search__optimism="zero_actor_search_optimism",
        progress__inserts_in_flight="zero_actor_inserts_in_flight",
    ),
    *_of(
        Aggregation.LATEST,
        learner__learning_rate="zero_learner_learning_rate",
        learner__importance_sampling_exponent="zero_learner_importance_sampling_exponent",
        learner__weights_version="zero_learner_weights_version",
        evaluation__best_score="zero_evaluator_best_score",
        total__weights_updates="zero_replay_weights_version",
    ),
    *_of(
        Aggregation.RATE,
        speed__training_steps_per_second="zero_learner_training_steps",
        speed__episodes_per_second="zero_actor_games",
        speed__moves_per_second="zero_actor_moves",
        speed__simulations_per_second="zero_actor_simulations",
        learner__batch_wait_fraction="zero_learner_batch_wait_seconds",
    ),
    *_of(
        Aggregation.TOTAL,
        total__training_steps="zero_learner_training_steps",
        total__episodes="zero_actor_games",
        total__simulations="zero_actor_simulations",
    ),
    *_of(Aggregation.MAX, episode__best_score="zero_actor_score"),
    *_of(Aggregation.MIN, episode__worst_score="zero_actor_score"),
    *_of(Aggregation.STD, episode__score_std="zero_actor_score"),
    Statistic(
        name="episode/stat", event="zero_actor_game_stat", aggregation=Aggregation.MEAN, every_seconds=10, by="stat"
    ),
    Statistic(
        name="search/simulations_per_move",
        event="zero_actor_simulations",
        aggregation=Aggregation.RATE,
        every_seconds=10,
        denominator="zero_actor_moves",
    ),
    Statistic(
        name="replay/steps",
        event="zero_replay_steps",
        aggregation=Aggregation.LATEST,
        every_seconds=10,
        labels={"table": TABLE_NAME},
    ),
    Statistic(
        name="replay/samples_per_insert",
        event="zero_replay_sampled_positions",
        aggregation=Aggregation.RATE,
        every_seconds=10,
        labels={"table": TABLE_NAME},
        denominator="zero_replay_inserted_steps",
    ),
    Statistic(
        name="replay/refused_inserts",
        event="zero_replay_inserts",
        aggregation=Aggregation.TOTAL,
        every_seconds=10,
        labels={"result": "refused"},
    ),
    Statistic(
        name="progress/live",
        event="zero_replay_live_processes",
        aggregation=Aggregation.LATEST,
        every_seconds=10,
        by="process",
    ),
    *(
        Statistic(
            name=f"evaluation/{name}",
            event=f"zero_evaluator_{event}",
            aggregation=Aggregation.LATEST,
            every_seconds=1,
            by="player",
        )
        for name, event in (("score", "score"), ("score_standard_error", "score_standard_error"), ("elo", "rating_elo"))
    ),
)
"""What every run has; the names say what is plotted together."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    statistic: list[Statistic]


def load_statistics(path: Path | None) -> tuple[Statistic, ...]:
    """The defaults, and those of a TOML file of `[[statistic]]` tables, which replace defaults of the same name.

    Raises:
        DeployError: the file cannot be read or says something that cannot be.
    """
    if path is None:
        return DEFAULTS
    try:
        given = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).statistic
    except OSError as error:
        raise DeployError(f"statistics {str(path)!r}: {error.strerror}", BAD_INPUT) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DeployError(f"statistics {str(path)!r} is no TOML: {error}", BAD_INPUT) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DeployError(f"statistics {str(path)!r}: {place}: {first['msg']}", BAD_INPUT) from None
    return tuple({statistic.name: statistic for statistic in (*DEFAULTS, *given)}.values())
