"""Every error a user can meet, with a remedy. Interfaces print `str(error)`; all other errors are internal."""

from __future__ import annotations


class ChatGLMError(Exception):
    """An error that the user can fix: `problem` names the file or value, `remedy` says what to do (may be empty)."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        # Names out of files may hold what cannot be printed (half a surrogate pair).
        problem, remedy = (text.encode("utf-8", "backslashreplace").decode() for text in (problem, remedy))
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}".strip()


class CheckpointError(ChatGLMError):
    """A model folder or one of its files cannot be used."""


class ModelNotFoundError(CheckpointError):
    """There is no such folder, and no such model on the hub (or no network to ask)."""


class PointerFileError(CheckpointError):
    """A Git-LFS pointer lies where the real file should be."""


class MissingFileError(CheckpointError):
    """A file that the folder needs or its index names is absent."""


class DamagedFileError(CheckpointError):
    """A file is truncated, unreadable or holds something other than tensors."""


class MismatchError(CheckpointError):
    """Keys, shapes or vocabularies of the files do not belong together."""


class UnsupportedModelError(CheckpointError):
    """A genuine model of another family, or of a form that is not supported."""


class OutOfMemoryError(ChatGLMError):
    """The load cannot fit into this machine's memory; the message has the numbers."""


class DeviceError(ChatGLMError):
    """The asked device or dtype is not available here."""


class InvalidRequestError(ChatGLMError, ValueError):
    """A parameter or message of a request is out of range or of the wrong form."""


class PromptTooLongError(InvalidRequestError):
    """A single message does not fit into the context; dropping older rounds cannot help."""


class InvalidLogitsError(ChatGLMError):
    """The network produced NaN or infinite logits."""


class TrainingError(ChatGLMError):
    """Training went wrong and was stopped; checkpoints from before are good."""


class QueueFullError(ChatGLMError):
    """As many requests run and wait as may; nothing is wrong with this one, and it can be sent again later."""

    retry_after: int | None = None  # seconds after which there may be room
