"""The best weights are those that scored highest by one measure, whole at any moment, also after a restart."""

from pathlib import Path

import numpy as np
import pytest

from actors.best_weights import MANIFEST, BestWeights, BestWeightsError, Candidate, read_best
from actors.evaluation import EvaluationScore
from zero.config import ExperimentConfig, parse_config

CONFIG = parse_config("", ["game.name=tic_tac_toe"])
BASELINES = ("random", "perfect")


def score(mean: float) -> EvaluationScore:
    return EvaluationScore(mean, 0.5, mean, 4, 0, 0)


def candidate(step: int) -> Candidate:
    return Candidate(f"weights of step {step}".encode(), step, step // 10)


def kept(folder: Path, config: ExperimentConfig = CONFIG) -> tuple[int, float, bytes]:
    """Training step, score and content of what a fresh reader finds."""
    found = read_best(folder, config)
    assert found is not None
    return found[0].training_step, found[0].score, found[1]


def test_only_a_higher_score_replaces_the_best(tmp_path: Path) -> None:
    """Whatever the order; also in a process that knows the best from its files alone."""
    best = BestWeights(tmp_path / "best", CONFIG, BASELINES)
    assert best.manifest is None
    taken = [best.offer(candidate(step), score(mean)) for step, mean in ((10, -1.0), (20, 0.5), (30, 0.25), (40, 0.5))]
    assert taken == [True, True, False, False]
    assert kept(tmp_path / "best") == (20, 0.5, b"weights of step 20")
    resumed = BestWeights(tmp_path / "best", CONFIG, BASELINES)
    assert not resumed.offer(candidate(50), score(0.4))
    assert kept(tmp_path / "best") == (20, 0.5, b"weights of step 20")
    assert resumed.offer(candidate(60), score(0.6))
    assert kept(tmp_path / "best") == (60, 0.6, b"weights of step 60")
    assert len(list((tmp_path / "best").iterdir())) == 2


@pytest.mark.parametrize("writes", [0, 1])
def test_a_crash_in_the_middle_leaves_the_earlier_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Before the weights are written, and between them and what makes them count; the next offer tidies up."""
    best = BestWeights(tmp_path, CONFIG, BASELINES)
    best.offer(candidate(10), score(1))
    replace, done = Path.replace, []

    def crash(path: Path, target: Path) -> Path:
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(target)
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            best.offer(candidate(20), score(2))
    assert kept(tmp_path) == (10, 1, b"weights of step 10")
    BestWeights(tmp_path, CONFIG, BASELINES).offer(candidate(30), score(3))
    assert kept(tmp_path) == (30, 3, b"weights of step 30")
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    ("changed", "baselines"),
    [
        ("search.num_simulations=3", BASELINES),
        ("evaluation.num_games=5", BASELINES),
        ("evaluation.seed=5", BASELINES),
        ("discount=0.5", BASELINES),
        ("self_play.max_moves=5", BASELINES),
        ("seed=0", ("random",)),
    ],
)
def test_scores_by_another_measure_do_not_compare(tmp_path: Path, changed: str, baselines: tuple[str, ...]) -> None:
    """What was kept is handed out to be measured again, and stays until something has a score of today."""
    BestWeights(tmp_path, CONFIG, BASELINES).offer(candidate(10), score(100))
    config = parse_config("", ["game.name=tic_tac_toe", changed])
    best = BestWeights(tmp_path, config, baselines)
    assert best.manifest is None
    assert best.outdated == candidate(10)
    assert kept(tmp_path, config)[0] == 10
    assert best.offer(best.outdated, score(-3))
    assert best.outdated is None
    assert not best.offer(candidate(20), score(-4))
    assert kept(tmp_path, config)[:2] == (10, -3)


def test_what_does_not_touch_the_score_may_change(tmp_path: Path) -> None:
    """More figures beside it, another pace of learning."""
    BestWeights(tmp_path, CONFIG, BASELINES).offer(candidate(10), score(1))
    changed = ["evaluation.simulations=[4]", "evaluation.interval_seconds=9", "learner.batch_size=8"]
    best = BestWeights(tmp_path, parse_config("", ["game.name=tic_tac_toe", *changed]), BASELINES)
    assert best.manifest is not None
    assert best.outdated is None


def test_what_is_damaged_or_of_another_network_is_refused_in_one_line(tmp_path: Path) -> None:
    """Neither overwritten nor taken for nothing."""
    BestWeights(tmp_path, CONFIG, BASELINES).offer(candidate(10), score(1))
    other = parse_config("", ["game.name=tic_tac_toe", "network.blocks=7"])
    with pytest.raises(BestWeightsError, match=r"were made with network.blocks 2, the config says 7; use the run's"):
        BestWeights(tmp_path, other, BASELINES)
    (weights,) = tmp_path.glob("*.safetensors")
    weights.write_bytes(b"other")
    with pytest.raises(BestWeightsError, match=r"does not match its sha256; restore"):
        BestWeights(tmp_path, CONFIG, BASELINES)
    weights.unlink()
    with pytest.raises(BestWeightsError, match=r"\.safetensors is missing; restore the folder, or remove it"):
        BestWeights(tmp_path, CONFIG, BASELINES)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(BestWeightsError, match=r"best.json is damaged") as caught:
        BestWeights(tmp_path, CONFIG, BASELINES)
    assert "\n" not in str(caught.value)
    assert read_best(tmp_path / "nowhere", CONFIG) is None


def test_the_score_is_kept_with_its_error(tmp_path: Path) -> None:
    """As the evaluation gave it."""
    result = EvaluationScore.of(np.array([1.0, 0.0, 0.0, 1.0]))
    best = BestWeights(tmp_path, CONFIG, BASELINES)
    best.offer(candidate(10), result)
    assert best.manifest is not None
    assert (best.manifest.score, best.manifest.standard_error) == (result.mean, result.standard_error)
    assert (best.manifest.training_step, best.manifest.weights_version) == (10, 1)
