"""How old the searches of stored steps are: what learner and reanalyser show of batches."""

from typing import NamedTuple

import numpy as np

from zero.trajectories import SequenceBatch

SEARCH_WINDOWS = {"search_version": 1, "reanalysed_at": 1}
"""What tells the age of a search; nothing is learned from it."""


class SearchAges(NamedTuple):
    """Of the drawn positions of a batch.

    Attributes:
        reanalysed_ratio: share of those that were searched again after play.
        behind_versions: mean number of versions by which the weights that searched last are behind the newest.
        reanalysed_age_seconds: mean time since positions were searched again; NaN if none was.
    """

    reanalysed_ratio: float
    behind_versions: float
    reanalysed_age_seconds: float


def search_ages(batch: SequenceBatch, newest_version: int, now: float) -> SearchAges:
    """The ages of a batch with the columns of SEARCH_WINDOWS.

    Args:
        batch: at least one row.
        newest_version: of the weights, as far as is known: a search may have newer ones, and is none behind then.
        now: Unix time.
    """
    times = batch.columns["reanalysed_at"][:, 0].astype(np.float64)
    versions = batch.columns["search_version"][:, 0].astype(np.float64)
    reanalysed = times > 0
    return SearchAges(
        float(reanalysed.mean()),
        float(np.maximum(newest_version - versions, 0).mean()),
        float((now - times[reanalysed]).mean()) if reanalysed.any() else float("nan"),
    )
