"""Several answers as one stream, each delta with the number of the answer it belongs to.

Knows: asyncio. Does not know what is in a delta.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from chatglm.generation.deltas import Delta
from chatglm.serving.answer import Answer

Numbered = tuple[int, Delta]


async def merge(answers: Sequence[Answer]) -> AsyncGenerator[Numbered, None]:
    """Deltas in the order in which they come. Leaving the iteration early ends every answer.

    Raises:
        Exception: that of the first answer that fails; the others are ended.
    """
    queue: asyncio.Queue[Numbered | Exception | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_forward(number, answer, queue)) for number, answer in enumerate(answers)]
    num_left = len(tasks)
    try:
        while num_left:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        for answer in answers:
            answer.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _forward(number: int, answer: Answer, queue: asyncio.Queue[Numbered | Exception | None]) -> None:
    try:
        async with aclosing(aiter(answer)) as deltas:
            async for delta in deltas:
                queue.put_nowait((number, delta))
    except Exception as error:
        queue.put_nowait(error)
    else:
        queue.put_nowait(None)
