"""Exports a trained network: weights, a program, ONNX, and a card that says what it is."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from actors.best_weights import read_best
from deploy.errors import BAD_INPUT, DeployError
from deploy.roles import check_experiment
from deploy.run_folder import RunFolder
from deploy.run_weights import RunWeights, WhichWeights, read_weights
from zero.config import ExperimentConfig
from zero.games.game import Game
from zero.games.registry import make_game
from zero.networks.make_network import make_network
from zero.networks.residual import ResidualNetwork
from zero.networks.weights import load_weights

FORMATS = ("safetensors", "torch", "onnx")
FILES = {"safetensors": "model.safetensors", "torch": "model.pt2", "onnx": "model.onnx"}
CARD = "README.md"
CHECKED_BATCHES = (2, 1, 7)
TOLERANCE = 1e-4
MAX_BATCH = 4096


class Predictor(nn.Module):
    """What is exported: encoded observations in, policy logits and values in real scale out.

    Args:
        network: as `make_network` makes it; of one with a learned model its view of real positions.
    """

    def __init__(self, network: ResidualNetwork) -> None:
        super().__init__()
        self.network: ResidualNetwork = network

    def forward(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, A] and values [B] of encoded observations [B, E]."""
        output = self.network(encoded)
        return output.policy_logits, self.network.support.expectation(output.value_logits)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: that holds it.
        files: names in it.
        training_step: optimizer updates of the weights.
        deviation: the largest difference of any format's outputs from PyTorch's, on random positions.
    """

    folder: Path
    files: tuple[str, ...]
    training_step: int
    deviation: float


def export_run(run_dir: Path, output: Path | None, formats: Sequence[str], which: WhichWeights) -> Exported:
    """Export a run's network and check every format against PyTorch on positions of random games.

    Args:
        run_dir: the run's folder.
        output: folder to write to; None for `exports/step-N` in the run's.
        formats: out of FORMATS.
        which: weights of the run.

    Raises:
        DeployError: no run, no such weights, a library that is missing, or a format that computes something else.
    """
    _refuse_formats(formats)
    folder = RunFolder(run_dir.absolute())
    config = folder.config()
    check_experiment(config)
    weights = read_weights(folder, config, which)
    game = make_game(config.game.name, config.game.options)
    network = make_network(game, config.network, config.seed)
    load_weights(network, weights.payload)
    predictor = Predictor(network.eval()).requires_grad_(False)
    target = output or folder.path / "exports" / f"step-{weights.training_step:09d}"
    target.mkdir(parents=True, exist_ok=True)
    deviation = _write(predictor, game, weights, target, formats)
    files = tuple(FILES[name] for name in formats)
    (target / CARD).write_text(_card(folder, config, game, weights, which, target, files), encoding="utf-8")
    return Exported(target, (*files, CARD), weights.training_step, deviation)


def _refuse_formats(formats: Sequence[str]) -> None:
    from deploy.statistics.run_statistics import is_installed  # noqa: PLC0415

    for name in formats:
        if name not in FORMATS:
            raise DeployError(f"there is no format {name!r}; there are {', '.join(FORMATS)}", BAD_INPUT)
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if not is_installed(name)]
    if "onnx" in formats and missing:
        raise DeployError(f"{', '.join(missing)} not installed: pip install 'zero-selfplay[onnx]'", BAD_INPUT)


def _write(predictor: Predictor, game: Game, weights: RunWeights, target: Path, formats: Sequence[str]) -> float:
    """Write the formats; returns the largest deviation."""
    deviation = 0.0
    if "safetensors" in formats:
        (target / FILES["safetensors"]).write_bytes(weights.payload)
    if "torch" in formats or "onnx" in formats:
        example = torch.from_numpy(random_encodings(game, CHECKED_BATCHES[0], 0))
        program = torch.export.export(predictor, (example,), dynamic_shapes=({0: Dim("batch", min=1, max=MAX_BATCH)},))
        if "torch" in formats:
            torch.export.save(program, target / FILES["torch"])
            deviation = max(deviation, _check_torch(predictor, game, target / FILES["torch"]))
        if "onnx" in formats:
            _save_onnx(program, target / FILES["onnx"])
            deviation = max(deviation, _check_onnx(predictor, game, target / FILES["onnx"]))
    return deviation


def _save_onnx(program: ExportedProgram, path: Path) -> None:
    exported = torch.onnx.export(
        program,
        input_names=["encoded"],
        output_names=["policy_logits", "value"],
        dynamo=True,
        verbose=False,
    )
    if exported is None:
        raise DeployError("PyTorch made no ONNX program of this network")
    exported.save(path)


def _check_torch(predictor: Predictor, game: Game, path: Path) -> float:
    module = torch.export.load(path).module()
    return max(
        _deviation(predictor, encoded, [part.numpy() for part in module(torch.from_numpy(encoded))], path)
        for encoded in _checked_encodings(game)
    )


def _check_onnx(predictor: Predictor, game: Game, path: Path) -> float:
    import onnxruntime  # noqa: PLC0415 - an extra

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return max(
        _deviation(predictor, encoded, [np.asarray(part) for part in session.run(None, {"encoded": encoded})], path)
        for encoded in _checked_encodings(game)
    )


def _checked_encodings(game: Game) -> list[np.ndarray]:
    return [random_encodings(game, batch_size, seed) for seed, batch_size in enumerate(CHECKED_BATCHES, 1)]


def _deviation(predictor: Predictor, encoded: np.ndarray, outputs: Sequence[np.ndarray], path: Path) -> float:
    expected = predictor(torch.from_numpy(encoded))
    largest = max(float(np.abs(found - wanted.numpy()).max()) for found, wanted in zip(outputs, expected, strict=True))
    if not largest <= TOLERANCE * max(1.0, *(float(wanted.abs().max()) for wanted in expected)):
        raise DeployError(f"{path.name} computes something else than PyTorch: outputs differ by up to {largest:g}")
    return largest


def random_encodings(game: Game, batch_size: int, seed: int) -> np.ndarray:
    """Encoded observations, float32 [B, E], of games after a few random legal moves."""
    rng = np.random.default_rng(seed)
    states = game.initial(game.draw_chance(rng, batch_size))
    for _ in range(3):
        mask = game.legal_action_mask(states)
        scores = np.where(mask, rng.random(mask.shape), -1)
        after = game.step(states, scores.argmax(1), game.draw_chance(rng, batch_size)).states
        playing = ~game.terminated(after)
        states = np.where(playing[:, None], after, states)
    return game.encode(game.observation(states))


def _card(
    folder: RunFolder,
    config: ExperimentConfig,
    game: Game,
    weights: RunWeights,
    which: WhichWeights,
    target: Path,
    files: Sequence[str],
) -> str:
    """The model card, Markdown."""
    score = "not measured"
    best = read_best(folder.best, config)
    if best is not None and best[0].training_step == weights.training_step:
        score = f"{best[0].score:g}, the mean of its search over the fixed seeds of the evaluator"
    digests = "\n".join(
        f"| `{name}` | {len(payload := (target / name).read_bytes()):,} | `{hashlib.sha256(payload).hexdigest()}` |"
        for name in files
    )
    settings = json.dumps(config.model_dump(mode="json"), indent=1)
    return f"""# {config.name}, training step {weights.training_step:,}

A network that plays `{config.game.name}`, trained by self-play with Zero.

- **Game**: `{config.game.name}`, options `{json.dumps(config.game.options)}`; {game.num_players} player(s), \
{game.num_actions} actions.
- **Weights**: {which.value} of run `{folder.path.name}`, id `{folder.run_id()}`.
- **Score**: {score}.
- **Data**: games that the run played against itself, from nothing but the rules; a replay table of up to \
{config.replay.capacity:,} steps, drawn {config.replay.selector}; no other data.
- **Input** `encoded`: float32 [B, {game.encoded_size}], what `Game.encode` gives: planes \
{list(game.planes_shape)}, then {game.num_features} features.
- **Output**: `policy_logits`, float32 [B, {game.num_actions}], illegal actions not masked; `value`, float32 [B], the \
expected return of the player to move.

| file | bytes | sha256 |
|---|---|---|
{digests}

## Config

```json
{settings}
```
"""
