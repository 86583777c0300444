"""`Pipeline`: a loaded model with its tokenizer and one engine, ready to answer; every interface holds one."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from chatglm.engine import Engine, Handle
from chatglm.engine.decoder import BatchDecoder
from chatglm.engine.request import never
from chatglm.errors import ChatGLMError, InvalidRequestError, PromptTooLongError
from chatglm.generation.config import GenerationConfig, chat_defaults
from chatglm.generation.deltas import Delta, fold
from chatglm.loading import LoadedModel, load, model_name
from chatglm.loading.memory_estimate import precision_name
from chatglm.messages import History, Message, check_history, to_messages
from chatglm.models.encoded_prompt import least_tokens


class Pipeline:
    """Answers many threads and event loops at once; each request has its own cache, seed and cancel flag.

    `model` is a plain module in eval mode, `tokenizer` its tokenizer, `family` their family. `name` is the folder
    name of the checkpoint, or "demo"; `is_demo` tells whether this is the embedded demo model.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.model: Any = loaded.model
        self.tokenizer: Any = loaded.tokenizer
        self.family = loaded.family
        self.name = "demo" if loaded.is_demo else model_name(loaded.folder)
        self.is_demo = loaded.is_demo
        self._engine: Engine | None = None
        self._engine_lock = threading.Lock()
        self._close = loaded.close

    @property
    def defaults(self) -> dict[str, Any]:
        """The generation parameters used where a request gives none."""
        return chat_defaults(self._open_model())

    @property
    def context_limit(self) -> int:
        """Tokens that prompt and answer may have together."""
        return int(self._open_model().spec.context_limit)

    @property
    def precision(self) -> str:
        """What the model computes with, and where: "int4 on cpu (activations fp32)"."""
        network = self._open_model()
        return precision_name(network.config, network.config.dtype, network.device)

    @property
    def engine(self) -> Engine:
        """What runs the requests, made at the first one."""
        with self._engine_lock:
            if self._engine is None:
                self._engine = Engine(BatchDecoder(self._open_model()), self.tokenizer)
            return self._engine

    def start_engine(self, **limits: Any) -> Engine:
        """Make the engine before the first request, with limits of one's own (see `Engine`).

        Raises InvalidRequestError if the limits leave no room for anything, or there is an engine already.
        """
        with self._engine_lock:
            if self._engine is not None:
                raise InvalidRequestError("The engine is running already.", "Set its limits before the first request.")
            self._engine = Engine(BatchDecoder(self._open_model()), self.tokenizer, **limits)
            return self._engine

    def submit(
        self,
        messages: Sequence[Message],
        *,
        answer_start: str = "",
        cancel: threading.Event | None = None,
        deadline: float | None = None,
        adapter: bool = True,
        **parameters: Any,
    ) -> Handle:
        """Ask for the next message of a conversation; returns at once with a handle that streams it and can cancel it.

        Args:
            messages: the conversation, oldest first, ending with the user's. Oldest rounds are dropped until it fits.
            answer_start: text that the answer begins with, say one that was cut; the deltas hold what follows it.
            cancel: set it, from any thread, to end the answer within one token.
            deadline: seconds from now, waiting included, after which the answer ends as it stands.
            adapter: False leaves a P-Tuning prefix or LoRA update out of this request: the base model answers.
            **parameters: those of `GenerationConfig` (max_length, temperature, top_p, top_k, seed, stop, ...).

        Raises InvalidRequestError for a bad parameter or a message that cannot fit, QueueFullError for a full queue.
        """
        network = self._open_model()
        config = GenerationConfig.of(chat_defaults(network), **parameters)
        self.engine.require_room()  # before the work of encoding
        prompt = self._prompt(messages, answer_start, min(config.max_length, self.context_limit))
        return self._submit(
            prompt.input_ids, config, cancel, deadline, adapter, answer_start, dropped_rounds=prompt.dropped_rounds
        )

    def has_room(self, messages: Sequence[Message], answer_start: str) -> bool:
        """Whether the context holds the last message, what there is of its answer, and one token more."""
        try:
            self._prompt(messages, answer_start, self.context_limit)
        except PromptTooLongError:
            return False
        return True

    def complete(
        self,
        prompt: str,
        *,
        cancel: threading.Event | None = None,
        deadline: float | None = None,
        adapter: bool = True,
        **parameters: Any,
    ) -> Handle:
        """Continue raw text: no chat template and no system message. Arguments and errors as `submit`."""
        if not isinstance(prompt, str):
            raise InvalidRequestError(f"The prompt must be a string, not {type(prompt).__name__}.")
        config = GenerationConfig.of(chat_defaults(self._open_model()), **parameters)
        self.engine.require_room()
        if least_tokens(self.tokenizer, prompt, self.context_limit) > self.context_limit:
            raise PromptTooLongError(
                f"The prompt is {len(prompt)} characters long; {self.context_limit} tokens fit.", "Shorten it."
            )
        ids = self.tokenizer.build_inputs_with_special_tokens(self.tokenizer.encode_plain(prompt))
        return self._submit(ids, config, cancel, deadline, adapter)

    def _prompt(self, messages: Sequence[Message], answer_start: str, limit: int) -> Any:
        """The prompt in fewer than `limit` tokens, those of `answer_start` counted too."""
        num_start = least_tokens(self.tokenizer, answer_start, limit)
        if num_start < limit and answer_start:
            num_start = len(self._open_model().spec.encode_answer(self.tokenizer, answer_start))
        if num_start >= limit:
            raise PromptTooLongError(
                f"The prompt is {len(answer_start)} characters long; {limit} tokens fit.", "Shorten it."
            )
        try:
            return self.family.encode_chat(self.tokenizer, messages, limit - num_start)
        except PromptTooLongError as error:
            if limit < self.context_limit:
                raise
            raise PromptTooLongError(error.problem, "Shorten it.") from None

    def _submit(
        self,
        input_ids: Sequence[int],
        config: GenerationConfig,
        cancel: threading.Event | None,
        deadline: float | None,
        adapter: bool,
        answer_start: str = "",
        dropped_rounds: int = 0,
    ) -> Handle:
        return self.engine.submit(
            input_ids,
            config,
            deadline=deadline,
            answer_start=answer_start,
            dropped_rounds=dropped_rounds,
            uses_adapter=adapter,
            is_cancelled=never if cancel is None else cancel.is_set,
        )

    def stream(
        self,
        query: str,
        history: Iterable[Sequence[str]] | None = None,
        *,
        system: str | None = None,
        **options: Any,
    ) -> Iterator[Delta]:
        """The answer to `query` as it is generated; joined deltas are the final text. Leaving the iteration cancels it.

        `history`: earlier rounds as (query, answer) pairs; not changed. `system`: instruction in front of the
        conversation. `options`: as `submit`, whose errors are raised at once.
        Raises InvalidLogitsError while iterating, after a last delta with finish reason "error".
        """
        return _read(self.submit(to_messages(query, check_history(history), system), **options))

    def chat(self, query: str, history: Iterable[Sequence[str]] | None = None, **options: Any) -> tuple[str, History]:
        """The whole answer, and the history with it appended. Arguments and errors as `stream`."""
        past = check_history(history)
        response = fold(self.stream(query, past, **options)).text
        return response, [*past, (query, response)]

    def generate(self, prompt: str, **options: Any) -> str:
        """The whole continuation of raw text. Arguments and errors as `complete`."""
        return fold(_read(self.complete(prompt, **options))).text

    async def astream(
        self,
        query: str,
        history: Iterable[Sequence[str]] | None = None,
        *,
        system: str | None = None,
        cancel: threading.Event | None = None,
        **options: Any,
    ) -> AsyncIterator[Delta]:
        """`stream` for asyncio; leaving the iteration (or `aclose()`) cancels the request and sets `cancel`."""
        handle = self.submit(to_messages(query, check_history(history), system), cancel=cancel, **options)
        try:
            async for delta in handle:
                yield delta
        finally:
            handle.cancel()
            if cancel is not None:
                cancel.set()

    def close(self) -> None:
        """Let go of the model: what is being answered is cancelled, later requests raise ChatGLMError."""
        self.model = None
        with self._engine_lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
        self._close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _open_model(self) -> Any:
        if self.model is None:
            raise ChatGLMError("This pipeline is closed.", "Make a new one with load_pipeline().")
        return self.model


