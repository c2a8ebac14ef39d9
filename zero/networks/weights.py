"""Weights as safetensors bytes and back."""

import safetensors
import safetensors.torch
import torch
from torch import nn


class WeightsMismatchError(ValueError):
    """Weights that do not fit the network; the text says where they differ."""


def weights_to_bytes(network: nn.Module) -> bytes:
    """The network's parameters as a safetensors file."""
    return safetensors.torch.save({name: value.contiguous() for name, value in network.state_dict().items()})


def load_weights(network: nn.Module, payload: bytes) -> None:
    """Copy weights into the network.

    Raises:
        WeightsMismatchError: not a safetensors file, or other names or shapes than the network's.
    """
    try:
        loaded = safetensors.torch.load(payload)
    except safetensors.SafetensorError as error:
        raise WeightsMismatchError(f"the weights are no safetensors file: {error}") from None
    own = network.state_dict()
    wrong = sorted(own.keys() ^ loaded.keys())
    wrong += sorted(name for name in own.keys() & loaded.keys() if own[name].shape != loaded[name].shape)
    if wrong:
        raise WeightsMismatchError(
            f"the weights are of another network: {', '.join(wrong[:3])} differ; "
            "use the experiment config that they were trained with"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(loaded[name])
