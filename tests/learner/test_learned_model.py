"""A learned model becomes exact where everything is known: actions, rewards, values and ends are aligned."""

from itertools import product

import numpy as np
import pytest
import torch

from learner.batches import unrolled_targets
from learner.learner import Learner
from learner.losses import TrainingBatch
from tests.ring import DISCOUNT, LAST, LIKELY, SIZE, VALUES, Ring, following
from zero.config import ExperimentConfig, parse_config
from zero.games.contract import check_game
from zero.games.game import Game
from zero.networks.inference import InferenceModel, make_inference
from zero.networks.learned import LearnedModelNetwork
from zero.self_play_table import NO_CODE
from zero.trajectories import SequenceBatch

UNROLL_STEPS = 3
CONFIG = parse_config(
    "",
    [
        f"discount={DISCOUNT}",
        "network.model=learned",
        "network.channels=32",
        "network.blocks=1",
        "network.support_min=-2",
        "network.support_max=2",
        "network.support_size=5",
        "network.value_transform=false",
        f"learner.unroll_steps={UNROLL_STEPS}",
        "learner.td_steps=2",
        "learner.td_lambda=0.5",
        "learner.learning_rate=0.01",
        "learner.schedule_steps=250",
        "learner.weight_decay=0",
    ],
)


def favourite(number: int) -> int:
    """The action that the recorded policies prefer, nine times to one."""
    return number // 2 % 2


