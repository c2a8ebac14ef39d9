"""Runs with fresh weights, for tests of what serves them."""

from pathlib import Path

import numpy as np

from actors.best_weights import BestWeights, Candidate
from actors.evaluation import EvaluationScore
from deploy.experiment_files import load_experiment
from deploy.run_folder import RunFolder, open_or_create_run_folder
from learner.checkpoint import Checkpoint, CheckpointStore
from zero.games.registry import make_game
from zero.networks.make_network import make_network
from zero.networks.weights import weights_to_bytes

SMALL = ["network.channels=4", "network.blocks=1", "search.num_simulations=4", "search.max_num_considered_actions=4"]


def fresh_weights(folder: RunFolder, seed: int) -> bytes:
    config = folder.config()
    return weights_to_bytes(make_network(make_game(config.game.name, config.game.options), config.network, seed))


def save_checkpoint(folder: RunFolder, training_step: int) -> None:
    """A newer checkpoint, of other weights."""
    checkpoint = Checkpoint(training_step, fresh_weights(folder, training_step), {})
    CheckpointStore(folder.checkpoints).save(checkpoint, folder.config())


def offer_best(folder: RunFolder, training_step: int, score: float) -> None:
    """What an evaluator does with weights that it measured."""
    candidate = Candidate(fresh_weights(folder, training_step), training_step, training_step)
    BestWeights(folder.best, folder.config(), ["random"]).offer(candidate, EvaluationScore.of(np.full(2, score)))


def make_run(path: Path, experiment: str, training_step: int = 7) -> RunFolder:
    """A run of a built-in experiment with a checkpoint."""
    folder = open_or_create_run_folder(path, load_experiment(experiment, SMALL))
    save_checkpoint(folder, training_step)
    return folder
