"""What is asked together is answered together."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from deploy.serving_batches import Gathering


def test_what_comes_meanwhile_is_the_next_batch() -> None:
    """The first question is answered alone; all that come while it is are one batch, up to the largest."""
    batches: list[list[int]] = []
    go_on = Event()

    def double(questions: Sequence[int]) -> list[int]:
        batches.append(list(questions))
        go_on.wait(10)
        return [2 * question for question in questions]

    async def ask_all(executor: ThreadPoolExecutor) -> list[int]:
        gathering = Gathering(double, executor, max_questions=4)
        first = asyncio.create_task(gathering.ask(0))
        while not batches:
            await asyncio.sleep(0)
        others = [asyncio.create_task(gathering.ask(question)) for question in range(1, 7)]
        await asyncio.sleep(0)
        go_on.set()
        return list(await asyncio.gather(first, *others))

    with ThreadPoolExecutor(1) as executor:
        assert asyncio.run(ask_all(executor)) == [0, 2, 4, 6, 8, 10, 12]
    assert batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_a_failure_reaches_who_asked_and_no_one_else() -> None:
    """The batch that failed raises; the next one is answered."""

    def invert(questions: Sequence[int]) -> list[float]:
        return [1 / question for question in questions]

    async def ask_all(executor: ThreadPoolExecutor) -> float:
        gathering = Gathering(invert, executor, max_questions=4)
        with pytest.raises(ZeroDivisionError):
            await gathering.ask(0)
        return await gathering.ask(4)

    with ThreadPoolExecutor(1) as executor:
        assert asyncio.run(ask_all(executor)) == 0.25
