"""States of the generators of the whole process, so that a learner goes on with the numbers that would have come."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor


class GeneratorRecord(BaseModel):
    """What of the states is no array.

    Attributes:
        python_version: of the state of Python's `random`.
        python_gauss: its held-back normal number, if any.
        numpy_position: where NumPy's old generator stands in its words.
        numpy_has_gauss: whether it holds a normal number back.
        numpy_gauss: which.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    python_version: int
    python_gauss: float | None
    numpy_position: int
    numpy_has_gauss: int
    numpy_gauss: float


@dataclass(frozen=True)
class GeneratorStates:
    """Of Python's `random`, NumPy's old functions and PyTorch, on the CPU and all GPUs.

    Attributes:
        record: what is no array.
        arrays: the rest, by name.
    """

    record: GeneratorRecord
    arrays: dict[str, NDArray[np.generic]]


def generator_states() -> GeneratorStates:
    """Those of this process now."""
    version, python_words, python_gauss = random.getstate()
    # The old generator is that of Mersenne: its state is a tuple, whatever newer stubs say.
    name, words, position, has_gauss, gauss = np.random.get_state()  # pyright: ignore[reportAssignmentType]
    if name != "MT19937":
        raise RuntimeError(f"NumPy's old generator is {name}, not MT19937")
    arrays: dict[str, NDArray[Any]] = {
        "python": np.array(python_words, np.uint32),
        "numpy": np.array(words, np.uint32),
        "torch": torch.get_rng_state().numpy().copy(),
    }
    if torch.cuda.is_available():
        arrays |= {f"cuda.{i}": state.numpy().copy() for i, state in enumerate(torch.cuda.get_rng_state_all())}
    record = GeneratorRecord(
        python_version=version,
        python_gauss=python_gauss,
        numpy_position=int(position),
        numpy_has_gauss=int(has_gauss),
        numpy_gauss=float(gauss),
    )
    return GeneratorStates(record, arrays)


def restore_generators(states: GeneratorStates) -> None:
    """Let this process go on from there; GPUs that were not there then keep their state."""
    record, arrays = states.record, states.arrays
    random.setstate((record.python_version, tuple(arrays["python"].tolist()), record.python_gauss))
    np.random.set_state(
        (
            "MT19937",
            arrays["numpy"].astype(np.uint32),
            record.numpy_position,
            record.numpy_has_gauss,
            record.numpy_gauss,
        )
    )
    torch.set_rng_state(_bytes(arrays["torch"]))
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"cuda.{i}" in arrays:
                torch.cuda.set_rng_state(_bytes(arrays[f"cuda.{i}"]), i)


def _bytes(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.array(array, np.uint8))
