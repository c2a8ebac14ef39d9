"""What is learned: the experiment config, read from TOML, checked, frozen, copied into the run."""

import tomllib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from zero.tables import Selector

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class ConfigError(ValueError):
    """A config that cannot be used; the text is one line that names the field, what was given and what is allowed."""


class Section(BaseModel):
    """A frozen part of the config that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class GameConfig(Section):
    """Which game, and its own options, checked by the game itself."""

    name: str = "triangle"
    options: dict[str, Any] = Field(default_factory=dict[str, Any])


class NetworkConfig(Section):
    """The residual network."""

    channels: PositiveInt = 32
    blocks: PositiveInt = 2
    value_hidden: PositiveInt = 64
    support_min: float = Field(default=0.0, allow_inf_nan=False)
    support_max: float = Field(default=20.0, allow_inf_nan=False)
    support_size: int = Field(default=41, ge=2)
    value_transform: bool = True

    @model_validator(mode="after")
    def _support_is_ordered(self) -> "NetworkConfig":
        if self.support_min >= self.support_max:
            raise ValueError(f"support_min {self.support_min} must be below support_max {self.support_max}")
        return self


class SearchConfig(Section):
    """Gumbel search (Danihelka et al. 2022)."""

    num_simulations: PositiveInt = 32
    max_num_considered_actions: PositiveInt = 16
    c_visit: PositiveFloat = 50.0
    c_scale: PositiveFloat = 0.1
    min_value_range: float = Field(default=0.01, ge=0, allow_inf_nan=False)


class SelfPlayConfig(Section):
    """How actors play."""

    games_per_actor: PositiveInt = 64
    gumbel_scale: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    sampled_moves: int = Field(default=0, ge=0)
    max_moves: PositiveInt = 2000


class ReplayConfig(Section):
    """The table that the run plays into and learns from; sizes in steps."""

    capacity: PositiveInt = 100_000
    min_size_to_sample: PositiveInt = 2_000
    samples_per_insert: float = Field(default=8.0, ge=0, allow_inf_nan=False)
    error_buffer: PositiveFloat = 20_000.0
    selector: Selector = Selector.PRIORITIZED
    priority_exponent: Fraction = 0.6
    durability: Literal["memory", "redis"] = "redis"


class LearnerConfig(Section):
    """How the network is trained."""

    batch_size: PositiveInt = 256
    td_steps: PositiveInt = 32
    td_lambda: Fraction = 0.9
    learning_rate: PositiveFloat = 2e-3
    warmup_steps: int = Field(default=20, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    schedule_steps: PositiveInt = 4_000
    final_learning_rate_fraction: Fraction = 0.1
    weight_decay: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    max_grad_norm: PositiveFloat = 1.0
    value_loss_weight: PositiveFloat = 1.0
    importance_sampling_exponent: Fraction = 0.4
    publish_interval_steps: PositiveInt = 10
    checkpoint_interval_seconds: PositiveFloat = 60.0
    prefetch_batches: PositiveInt = 2


class EvaluationConfig(Section):
    """How the evaluator measures: fixed seeds, no noise."""

    interval_seconds: PositiveFloat = 60.0
    num_games: PositiveInt = 32
    seed: int = Field(default=1_000_000, ge=0)


class ExperimentConfig(Section):
    """All of an experiment; every number once."""

    name: str = Field("triangle", pattern=r"^[a-z0-9._-]{1,64}$")
    seed: int = Field(default=0, ge=0)
    discount: float = Field(default=0.99, gt=0, le=1)
    game: GameConfig = GameConfig()
    network: NetworkConfig = NetworkConfig()
    search: SearchConfig = SearchConfig()
    self_play: SelfPlayConfig = SelfPlayConfig()
    replay: ReplayConfig = ReplayConfig()
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


def parse_config(text: str, overrides: list[str]) -> ExperimentConfig:
    """Build the config from TOML text and `path.to.key=value` overrides, the later ones winning.

    Values of overrides are TOML; what is no TOML value is taken as a string.

    Raises:
        ConfigError: unreadable TOML, an unknown key, or a value that is not allowed.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the experiment file is no TOML: {error}") from None
    for override in overrides:
        _apply_override(values, override)
    try:
        return ExperimentConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(
            f"override {override!r}: write it as section.key=value, for example search.num_simulations=32"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    section = values
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise ConfigError(f"override {override!r}: {key} is a value, not a section")
    section[keys[-1]] = value


def _one_line(error: ValidationError) -> str:
    """Say the first problem: the field, what was given, what is allowed."""
    problem = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in problem["loc"]) or "config"
    if problem["type"] == "extra_forbidden":
        return f"{field}: no such setting; {_allowed_names(problem['loc'])}"
    given = problem["input"]
    shown = "" if isinstance(given, dict) else f", got {given!r}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{field}: {problem['msg']}{shown}{more}"


def _allowed_names(location: tuple[int | str, ...]) -> str:
    model: type[BaseModel] = ExperimentConfig
    for part in location[:-1]:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    return f"allowed: {', '.join(model.model_fields)}"
