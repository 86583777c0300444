"""ChatGLM-6B on current PyTorch and transformers.

Importing it makes transformers' Auto classes read chatglm-6b folders without `trust_remote_code`. It stays light: torch
and transformers are imported only when they are used, no device is touched, no logging is set up.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from chatglm.registration import register_when_needed

if TYPE_CHECKING:
    from chatglm.models.chatglm.model import ChatGLMConfig, ChatGLMForConditionalGeneration
    from chatglm.models.chatglm.pretrained_tokenizer import ChatGLMTokenizer
    from chatglm.pipeline import Pipeline, load_pipeline

__version__ = "2.0.0"
__all__ = [
    "ChatGLMConfig",
    "ChatGLMForConditionalGeneration",
    "ChatGLMTokenizer",
    "Pipeline",
    "load_pipeline",
]

_HOMES = {
    "ChatGLMConfig": "chatglm.models.chatglm.model",
    "ChatGLMForConditionalGeneration": "chatglm.models.chatglm.model",
    "ChatGLMTokenizer": "chatglm.models.chatglm.pretrained_tokenizer",
    "Pipeline": "chatglm.pipeline",
    "load_pipeline": "chatglm.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'chatglm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


register_when_needed()
