"""Many requests at once on one network: admission, memory, steps, and the handle each caller holds. Knows no family."""

from chatglm.engine.engine import Engine
from chatglm.engine.handle import Handle
from chatglm.engine.stats import Stats
from chatglm.generation.deltas import Completion

__all__ = ["Completion", "Engine", "Handle", "Stats"]
