"""Continuous batching: requests join and leave between the steps of one network.

    callers, any thread              engine thread, one step
    submit() --> Scheduler   ------> 1  cancelled and expired requests end
                  slots, blocks      2  prompts of new requests: one call, without what PrefixCache knows of them
    Handle  <-- Outbox       <------ 3  one token for each running request: one call
                                     4  slots and blocks of finished requests are free, then the deltas go out

The thread starts with the first request and ends after a while without any.
"""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast

from chatglm.engine.block_manager import BLOCK_TOKENS, BlockManager, count_blocks
from chatglm.engine.graph_runner import new_runner
from chatglm.engine.handle import Handle
from chatglm.engine.prefix_cache import PrefixCache
from chatglm.engine.request import Request, never
from chatglm.engine.runner import Decoder, Runner, next_prompts
from chatglm.engine.scheduler import Scheduler
from chatglm.engine.stats import Stats
from chatglm.errors import ChatGLMError, QueueFullError
from chatglm.generation.config import GenerationConfig
from chatglm.generation.sampling import LogitsProcessor

logger = logging.getLogger(__name__)

_started: weakref.WeakSet[Engine] = weakref.WeakSet()

IDLE_SECONDS = 5.0
# A step that is under way cannot be stopped; closing waits so much longer for it than it was asked to.
STEP_SECONDS = 30.0


