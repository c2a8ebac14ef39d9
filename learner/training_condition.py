"""Whether there is enough data to train again."""

from typing import Any, NamedTuple

from learner.data_user import DataUser


class TrainingCheck(NamedTuple):
    """What a check has found.

    Attributes:
        met: whether to train.
        buffer_size: samples stored.
        new_data_count: samples added since the last training.
        added: samples ever added, which `commit` remembers.
    """

    met: bool
    buffer_size: int
    new_data_count: int
    added: int


class TrainingCondition:
    """Holds while the buffer is large enough and enough is new since the training that was committed last.

    What is added between a check and its commit counts towards the next training.

    Attributes:
        committed: samples that were ever added before the last training.
    """

    def __init__(
        self, user: DataUser[Any], min_buffer_size: int = 0, min_new_data_count: int = 0, *, committed: int = 0
    ) -> None:
        """Of one data user, whose `update` is the caller's affair.

        Args:
            user: of the data.
            min_buffer_size: samples that must be stored.
            min_new_data_count: samples that must have been added since the last training.
            committed: `committed` of an earlier life.

        Raises:
            ValueError: it could never hold, or a bound is negative.
        """
        if min_buffer_size < 0 or min_new_data_count < 0:
            raise ValueError(f"min_buffer_size {min_buffer_size}, min_new_data_count {min_new_data_count}: negative")
        if user.max_size is not None and min_buffer_size > user.max_size:
            raise ValueError(
                f"min_buffer_size {min_buffer_size} exceeds what the buffer holds at most, {user.max_size}: it would "
                "never be reached"
            )
        if user.max_queue_size == 0 and (min_buffer_size or min_new_data_count):
            raise ValueError("a queue of size 0 lets no sample through: no number of samples would ever be reached")
        self._user = user
        self._min_buffer_size = min_buffer_size
        self._min_new_data_count = min_new_data_count
        self.committed = committed

    def check(self) -> TrainingCheck:
        """Look, and change nothing."""
        size, added = self._user.size_and_added()
        new = added - self.committed
        return TrainingCheck(size >= self._min_buffer_size and new >= self._min_new_data_count, size, new, added)

    def commit(self, check: TrainingCheck) -> None:
        """A training on what a check has found begins: from here on samples are new."""
        self.committed = check.added
