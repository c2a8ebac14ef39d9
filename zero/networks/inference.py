"""Network inference on NumPy arrays, in the dtype that is fastest on this processor."""

import copy
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zero.networks.residual import NetworkOutput, ResidualNetwork
from zero.networks.winograd_network import WinogradNetwork

DTYPES = (torch.float32, torch.bfloat16)
"""What a network may play in; its outputs and everything in the search stay float32."""


class _Predict(Protocol):
    def __call__(self, encoded: Tensor) -> NetworkOutput:
        """Predictions for encoded observations [B, E]."""
        ...


class InferenceNetwork:
    """A network's copy for play: evaluates encoded observations without gradients.

    In float32 the convolutions are Winograd's, compiled; in other dtypes they are PyTorch's.

    Args:
        network: the network to copy.
        dtype: the element type to compute in.
    """

    def __init__(self, network: ResidualNetwork, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        copied = copy.deepcopy(network).eval().requires_grad_(False)
        self._support = copy.deepcopy(network.support)
        self._predict: _Predict = WinogradNetwork(copied) if dtype == torch.float32 else copied.to(dtype)

    def __call__(self, encoded: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Policy logits [B, A] and values [B] in real scale, both float32, for encoded observations [B, E]."""
        with torch.inference_mode():
            output = self._predict(torch.from_numpy(encoded).to(self.dtype))
            values = self._support.expectation(output.value_logits)
            return output.policy_logits.float().numpy(), values.numpy()


def fastest_dtype(
    network: ResidualNetwork, batch_size: int, clock: Callable[[], float], rounds: int = 8
) -> torch.dtype:
    """The dtype of DTYPES with the highest throughput here, by a measurement of well under a second.

    Args:
        network: what will be evaluated.
        batch_size: observations per call.
        clock: seconds, for example time.perf_counter.
        rounds: timed calls per dtype; the fastest one counts.
    """
    encoded = np.zeros((batch_size, network.encoded_size), np.float32)
    best: dict[torch.dtype, float] = {}
    for dtype in DTYPES:
        evaluate = InferenceNetwork(network, dtype)
        evaluate(encoded)
        times: list[float] = []
        for _ in range(rounds):
            start = clock()
            evaluate(encoded)
            times.append(clock() - start)
        best[dtype] = min(times)
    return min(best, key=lambda dtype: best[dtype])