class Engine:
    """Answers many requests at once on one network, which only the engine's own thread touches."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Any,
        *,
        max_running: int = 16,
        max_waiting: int = 64,
        memory_limit: int | None = None,
        uses_graphs: bool | None = None,
        reuses_prefixes: bool = True,
    ) -> None:
        """Make room for requests; `decoder` is a `BatchDecoder` in eval mode. `max_waiting` are beyond `max_running`.

        `memory_limit`: bytes for all caches; None = a share of what is free. `uses_graphs`: replay captured steps
        (graph_runner.py); None = on one GPU. `reuses_prefixes`: keep the caches of ended requests for prompts that
        begin as they do, where the network only looks back. Raises InvalidRequestError if the limits leave no room.
        """
        self._decoder = decoder
        self._tokenizer = tokenizer
        blocks = BlockManager(count_blocks(decoder, memory_limit, max_running))
        self._scheduler = Scheduler(blocks, max_running, max_waiting)
        self._runner = new_runner(decoder, blocks, max_running, uses_graphs)
        can_reuse = decoder.spec.visibility == "causal" and isinstance(self._runner, Runner)
        self._prefixes = PrefixCache(decoder, blocks) if reuses_prefixes and can_reuse else None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._counts: Counter[str] = Counter()

    def submit(
        self,
        input_ids: Sequence[int],
        config: GenerationConfig,
        *,
        deadline: float | None = None,
        answer_start: str = "",
        dropped_rounds: int = 0,
        uses_adapter: bool = True,
        processors: Sequence[LogitsProcessor] = (),
        is_cancelled: Callable[[], bool] = never,
    ) -> Handle:
        """Queue a request and return at once; its answer is generated whether or not it is read.

        `deadline`: seconds from now, waiting included, after which it ends with the text so far. `answer_start`: how
        the answer begins; the deltas hold what follows. `dropped_rounds` is reported in the deltas. `uses_adapter`:
        whether a trained prefix or LoRA update takes part. `processors` are called with ids [1, n] and logits [1, V].
        `is_cancelled` is polled before every step.

        Raises PromptTooLongError, InvalidRequestError (unusable prompt, too much memory), QueueFullError if as many run
        and wait as may, ChatGLMError if the engine is closed.
        """
        request = Request(
            self._decoder,
            self._tokenizer,
            input_ids,
            config,
            deadline=deadline,
            answer_start=answer_start,
            dropped_rounds=dropped_rounds,
            uses_adapter=uses_adapter,
            processors=processors,
            is_cancelled=is_cancelled,
        )
        with self._changed:
            if self._is_closed:
                raise ChatGLMError("The engine is closed and takes no more requests.")
            try:
                self._scheduler.add(request)
            except QueueFullError:
                self._counts["refused"] += 1
                raise
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="chatglm-engine", daemon=True)
                self._thread.start()
                _started.add(self)
            self._changed.notify_all()
        return Handle(request.outbox, request.cancel, lambda: self._queue_place(request))

    def require_room(self) -> None:
        """Raise QueueFullError if one more request could neither run nor wait, before anything is done for it."""
        with self._changed:
            try:
                self._scheduler.require_room()
            except QueueFullError:
                self._counts["refused"] += 1
                raise

    def _queue_place(self, request: Request) -> int:
        """1 for the request that runs next; 0 if it does not wait."""
        with self._changed:
            waiting = self._scheduler.waiting
            return waiting.index(request) + 1 if request in waiting else 0

    def warm_up(self) -> None:
        """Capture the usual steps before the first request, seconds on a GPU; raises ChatGLMError after a request."""
        with self._changed:
            if self._thread is not None or self._is_closed:
                raise ChatGLMError("The engine runs or is closed; it is warmed up before the first request.")
            self._runner.warm_up()

    def stats(self) -> Stats:
        with self._changed:
            scheduler, counts = self._scheduler, self._counts
            return Stats(
                running=len(scheduler.running),
                waiting=len(scheduler.waiting),
                finished=counts["stop"] + counts["length"],
                cancelled=counts["cancelled"],
                expired=counts["deadline"],
                failed=counts["error"],
                refused=counts["refused"],
                prompt_tokens_total=counts["prompt tokens"],
                cached_tokens_total=counts["cached tokens"],
                prefix_hits=counts["prefix hits"],
                prefix_misses=counts["prefix misses"],
                tokens_total=counts["tokens"],
                steps_total=counts["steps"],
                slots_used=len(scheduler.running),
                slots_total=scheduler.max_running,
                blocks_free=scheduler.blocks.free,
                blocks_total=scheduler.blocks.total,
                block_tokens=BLOCK_TOKENS,
            )

    def close(self, timeout: float = 0.0) -> None:
        """Take no more requests, cancel those left after `timeout` seconds, end the thread after its current step."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._scheduler.is_empty, timeout)
            for request in (*self._scheduler.running, *self._scheduler.waiting):
                request.cancel()
            thread = self._thread
        if thread is not None:
            thread.join(STEP_SECONDS)
        if self._prefixes is not None:
            with self._changed:
                self._prefixes.clear()

    # --- the engine's thread ---

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._step()
            except BaseException as error:  # an internal error: no caller may wait for ever
                logger.exception("A step of the engine failed.")
                self._fail_all(error)

    def _wait_for_work(self) -> bool:
        """Sleep until there is a request; False if the thread should end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or not self._scheduler.is_empty, IDLE_SECONDS)
            if not self._scheduler.is_empty:
                return True
            self._thread = None
            return False

    def _step(self) -> None:
        with self._changed:
            present = [*self._scheduler.running, *self._scheduler.waiting]
        for request in present:
            request.end_if_unwanted()
        running = self._settle(present)
        self._prefill(next_prompts(running, self._runner.prompt_tokens_at_once))
        self._decode([request for request in running if request.cache is not None])
        self._settle(running)

    def _prefill(self, new_requests: Sequence[Request]) -> None:
        if not new_requests:
            return
        self._find_prefixes(new_requests)
        self._runner.prefill(new_requests)
        for request in new_requests:
            request.reused = None
            if request.cache is not None:
                self._counts["prompt tokens"] += request.prompt.shape[1]
                self._counts["cached tokens"] += request.num_reused

    def _find_prefixes(self, new_requests: Sequence[Request]) -> None:
        if self._prefixes is None:
            return
        with self._changed:
            for request in new_requests:
                request.reused = self._prefixes.find(request)
                self._counts["prefix misses" if request.reused is None else "prefix hits"] += 1

    def _decode(self, requests: Sequence[Request]) -> None:
        if requests:
            num_generated = sum(request.num_generated for request in requests)
            self._runner.decode(requests)
            self._counts["tokens"] += sum(request.num_generated for request in requests) - num_generated
            self._counts["steps"] += 1

    def _settle(self, requests: Sequence[Request]) -> list[Request]:
        """Free what the ended held, then let the callers see what is new; returns those that run now."""
        ended = [request for request in requests if request.finish_reason is not None]
        entries = [self._prefixes.entry_of(request) for request in ended] if self._prefixes is not None else []
        with self._changed:
            for request in ended:
                request.cache = None
                self._scheduler.remove(request)
                self._counts[str(request.finish_reason)] += 1
            for entry in filter(None, entries):
                cast(PrefixCache, self._prefixes).keep(entry)
            running = list(self._scheduler.running)
            self._changed.notify_all()
        for request in requests:
            request.publish()
        return running

    def _fail_all(self, error: BaseException) -> None:
        with self._changed:
            present = [*self._scheduler.running, *self._scheduler.waiting]
        for request in present:
            if request.finish_reason is None:
                request.fail(error)
        self._settle(present)


@atexit.register
def _close_started() -> None:
    """End every thread before the interpreter goes: one that is still in the network then aborts the process."""
    for engine in list(_started):
        engine.close()