def walks(game: Ring, count: int, length: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Columns [count, length, ...] of random walks; zeros after the end, as `lengths` [count] says."""
    columns = {
        "observation": np.zeros((count, length, 1), np.uint64),
        "action": np.zeros((count, length), np.uint16),
        "reward": np.zeros((count, length), np.float32),
        "discount": np.zeros((count, length), np.float32),
        "search_policy": np.zeros((count, length, 2), np.float16),
        "search_value": np.zeros((count, length), np.float32),
        "chance_code": np.zeros((count, length, 1), np.uint8),
        "lengths": np.zeros(count, np.int32),
    }
    states = rng.integers(0, SIZE, (count, 1)).astype(np.uint64)
    for step in range(length):
        running = ~game.terminated(states)
        actions = rng.integers(0, 2, count)
        applied, outcomes = game.apply(states, actions), game.draw_chance(rng, count)
        stepped = game.settle(applied, outcomes)
        numbers = np.where(running, states[:, 0] & np.uint64(0xFF), 0).astype(np.int64)
        codes = np.where(applied.chance_pending[:, None], game.chance_codes(applied.states, outcomes), NO_CODE)
        preferred = np.array([favourite(number) for number in numbers])[:, None] == np.arange(2)
        row = {
            "observation": states,
            "action": actions,
            "reward": stepped.rewards,
            "discount": np.where(stepped.terminated, 0, 1 if game.num_players == 1 else -1),
            "search_policy": np.where(preferred, 0.9, 0.1),
            "search_value": VALUES[numbers],
            "chance_code": codes if game.chance_size else np.zeros((count, 1)),
        }
        for name, values in row.items():
            columns[name][running, step] = values[running]
        columns["lengths"] += running
        states = stepped.states
    return columns


def draw(learner: Learner, game: Ring, rng: np.random.Generator, count: int = 128) -> TrainingBatch:
    """A training batch of windows, as the replay server gives them."""
    windows = learner.windows()
    columns = walks(game, count, max(windows.values()), rng)
    return learner.prepare(
        SequenceBatch(
            {name: columns[name][:, :length] for name, length in windows.items()},
            keys=rng.integers(0, 2**60, count).astype(np.uint64),
            probabilities=np.full(count, 1e-3),
            lengths=columns["lengths"],
            weights_versions=np.ones(count, np.uint64),
            terminated=np.zeros(count, np.bool_),
            table_size=1000,
        )
    )


def learned(game: Ring, steps: int, config: ExperimentConfig = CONFIG) -> InferenceModel:
    """The model after some training."""
    torch.set_num_threads(1)
    learner = Learner(config, game, torch.device("cpu"))
    rng = np.random.default_rng(0)
    for _ in range(steps):
        learner.train(draw(learner, game, rng))
    model = make_inference(learner.network)
    assert isinstance(model, InferenceModel)
    return model


def encoded(game: Game, number: int) -> np.ndarray:
    """One number as the network sees it."""
    return game.encode(np.array([[number]], np.uint64))


def assert_foreseen(model: InferenceModel, latents: np.ndarray, number: int | None, within: float = 0.08) -> None:
    """Value and policy are those of a number; None for a game that is over."""
    logits, values = model.predict(latents)
    assert values[0] == pytest.approx(0 if number is None else VALUES[number], abs=within)
    if number is not None:
        policy = np.exp(logits[0]) / np.exp(logits[0]).sum()
        assert policy[favourite(number)] == pytest.approx(0.9, abs=within)


def test_the_ring_is_a_game() -> None:
    """What the model is trained on keeps the contract."""
    for game in (
        Ring(),
        Ring(is_random=True),
        Ring(is_random=True, ends=True, pays_after_chance=False),
        Ring(ends=True, num_players=2),
    ):
        check_game(game, max_moves=20)


@pytest.mark.parametrize("num_players", [1, 2])
def test_a_model_of_known_dynamics_becomes_exact(num_players: int) -> None:
    """After every sequence of actions from every number: the reward of the last one, and value and policy where it led.

    Returns are the same whatever is played, so a target that takes reward, value, policy or action from a neighbouring
    step, or a value with the sign of the other player, contradicts the rest, and nothing could be exact. After the end
    of the game everything is 0.
    """
    game = Ring(ends=True, num_players=num_players)
    model = learned(game, 260)
    for start in range(SIZE):
        for actions in product(range(2), repeat=UNROLL_STEPS):
            latents, number = model.represent(encoded(game, start)), start
            assert_foreseen(model, latents, number)
            for action in actions:
                reward = 0.0
                if number is not None:
                    over = number == LAST and action == 0
                    led = None if over else following(number, action, 0)
                    reward = VALUES[number] - (0 if led is None else game.signed_discount * VALUES[led])
                    number = led
                latents, rewards = model.foresee(latents, np.array([action]))
                assert rewards[0] == pytest.approx(reward, abs=0.08)
                assert_foreseen(model, latents, number)


def test_chance_is_foreseen_as_chance() -> None:
    """Chance follows action 1 alone, with its probabilities; outcomes lead to their own numbers, rewards are means."""
    game = Ring(is_random=True)
    model = learned(game, 320)
    for start, action in product(range(SIZE), range(2)):
        afterstates, rewards = model.foresee(model.represent(encoded(game, start)), np.array([action]))
        follows, (probabilities,) = model.expect_chance(afterstates)
        assert follows[0] == pytest.approx(action, abs=0.1)
        likely, unlikely = following(start, action, 0), following(start, action, 1)
        if action == 0:
            assert rewards[0] == pytest.approx(VALUES[start] - DISCOUNT * VALUES[likely], abs=0.12)
            assert_foreseen(model, afterstates, likely)
            continue
        assert probabilities[0, 0] == pytest.approx(LIKELY, abs=0.12)
        mean_value = LIKELY * VALUES[likely] + (1 - LIKELY) * VALUES[unlikely]
        assert rewards[0] == pytest.approx(VALUES[start] - DISCOUNT * mean_value, abs=0.2)
        for code, number in enumerate((likely, unlikely)):
            assert_foreseen(model, model.resolve(afterstates, np.array([[code]])), number, 0.15)


def test_every_function_gets_a_gradient() -> None:
    """Representation, dynamics, reward, chance, its resolution and prediction: every parameter is pulled at."""
    game = Ring(is_random=True)
    learner = Learner(CONFIG, game, torch.device("cpu"))
    rng = np.random.default_rng(0)
    for _ in range(3):  # the layers that start at zero let nothing through at first
        learner.train(draw(learner, game, rng))
    for name, parameter in learner.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("is_random", [False, True])
def test_what_is_foreseen_is_compared_with_what_followed(is_random: bool) -> None:
    """The loss of consistency takes the position after every action and chance, as far as the game went."""
    game = Ring(ends=True, is_random=is_random)
    config = ExperimentConfig.model_validate(
        CONFIG.model_dump() | {"learner": CONFIG.learner.model_dump() | {"consistency_loss_weight": 1.0}}
    )
    learner = Learner(config, game, torch.device("cpu"))
    batch = draw(learner, game, np.random.default_rng(0))
    assert batch.encoded_later is not None
    inside = batch.is_inside[:, 1:] == 1
    assert 0 < int(inside.sum()) < inside.numel()
    numbers = batch.encoded_later.argmax(-1)
    favourites = torch.tensor([favourite(number) for number in range(SIZE)])
    assert torch.equal(favourites[numbers][inside], batch.target_policy[:, 1:].argmax(-1)[inside])
    if not is_random:  # else the returns are their values in the mean
        assert torch.allclose(torch.from_numpy(VALUES).float()[numbers][inside], batch.target_value[:, 1:][inside])
    with torch.no_grad():
        foreseen = learner.network.unroll(batch.encoded, batch.actions, batch.chance_codes).latents[:, 1:][inside]
        real = learner.network.trunk(batch.encoded_later[inside])
    cosines = torch.nn.functional.cosine_similarity(foreseen.flatten(1), real.flatten(1))
    assert float(learner.loss(batch).consistency) == pytest.approx(1 - float(cosines.mean()), abs=1e-5)


def test_the_dynamics_sends_half_of_the_gradient_back() -> None:
    """What the second action pulls at the representation is a quarter of what it would be."""
    network = Learner(CONFIG, Ring(), torch.device("cpu")).network
    assert isinstance(network, LearnedModelNetwork)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    inputs = torch.from_numpy(encoded(Ring(), 3))
    scaled, plain = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    actions = torch.tensor([[1, 0]])
    network.unroll(scaled, actions, torch.zeros(1, 2, 0, dtype=torch.int64)).value_logits[:, 2, 0].sum().backward()
    latents = network.trunk(plain)
    for step in range(2):
        latents, _ = network.foresee(latents, actions[:, step])
    network.predict(latents, latents[:, :0, 0, 0]).value_logits[:, 0].sum().backward()
    assert scaled.grad is not None
    assert plain.grad is not None
    assert plain.grad.abs().sum() > 0
    torch.testing.assert_close(scaled.grad, plain.grad / 4)


@pytest.mark.parametrize("td_lambda", [0.0, 0.7, 1.0])
def test_unrolled_targets_equal_a_naive_computation(td_lambda: float) -> None:
    """Position by position: a return over a window of its own inside the game, 0 after its end, unknown if cut off."""
    rng = np.random.default_rng(0)
    count, unroll_steps, horizon = 300, 4, 3
    length = unroll_steps + horizon
    rewards, values = (rng.normal(size=(count, length)).astype(np.float32) for _ in range(2))
    discounts = rng.choice([0.9, -0.9], size=(count, length)).astype(np.float32)
    lengths = rng.integers(1, 2 * length, count).astype(np.int32)
    for row in range(count):
        if lengths[row] <= length and rng.random() < 0.6:
            discounts[row, lengths[row] - 1] = 0
        for column in (rewards, values, discounts):
            column[row, lengths[row] :] = 0
    targets = unrolled_targets(rewards, discounts, values, lengths, unroll_steps, td_lambda)

    def naive_value(row: int, step: int, left: int) -> float:
        if left == 0 or step == lengths[row] - 1:
            return rewards[row, step] if discounts[row, step] == 0 else values[row, step]
        rest = (1 - td_lambda) * values[row, step + 1] + td_lambda * naive_value(row, step + 1, left - 1)
        return rewards[row, step] + discounts[row, step] * rest

    for row in range(count):
        end = min(int(lengths[row]), length)
        ended = discounts[row, end - 1] == 0
        for position in range(unroll_steps + 1):
            inside = position < lengths[row]
            expected = naive_value(row, position, horizon - 1) if inside else 0
            assert targets.values[row, position] == pytest.approx(expected, abs=1e-5)
            assert targets.is_known[row, position] == (inside or ended)
            assert targets.is_inside[row, position] == inside
            if position < unroll_steps:
                assert targets.rewards[row, position] == (rewards[row, position] if inside else 0)


def test_after_the_end_any_action_is_tried_and_nothing_is_shown() -> None:
    """Actions beyond the end are spread over all, the same for the same batch; there are no codes and no policy."""
    game = Ring(is_random=True, ends=True)
    learner = Learner(CONFIG, game, torch.device("cpu"))
    first, again = (draw(learner, game, np.random.default_rng(1), 2000) for _ in range(2))
    assert torch.equal(first.actions, again.actions)
    beyond = (first.target_policy[:, :-1].sum(-1) == 0) & (first.is_known[:, :-1] == 1)
    assert int(beyond.sum()) > 100
    assert first.actions[beyond].float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert (first.chance_codes[beyond] == -1).all()
    assert (first.target_value[:, :-1][beyond] == 0).all()
    shown = (first.chance_codes >= 0).all(-1)
    assert torch.equal(shown, (first.actions == 1) & ~beyond)
