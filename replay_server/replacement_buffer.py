"""A sample of everything that ever came: a new one takes a random place, or none."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from replay_server.replacement import probability_of
from replay_server.state_file import StateError
from replay_server.stored_samples import StoredSamples, split_shape
from zero.trajectories import SequenceBatch

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")
V = TypeVar("V")


class RandomReplacementBuffer(StoredSamples[T, R]):
    """When full, refuses a new sample with probability 1 - p, else overwrites a slot, all equally likely.

    p is 1, or given as `replace_probability`, or by how long samples are to live, in samples that come:

    - `expected_survival_length`: until every slot has been replaced, by N / L x (ln N + 0.5772156649).
    - `turnover`: the same, exactly.
    - `mean_lifetime`: of one sample, N / L.

    With p = 0 the first `max_size` samples stay.

    Attributes:
        replace_probability: p.
    """

    kind = "RandomReplacementBuffer"

    @overload
    def __init__(
        self: "RandomReplacementBuffer[S, list[S]]",
        max_size: int,
        replace_probability: float | None = None,
        expected_survival_length: float | None = None,
        *,
        turnover: float | None = None,
        mean_lifetime: float | None = None,
        rng: np.random.Generator | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: "RandomReplacementBuffer[Mapping[str, Any], dict[str, list[Any]]]",
        collecting_data_names: Iterable[str],
        max_size: int,
        replace_probability: float | None = None,
        expected_survival_length: float | None = None,
        *,
        turnover: float | None = None,
        mean_lifetime: float | None = None,
        rng: np.random.Generator | None = None,
    ) -> None: ...

    def __init__(self, *given: Any, rng: np.random.Generator | None = None, **named: Any) -> None:
        """One of the four ways to say p, at most; `rng` draws, and None seeds one from the system.

        Warns:
            RuntimeWarning: so short a life cannot be reached, or p is 0 and samples wait without a bound.

        Raises:
            ValueError: more than one of them, or one out of range.
        """
        places = ("max_size", "replace_probability", "expected_survival_length")
        if given and not isinstance(given[0], int):
            places = ("collecting_data_names", *places)
        if len(given) > len(places) or named.keys() & set(places[: len(given)]):
            raise TypeError(f"{self.kind} takes {', '.join(places)}, each once")
        values = dict(zip(places, given, strict=False)) | named
        shape = {name: values.pop(name) for name in ("max_size", "collecting_data_names") if name in values}
        names, size = split_shape(**shape)
        self.replace_probability = p = probability_of(size, **values)
        super().__init__(names, size, int(size / p) if p else None)
        self._rng = np.random.default_rng() if rng is None else rng

    @property
    def rng(self) -> np.random.Generator:
        """What draws; its state is saved with the buffer."""
        return self._rng

    def add(self, data: T) -> None:
        """Store a sample, or refuse it by chance.

        Raises:
            FieldMismatch: its fields are others.
        """
        self.check(data)
        if not self.is_full:
            self._put(len(self._slots), data)
        elif self.replace_probability == 1 or self._rng.random() < self.replace_probability:
            self._put(int(self._rng.integers(self.max_size)), data)

    def sample(self, batch_size: int, sequence_length: int, rng: np.random.Generator) -> SequenceBatch:
        """Draw single samples, evenly or by priority.

        Raises:
            ValueError: sequences, which a buffer of random slots does not have; or it is empty.
        """
        if sequence_length != 1:
            raise ValueError(f"slots are in no order: sequence_length is {sequence_length}, must be 1")
        return super().sample(batch_size, sequence_length, rng)

    def _kept(self, number: int) -> NDArray[np.int64]:
        # Slots fill in order before they are replaced: the first or last ones are no fair sample of all.
        return np.sort(self._rng.choice(number, self.max_size, replace=False))

    def _more_state(self) -> dict[str, Any]:
        return {"rng": self._rng.bit_generator.state}

    def _load_more_state(self, path: Path, state: Mapping[str, Any]) -> None:
        try:
            self._rng.bit_generator.state = cast("Mapping[str, Any]", state["rng"])
        except ValueError:
            raise StateError(
                f"{path} was drawn for by a {state['rng']['bit_generator']}: give the buffer such a generator"
            ) from None


class DictRandomReplacementBuffer(RandomReplacementBuffer[Mapping[str, V], dict[str, list[V]]]):
    """A RandomReplacementBuffer of mappings, with the names always given."""

    def __init__(
        self,
        keys: Iterable[str],
        max_size: int,
        replace_probability: float | None = None,
        expected_survival_length: float | None = None,
        **options: Any,
    ) -> None:
        """Takes mappings with exactly these keys; `options` as those of a RandomReplacementBuffer."""
        super().__init__(list(keys), max_size, replace_probability, expected_survival_length, **options)
