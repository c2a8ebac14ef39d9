"""A wrong config is refused in one line that names the field, what was given and what is allowed."""

import pytest
from pydantic import ValidationError

from zero.config import ConfigError, ExperimentConfig, parse_config


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("search.foo=1", "search.foo: no such setting; allowed: num_simulations"),
        ("nope=1", "nope: no such setting; allowed: name, seed"),
        ("search.num_simulations=0", "search.num_simulations: Input should be greater than or equal to 1, got 0"),
        ("search.num_simulations=2.5", "search.num_simulations: Input should be a valid integer"),
        ("seed=true", "seed: Input should be a valid integer, got True"),
        ("evaluation.seed=18446744073709551615", "evaluation.seed: Input should be less than"),
        ("learner.learning_rate=fast", "learner.learning_rate: Input should be a valid number"),
        ("learner.learning_rate=nan", "learner.learning_rate: Input should be"),
        ("replay.samples_per_insert=inf", "replay.samples_per_insert: Input should be a finite number"),
        ("replay.selector=best", "replay.selector: Input should be 'uniform' or 'prioritized', got 'best'"),
        ("search=3", "search: is a section, got 3"),
        ("network.support_min=30", "network: support_min 30.0 must be below support_max 20.0"),
        ("learner.batch_size=30000", "replay.error_buffer 20000 must be at least 30000"),
        ("replay.samples_per_insert=16", "replay.error_buffer 20000 must be at least 32000"),
        ("replay.capacity=1000", "self_play.max_moves 2000 exceeds replay.capacity 1000"),
        ("search.root_policy=ucb", "search.root_policy: Input should be 'gumbel' or 'puct', got 'ucb'"),
        ("search.reuse_subtree=true", 'search: reuse_subtree needs root_policy "puct"'),
        ("self_play.cheap_move_fraction=1.0", "self_play.cheap_move_fraction: Input should be less than 1"),
        ("self_play.temperature=0", "self_play.temperature: Input should be greater than 0"),
        ("search.num_simulations", "write it as section.key=value"),
        ("name.first=x", "name"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(override: str, said: str) -> None:
    """The text names field, value and what is allowed, and is one line."""
    with pytest.raises(ConfigError) as refusal:
        parse_config('name = "x"', [override])
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_text_that_is_no_toml_is_refused() -> None:
    """The line says where."""
    with pytest.raises(ConfigError, match=r"no TOML.*line 1"):
        parse_config("learner = = 3", [])


def test_overrides_win_and_the_last_of_them_most() -> None:
    """File, then overrides in order; strings need no quotes."""
    config = parse_config("seed = 1\n[search]\nc_scale = 0.2", ["seed=2", "seed=3", "replay.selector=uniform"])
    assert (config.seed, config.search.c_scale, config.replay.selector) == (3, 0.2, "uniform")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["self_play.cheap_move_fraction=0.5", "search.num_simulations=4"], "self_play.cheap_simulations 8 exceeds"),
        (["search.root_policy=puct", "self_play.noise_scale=5"], "search.dirichlet_fraction x self_play.noise_scale"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(overrides: list[str], said: str) -> None:
    """Each alone is allowed."""
    for override in overrides:
        parse_config("", [override])
    with pytest.raises(ConfigError, match=said):
        parse_config("", overrides)


LEARNED = ["network.model=learned", "learner.unroll_steps=5"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["network.model=learned"], "needs learner.unroll_steps of at least 1"),
        (["learner.unroll_steps=5"], "learner.unroll_steps 5 needs network.model"),
        (["learner.consistency_loss_weight=1"], "learner.consistency_loss_weight needs network.model"),
        (
            [*LEARNED, "search.root_policy=puct", "search.reuse_subtree=true"],
            "search.reuse_subtree needs network.model",
        ),
        ([*LEARNED, "search.chance_draws=2"], "search.chance_draws above 1 needs network.model"),
    ],
)
def test_a_learned_model_is_learned_and_asked(overrides: list[str], said: str) -> None:
    """Network, search and unroll belong together, and the text says why."""
    parse_config("", LEARNED)
    with pytest.raises(ConfigError, match=said):
        parse_config("", overrides)


def test_uncoupled_tables_need_no_buffer() -> None:
    """Without samples per insert nothing limits the size of a call."""
    assert parse_config("", ["replay.samples_per_insert=0", "replay.error_buffer=1"]).replay.error_buffer == 1


def test_a_config_cannot_be_changed() -> None:
    """What was checked stays as it was checked."""
    with pytest.raises(ValidationError):
        ExperimentConfig().seed = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_json_round_trip() -> None:
    """A config survives the way to another process."""
    config = parse_config("", ["search.num_simulations=7"])
    assert ExperimentConfig.model_validate(config.model_dump(mode="json")) == config
