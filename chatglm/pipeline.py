"""`Pipeline`: a loaded model with its tokenizer, ready to answer; the one object every face holds.

Knows: how a face asks (`stream`, `chat`, `astream`, `generate`) and that threads take turns at the network, one decode
step each. Does not know files (chatglm.loading) or how a face shows an answer.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from chatglm.errors import ChatGLMError, InvalidRequestError
from chatglm.generation.chat import chat_defaults
from chatglm.generation.config import GenerationConfig
from chatglm.generation.decode import Delta, never, stream_text
from chatglm.loading import LoadedModel, load
from chatglm.messages import History, check_history


class Pipeline:
    """Answers for as many threads as care to ask; each request has its own cache, seed and cancel flag.

    Attributes:
        model: the network, in eval mode.
        tokenizer: its tokenizer.
        name: folder name of the checkpoint, or "demo".
        is_demo: whether this is the embedded demo model.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.model: Any = loaded.model
        self.tokenizer: Any = loaded.tokenizer
        self.name = "demo" if loaded.is_demo else loaded.folder.name
        self.is_demo = loaded.is_demo
        self._step_lock = threading.Lock()

    @property
    def defaults(self) -> dict[str, Any]:
        """The generation parameters used where a request gives none."""
        return chat_defaults(self._open_model())

    @property
    def context_limit(self) -> int:
        """Tokens that prompt and answer may have together."""
        return int(self._open_model().config.max_sequence_length)

    def stream(
        self,
        query: str,
        history: Iterable[Sequence[str]] | None = None,
        *,
        system: str | None = None,
        cancel: threading.Event | None = None,
        **parameters: Any,
    ) -> Iterator[Delta]:
        """The answer to `query` as it is made; joined deltas are the final text.

        Args:
            query: what the user says.
            history: earlier rounds as (query, answer) pairs; not changed.
            system: instruction put in front of the conversation.
            cancel: set it, from any thread, to end the answer within one token.
            **parameters: those of `GenerationConfig` (max_length, temperature, top_p, top_k, seed, stop, ...).

        Raises:
            InvalidRequestError: at once, for a bad parameter or a message that cannot fit.
            InvalidScoresError: while iterating, after a last delta with finish reason "error".
        """
        is_cancelled = cancel.is_set if cancel is not None else never
        return self._open_model().stream_deltas(
            self.tokenizer,
            query,
            history,
            system=system,
            is_cancelled=is_cancelled,
            step_lock=self._step_lock,
            **parameters,
        )

    def chat(
        self, query: str, history: Iterable[Sequence[str]] | None = None, **parameters: Any
    ) -> tuple[str, History]:
        """The whole answer, and the history with it appended. Arguments and errors as `stream`."""
        past = check_history(history)
        response = "".join(delta.text for delta in self.stream(query, past, **parameters))
        return response, [*past, (query, response)]

    def generate(self, prompt: str, **parameters: Any) -> str:
        """Continue `prompt` as it stands, without the rounds of a chat. Parameters and errors as `stream`."""
        if not isinstance(prompt, str):
            raise InvalidRequestError(f"The prompt must be a string, not {type(prompt).__name__}.")
        model = self._open_model()
        config = GenerationConfig.of(chat_defaults(model), **parameters)
        ids = self.tokenizer.build_inputs_with_special_tokens(self.tokenizer.encode_plain(prompt))
        deltas = stream_text(model, self.tokenizer, ids, config, step_lock=self._step_lock)
        return "".join(delta.text for delta in deltas)

    async def astream(
        self, query: str, history: Iterable[Sequence[str]] | None = None, **parameters: Any
    ) -> AsyncIterator[Delta]:
        """`stream` for asyncio: the network runs in a thread, and leaving the iteration (or `aclose()`)
        cancels the request."""
        cancel = parameters.pop("cancel", None) or threading.Event()
        deltas = self.stream(query, history, cancel=cancel, **parameters)
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Delta | BaseException | None] = asyncio.Queue()
        worker = threading.Thread(
            target=_drain, args=(deltas, lambda item: loop.call_soon_threadsafe(queue.put_nowait, item)), daemon=True
        )
        worker.start()
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            # Within one token the network has let go, and nothing is put into a loop that has ended.
            cancel.set()
            await asyncio.to_thread(worker.join)

    def close(self) -> None:
        """Let go of the model; later requests raise ChatGLMError."""
        self.model = None

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _open_model(self) -> Any:
        if self.model is None:
            raise ChatGLMError("This pipeline is closed.", "Make a new one with load_pipeline().")
        return self.model


def _drain(deltas: Iterator[Delta], put: Callable[[Any], object]) -> None:
    """Move every delta, then the error or None, to the side that waits."""
    try:
        for delta in deltas:
            put(delta)
    except BaseException as error:
        put(error)
    else:
        put(None)


def load_pipeline(
    model: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: int | None = None,
    ptuning_checkpoint: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> Pipeline:
    """Load a model and hold it ready.

    Args:
        model: "demo" or None for the embedded demo model, a folder, or a hub id.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        dtype: "auto", "fp32", "bf16", "fp16".
        quantize: 4 or 8 packs the weights while they are read; None leaves them as they are stored.
        ptuning_checkpoint: folder of a P-Tuning v2 prefix for this model.
        progress: called with (bytes read, bytes in all) while weights load.
        report: called with sentences for the user (memory estimate, licence of the weights).

    Raises:
        CheckpointError, OutOfMemoryError, DeviceError, InvalidRequestError: with the file or value and the remedy.
    """
    return Pipeline(
        load(
            model,
            device=device,
            dtype=dtype,
            quantize=quantize,
            ptuning_checkpoint=ptuning_checkpoint,
            progress=progress,
            report=report,
        )
    )