def _read(handle: Handle) -> Iterator[Delta]:
    """The deltas of a request; it is cancelled when the reading ends."""
    try:
        yield from handle
    finally:
        handle.cancel()


def load_pipeline(
    model: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: int | None = None,
    ptuning_checkpoint: str | Path | None = None,
    lora_checkpoint: str | Path | None = None,
    mmap: bool = False,
    max_memory: int | str | None = None,
    tensor_parallel: bool = False,
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> Pipeline:
    """Load a model and hold it ready.

    Args:
        model: "demo" or None for the embedded demo model, a folder, or a hub id.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        dtype: "auto", "fp32", "bf16", "fp16".
        quantize: 4 or 8 packs the weights while they are read; None leaves them as they are stored.
        ptuning_checkpoint, lora_checkpoint: folder of a P-Tuning v2 prefix, or of a LoRA update, for this model.
        mmap: use weights where they lie in the mapped files; CPU only.
        max_memory: bytes, or text like "2G", for the weights; layers beyond it are read for every token; CPU only.
        tensor_parallel: share the model with the other processes that torchrun started. All of them make this call and
            then the same requests, one after the other and read to their end.
        progress: called with (bytes read, bytes in all) while weights load.
        report: called with messages for the user (memory estimate, licence of the weights).

    Raises CheckpointError, OutOfMemoryError, DeviceError or InvalidRequestError: the file or value, and the remedy.
    """
    return Pipeline(
        load(
            model,
            device=device,
            dtype=dtype,
            quantize=quantize,
            ptuning_checkpoint=ptuning_checkpoint,
            lora_checkpoint=lora_checkpoint,
            mmap=mmap,
            max_memory=max_memory,
            tensor_parallel=tensor_parallel,
            progress=progress,
            report=report,
            wraps=False,
        )
    )
