"""Network inference on NumPy arrays, in the dtype that is fastest on this processor."""

import copy
from collections.abc import Callable
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zero.networks.learned import LearnedModelNetwork
from zero.networks.residual import NetworkOutput, ResidualNetwork
from zero.networks.winograd_model import WinogradModel
from zero.networks.winograd_network import WinogradNetwork

DTYPES = (torch.float32, torch.bfloat16)
"""What a network may play in; its outputs and everything in the search stay float32."""

Floats = NDArray[np.float32]


class _Predict(Protocol):
    def __call__(self, encoded: Tensor) -> NetworkOutput:
        """Predictions for encoded observations [B, E]."""
        ...


class _Model(Protocol):
    """The functions of a learned model on rows of latents, [B, size]."""

    def represent(self, encoded: Tensor) -> Tensor: ...

    def foresee(self, latents: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]: ...

    def expect_chance(self, latents: Tensor) -> Tensor: ...

    def resolve(self, afterstates: Tensor, codes: Tensor) -> Tensor: ...

    def predict(self, latents: Tensor) -> NetworkOutput: ...


class InferenceNetwork:
    """A network's copy for play: evaluates encoded observations without gradients.

    In float32 on a CPU the convolutions are Winograd's, compiled; elsewhere they are PyTorch's.

    Attributes:
        evaluations: names of the methods in which the network is evaluated.

    Args:
        network: the network to copy.
        dtype: the element type to compute in.
        device: where, "cpu" or "cuda".
    """

    evaluations: ClassVar[tuple[str, ...]] = ("evaluate",)

    def __init__(self, network: ResidualNetwork, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.dtype = dtype
        self._device = device
        self._support = copy.deepcopy(network.support).to(device)
        self._predict = self._make_predict(copy.deepcopy(network).eval().requires_grad_(False))

    def _make_predict(self, network: ResidualNetwork) -> _Predict:
        if self.dtype == torch.float32 and self._device == "cpu":
            return WinogradNetwork(network)
        return network.to(self._device, self.dtype)

    def __call__(self, encoded: Floats) -> tuple[Floats, Floats]:
        """Policy logits [B, A] and values [B] in real scale, both float32, for encoded observations [B, E]."""
        return self.evaluate(encoded)

    def evaluate(self, encoded: Floats) -> tuple[Floats, Floats]:
        """As when called."""
        with torch.inference_mode():
            return self._numbers(self._predict(torch.from_numpy(encoded).to(self._device, self.dtype)))

    def _numbers(self, output: NetworkOutput) -> tuple[Floats, Floats]:
        values = self._support.expectation(output.value_logits)
        return output.policy_logits.float().cpu().numpy(), values.cpu().numpy()


class InferenceModel(InferenceNetwork):
    """A copy for play of a network with a learned model, whose latents are rows [B, size] of float32."""

    evaluations: ClassVar[tuple[str, ...]] = ("evaluate", "represent", "foresee", "expect_chance", "resolve", "predict")

    def __init__(self, network: LearnedModelNetwork, dtype: torch.dtype = torch.float32) -> None:
        self._network = copy.deepcopy(network).eval().requires_grad_(False).to(dtype)
        self._model: _Model = (
            WinogradModel(self._network) if dtype == torch.float32 else _PyTorchModel(self._network, dtype)
        )
        super().__init__(network, dtype)

    def _make_predict(self, network: ResidualNetwork) -> _Predict:
        del network
        return lambda encoded: self._model.predict(self._model.represent(encoded))

    def represent(self, encoded: Floats) -> Floats:
        """Latents of encoded observations [B, E]."""
        with torch.inference_mode():
            return self._model.represent(torch.from_numpy(encoded).to(self.dtype)).numpy()

    def foresee(self, latents: Floats, actions: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Latents [B, size] after actions [B] but before chance, and rewards [B] in real scale."""
        with torch.inference_mode():
            following, reward_logits = self._model.foresee(torch.from_numpy(latents), torch.from_numpy(actions))
            return following.numpy(), self._support.expectation(reward_logits).numpy()

    def expect_chance(self, latents: Floats) -> tuple[Floats, tuple[Floats, ...]]:
        """The probability [B] that chance follows, and those of every part's codes, [B, size of the part]."""
        with torch.inference_mode():
            logits = self._model.expect_chance(torch.from_numpy(latents)).float()
            parts = self._network.code_logits(logits)
            return logits[:, -1].sigmoid().numpy(), tuple(part.softmax(-1).numpy() for part in parts)

    def resolve(self, afterstates: Floats, codes: NDArray[np.int64]) -> Floats:
        """Latents of afterstates after outcomes with codes [B, parts]."""
        with torch.inference_mode():
            return self._model.resolve(torch.from_numpy(afterstates), torch.from_numpy(codes)).numpy()

    def predict(self, latents: Floats) -> tuple[Floats, Floats]:
        """Policy logits [B, A] and values [B] in real scale of latents."""
        with torch.inference_mode():
            return self._numbers(self._model.predict(torch.from_numpy(latents)))


class _PyTorchModel:
    """The learned model as PyTorch computes it in any dtype; between its functions latents are rows of float32."""

    def __init__(self, network: LearnedModelNetwork, dtype: torch.dtype) -> None:
        self._network = network
        self._dtype = dtype
        self._shape = (network.stem.out_channels, *network.planes_shape[1:])

    def represent(self, encoded: Tensor) -> Tensor:
        return self._rows(self._network.trunk(encoded))

    def foresee(self, latents: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        following, reward_logits = self._network.foresee(self._planes(latents), actions)
        return self._rows(following), reward_logits

    def expect_chance(self, latents: Tensor) -> Tensor:
        return self._network.expect_chance(self._planes(latents))

    def resolve(self, afterstates: Tensor, codes: Tensor) -> Tensor:
        return self._rows(self._network.resolve(self._planes(afterstates), codes))

    def predict(self, latents: Tensor) -> NetworkOutput:
        return self._network.predict(self._planes(latents), latents[:, :0].to(self._dtype))

    def _rows(self, planes: Tensor) -> Tensor:
        return planes.float().permute(0, 2, 3, 1).flatten(1)

    def _planes(self, rows: Tensor) -> Tensor:
        channels, height, width = self._shape
        return rows.view(-1, height, width, channels).permute(0, 3, 1, 2).to(self._dtype)


def make_inference(
    network: ResidualNetwork, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> InferenceNetwork:
    """A network's copy for play, of the kind that the network is.

    Raises:
        ValueError: a learned model elsewhere than on a CPU.
    """
    if not isinstance(network, LearnedModelNetwork):
        return InferenceNetwork(network, dtype, device)
    if device != "cpu":
        raise ValueError(f"a learned model is searched on a CPU, not on {device}")
    return InferenceModel(network, dtype)


def fastest_dtype(
    network: ResidualNetwork,
    batch_size: int,
    clock: Callable[[], float],
    rounds: int = 8,
    device: str = "cpu",
) -> torch.dtype:
    """The dtype of DTYPES with the highest throughput here, by a measurement of well under a second.

    Args:
        network: what will be evaluated.
        batch_size: observations per call.
        clock: seconds, for example time.perf_counter.
        rounds: timed calls per dtype; the fastest one counts.
        device: as of `make_inference`.
    """
    encoded = np.zeros((batch_size, network.encoded_size), np.float32)
    best: dict[torch.dtype, float] = {}
    for dtype in DTYPES:
        evaluate = make_inference(network, dtype, device)
        evaluate(encoded)
        times: list[float] = []
        for _ in range(rounds):
            start = clock()
            evaluate(encoded)
            times.append(clock() - start)
        best[dtype] = min(times)
    return min(best, key=lambda dtype: best[dtype])
