"""PAMIQ-Core's side, in a Python of its own: agent and trainer are threads of one process, as it has them.

Usage: python pamiq_side.py SECONDS PAUSE; prints the collection rate alone and beside a busy trainer.
"""

import sys
import threading

from loops import collected_per_second, train
from pamiq_core.data import DataUsersDict  # pyright: ignore
from pamiq_core.data.impls import DictSequentialBuffer  # pyright: ignore


def main() -> None:
    """Measure, and print both rates."""
    seconds, pause = float(sys.argv[1]), float(sys.argv[2])
    users = DataUsersDict.from_data_buffers(x=DictSequentialBuffer(["observation", "action", "reward"], 100_000))
    collector = users.data_collectors_dict.acquire("x")
    alone = collected_per_second(collector.collect, seconds, pause)
    trainer = threading.Thread(target=train, args=(users["x"].update, seconds + 1))
    trainer.start()
    beside = collected_per_second(collector.collect, seconds, pause)
    trainer.join()
    print(alone, beside)


if __name__ == "__main__":
    main()
