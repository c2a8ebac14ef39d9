"""What is learned: the experiment config, read from TOML, checked, frozen, copied into the run."""

import json
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

PositiveInt = Annotated[int, Field(ge=1, strict=True)]
Count = Annotated[int, Field(ge=0, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**62, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class ConfigError(ValueError):
    """A config that cannot be used; the text is one line that names the field, what was given and what is allowed."""


class Section(BaseModel):
    """A frozen part of the config that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class GameConfig(Section):
    """Which game, and its own options, checked by the game itself.

    Attributes:
        name: a built-in game, one that a package plugs in, PREFIX:NAME of an adapted library, or path/to/file.py:NAME.
        options: what the game lets one choose.
    """

    name: str = "triangle"
    options: dict[str, Any] = Field(default_factory=dict[str, Any])


class NetworkConfig(Section):
    """The residual network.

    Attributes:
        model: what the search simulates with: "rules" for those of the game (AlphaZero), "learned" for a model that the
            network learns as well (MuZero).
        channels: of every convolution.
        blocks: residual blocks.
        value_hidden: units before the value logits.
        support_min: least value of the categorical value, after the transform; of the learned model's reward as well.
        support_max: largest value, after the transform; 20 stands for a return of 433.
        support_size: atoms between them.
        value_transform: squash returns by h(x) = sign(x) (sqrt(|x| + 1) - 1) + 0.001 x.
    """

    model: Literal["rules", "learned"] = "rules"
    channels: PositiveInt = 32
    blocks: PositiveInt = 2
    value_hidden: PositiveInt = 64
    support_min: float = Field(default=0.0, allow_inf_nan=False)
    support_max: float = Field(default=20.0, allow_inf_nan=False)
    support_size: int = Field(default=41, ge=2, strict=True)
    value_transform: bool = True

    @model_validator(mode="after")
    def _support_is_ordered(self) -> "NetworkConfig":
        if self.support_min >= self.support_max:
            raise ValueError(f"support_min {self.support_min} must be below support_max {self.support_max}")
        return self


class SearchConfig(Section):
    """Tree search: Gumbel (Danihelka et al. 2022) or PUCT (Schrittwieser et al. 2020).

    Attributes:
        num_simulations: per move.
        root_policy: "gumbel" halves the root's actions and learns the improved policy; "puct" adds noise to the root's
            priors and learns the visits.
        max_num_considered_actions: root actions that Sequential Halving begins with.
        c_visit: weighs values more the more the root was visited.
        c_scale: weighs values against logits.
        pb_c_init: weighs priors against values in PUCT.
        pb_c_base: visits over which that weight grows.
        dirichlet_alpha: concentration of the noise in PUCT, shared out among the legal actions.
        dirichlet_fraction: of the noise in the root's priors.
        reuse_subtree: PUCT goes on with what the last search found below the move that was played.
        min_value_range: least range of values that is stretched to [0, 1]; below it, differences count as noise.
        common_chance: the n-th visit of every root action draws the same chance, so that actions are compared on the
            same luck.
        chance_draws: outcomes that are evaluated and averaged whenever chance is sampled.
    """

    num_simulations: PositiveInt = 32
    root_policy: Literal["gumbel", "puct"] = "gumbel"
    max_num_considered_actions: PositiveInt = 16
    c_visit: PositiveFloat = 50.0
    c_scale: PositiveFloat = 0.1
    pb_c_init: PositiveFloat = 1.25
    pb_c_base: PositiveFloat = 19652.0
    dirichlet_alpha: PositiveFloat = 10.0
    dirichlet_fraction: Fraction = 0.25
    reuse_subtree: bool = False
    min_value_range: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    common_chance: bool = False
    chance_draws: PositiveInt = 1

    @model_validator(mode="after")
    def _only_puct_reuses(self) -> "SearchConfig":
        if self.reuse_subtree and self.root_policy != "puct":
            raise ValueError('reuse_subtree needs root_policy "puct": Sequential Halving begins without visits')
        return self


class SelfPlayConfig(Section):
    """How actors play.

    Attributes:
        games_per_actor: games in lock step, and so the batch of the network; "auto" for what a measurement at start
            finds fastest. Only numbers play the same games again on another machine.
        dtype: the network's during play; "auto" as above.
        noise_scale: of the noise at the root, of Gumbel numbers or of dirichlet_fraction; 1 explores as derived, 0 not
            at all.
        sampled_moves: first moves of a game that are drawn from the search policy instead of played best.
        temperature: of these draws, in proportion to policy ^ (1 / temperature).
        final_temperature: of the draws of all later moves; 0 plays best.
        cheap_move_fraction: of the moves that are searched with cheap_simulations and no noise; their values are
            learned, their policies not (Wu 2019, section 3.1).
        cheap_simulations: of such a move.
        max_moves: a longer game is truncated.
    """

    games_per_actor: PositiveInt | Literal["auto"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    noise_scale: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    sampled_moves: Count = 0
    temperature: PositiveFloat = 1.0
    final_temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    cheap_move_fraction: float = Field(default=0.0, ge=0, lt=1)
    cheap_simulations: PositiveInt = 8
    max_moves: PositiveInt = 2000


class ReplayConfig(Section):
    """The table that the run plays into and learns from; sizes in steps.

    Attributes:
        capacity: the oldest games make room.
        min_size_to_sample: learning begins here.
        samples_per_insert: how often a step is drawn on average; 0 lets both sides run free.
        error_buffer: how many draws either side may be ahead of that.
        selector: how positions are drawn.
        priority_exponent: 0 draws uniformly, 1 in proportion to the value error.
        durability: "redis" survives a killed server, "memory" does not.
    """

    capacity: PositiveInt = 100_000
    min_size_to_sample: PositiveInt = 2_000
    samples_per_insert: float = Field(default=8.0, ge=0, allow_inf_nan=False)
    error_buffer: PositiveFloat = 20_000.0
    selector: Literal["uniform", "prioritized"] = "prioritized"
    priority_exponent: Fraction = 0.6
    durability: Literal["memory", "redis"] = "redis"


class ReanalyseConfig(Section):
    """What reanalysers search again, where there are any (Schrittwieser et al. 2021, "Online and offline RL").

    Attributes:
        steps_per_insert: steps that all of them together search again per step that is played; 0 for as many as they
            manage.
    """

    steps_per_insert: float = Field(default=1.0, ge=0, allow_inf_nan=False)


class LearnerConfig(Section):
    """How the network is trained.

    Attributes:
        batch_size: positions per training step.
        unroll_steps: moves over which the learned model is unrolled from every drawn position; 0 for none.
        td_steps: moves after which a value target bootstraps at the latest.
        td_lambda: 0 bootstraps after one move, 1 after td_steps.
        use_symmetries: every drawn position is shown as one of those that the game's symmetries make of it.
        learning_rate: peak of AdamW.
        warmup_steps: training steps on the way to the peak.
        schedule: what follows the warm-up.
        schedule_steps: length of the cosine.
        final_learning_rate_fraction: of the peak, where the cosine ends and stays.
        weight_decay: of AdamW.
        max_grad_norm: larger gradients are scaled down to it.
        value_loss_weight: against a policy loss of weight 1.
        reward_loss_weight: of the learned model's rewards, likewise.
        chance_loss_weight: of its foresight of chance, likewise.
        consistency_loss_weight: likewise, of the similarity between what the model foresees and what the network makes
            of the position that really followed (Ye et al. 2021, "Mastering Atari games with limited data").
        entropy_weight: rewards policies that leave much open; 0 for none.
        importance_sampling_exponent: how much of the bias of prioritized draws is undone.
        publish_interval_steps: training steps between publications of the weights.
        checkpoint_interval_seconds: between checkpoints.
        keep_last_checkpoints: how many of the newest stay. The one after the best evaluation stays, too.
        keep_checkpoint_every_steps: one in so many training steps also stays; 0 for none.
        prefetch_batches: drawn ahead.
    """

    batch_size: PositiveInt = 256
    unroll_steps: Count = 0
    td_steps: PositiveInt = 32
    td_lambda: Fraction = 0.9
    use_symmetries: bool = True
    learning_rate: PositiveFloat = 2e-3
    warmup_steps: Count = 20
    schedule: Literal["constant", "cosine"] = "cosine"
    schedule_steps: PositiveInt = 4_000
    final_learning_rate_fraction: Fraction = 0.1
    weight_decay: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    max_grad_norm: PositiveFloat = 1.0
    value_loss_weight: PositiveFloat = 1.0
    reward_loss_weight: PositiveFloat = 1.0
    chance_loss_weight: PositiveFloat = 1.0
    consistency_loss_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    entropy_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    importance_sampling_exponent: Fraction = 0.4
    publish_interval_steps: PositiveInt = 10
    checkpoint_interval_seconds: PositiveFloat = 60.0
    keep_last_checkpoints: PositiveInt = 3
    keep_checkpoint_every_steps: Count = 0
    prefetch_batches: PositiveInt = 2


class EvaluationConfig(Section):
    """How the evaluator measures: fixed seeds, no noise.

    Attributes:
        interval_seconds: between evaluations.
        num_games: per player, or per pair in a game for two.
        seed: of the first game; the others follow.
        baselines: names of the players to measure besides, the weakest first, such as "mobility" or "mcts-1000"; none
            for those of the game that are quick.
        simulations: numbers of simulations per move to search with, besides search.num_simulations.
    """

    interval_seconds: PositiveFloat = 60.0
    num_games: PositiveInt = 32
    seed: Seed = 1_000_000
    baselines: tuple[str, ...] = ()
    simulations: tuple[PositiveInt, ...] = ()


class ExperimentConfig(Section):
    """All of an experiment; every number once.

    Attributes:
        name: of the experiment.
        seed: of the first weights and, with what each actor adds, of the games.
        discount: of search and targets alike, per move.
    """

    name: str = Field("triangle", pattern=r"^[a-z0-9._-]{1,64}$")
    seed: Seed = 0
    discount: float = Field(default=0.99, gt=0, le=1)
    game: GameConfig = GameConfig()
    network: NetworkConfig = NetworkConfig()
    search: SearchConfig = SearchConfig()
    self_play: SelfPlayConfig = SelfPlayConfig()
    replay: ReplayConfig = ReplayConfig()
    reanalyse: ReanalyseConfig = ReanalyseConfig()
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _search_can_do_what_self_play_asks(self) -> "ExperimentConfig":
        search, self_play = self.search, self.self_play
        if self_play.cheap_move_fraction > 0 and self_play.cheap_simulations > search.num_simulations:
            raise ValueError(
                f"self_play.cheap_simulations {self_play.cheap_simulations} exceeds search.num_simulations "
                f"{search.num_simulations}"
            )
        noise = search.dirichlet_fraction * self_play.noise_scale
        if search.root_policy == "puct" and noise > 1:
            raise ValueError(f"search.dirichlet_fraction x self_play.noise_scale is {noise:g}, above 1")
        return self

    @model_validator(mode="after")
    def _a_learned_model_is_learned_and_asked(self) -> "ExperimentConfig":
        learned, unroll_steps = self.network.model == "learned", self.learner.unroll_steps
        if learned and unroll_steps == 0:
            raise ValueError('network.model "learned" needs learner.unroll_steps of at least 1: nothing else trains it')
        if not learned and unroll_steps > 0:
            raise ValueError(
                f'learner.unroll_steps {unroll_steps} needs network.model "learned": there is no model to unroll'
            )
        if not learned and self.learner.consistency_loss_weight > 0:
            raise ValueError('learner.consistency_loss_weight needs network.model "learned": it compares its states')
        if learned and self.search.reuse_subtree:
            raise ValueError(
                'search.reuse_subtree needs network.model "rules": a learned model does not recognise a position that '
                "it has foreseen"
            )
        if learned and self.search.chance_draws > 1:
            raise ValueError(
                'search.chance_draws above 1 needs network.model "rules": a learned model evaluates one outcome a visit'
            )
        return self

    @model_validator(mode="after")
    def _calls_fit_the_table(self) -> "ExperimentConfig":
        replay, max_moves, batch_size = self.replay, self.self_play.max_moves, self.learner.batch_size
        if max_moves > replay.capacity:
            raise ValueError(f"self_play.max_moves {max_moves} exceeds replay.capacity {replay.capacity}")
        if replay.samples_per_insert == 0:
            return self
        # A call larger than the buffer could never pass the rate limiter.
        needed = max(batch_size, max_moves * replay.samples_per_insert)
        if needed > replay.error_buffer:
            raise ValueError(
                f"replay.error_buffer {replay.error_buffer:g} must be at least {needed:g}: the larger of "
                f"learner.batch_size and self_play.max_moves x replay.samples_per_insert"
            )
        return self


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


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """All settings in which two configs, or the same parts of them, differ: by dotted path, as JSON or "unset".

    Args:
        saved: of something kept, as JSON data.
        current: as JSON data.
    """
    before, now = _by_path(saved), _by_path(current)
    return {
        path: (before.get(path, "unset"), now.get(path, "unset"))
        for path in {**now, **before}
        if before.get(path) != now.get(path)
    }


def describe_difference(saved: Mapping[str, Any], current: Mapping[str, Any], made: str) -> str:
    """The first setting in which two configs, or the same parts of them, differ, in words; empty if none does.

    Args:
        saved: of something kept, as JSON data.
        current: as JSON data.
        made: how the text begins, for example "the checkpoint was made".
    """
    found = differences(saved, current)
    different = list(found)
    if not different:
        return ""
    path, more = different[0], len(different) - 1
    return (
        f"{made} with {path} {found[path][0]}, the config says {found[path][1]}{f' (and {more} more)' if more else ''}"
    )


def _by_path(section: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """All values below a section, as JSON, by their dotted path."""
    values: dict[str, str] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            values |= _by_path(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = json.dumps(value)
    return values


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
    shown = "" if isinstance(given, dict | Section) else f", got {given!r}"
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"{field}: is a section, got {problem['input']!r}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{field}: {problem['msg'].removeprefix('Value error, ')}{shown}{more}"


def _allowed_names(location: tuple[int | str, ...]) -> str:
    model: type[BaseModel] = ExperimentConfig
    for part in location[:-1]:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    return f"allowed: {', '.join(model.model_fields)}"
