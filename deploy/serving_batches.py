"""Gathers what is asked while earlier questions are answered, and asks it all at once."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

Question = TypeVar("Question")
Reply = TypeVar("Reply")


class Gathering(Generic[Question, Reply]):
    """Batches for one event loop: nobody waits for a batch to fill, and nobody who waits is left out of the next.

    `serve.batch` of Ray Serve closes a batch after a fixed time, whether or not it can be started then; behind a
    search that takes longer, requests queue as batches of one.

    Args:
        answer: the replies to several questions, in their order; runs in the executor, one call at a time.
        executor: where.
        max_questions: in one batch.
    """

    def __init__(
        self, answer: Callable[[Sequence[Question]], Sequence[Reply]], executor: Executor, max_questions: int
    ) -> None:
        self._answer = answer
        self._executor = executor
        self._max_questions = max_questions
        self._waiting: list[tuple[Question, asyncio.Future[Reply]]] = []
        self._answering: asyncio.Task[None] | None = None

    async def ask(self, question: Question) -> Reply:
        """The reply to one question; what `answer` raises, everybody of the batch gets."""
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, reply))
        if self._answering is None or self._answering.done():
            self._answering = asyncio.create_task(self._answer_all())
        return await reply

    async def _answer_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[: self._max_questions], self._waiting[self._max_questions :]
            questions = [question for question, _ in batch]
            try:
                replies = await asyncio.get_running_loop().run_in_executor(self._executor, self._answer, questions)
            except Exception as error:  # noqa: BLE001 - goes to whoever asked
                for _, reply in batch:
                    if not reply.done():
                        reply.set_exception(error)
                continue
            for (_, reply), given in zip(batch, replies, strict=True):
                if not reply.done():  # who asked may have gone
                    reply.set_result(given)
