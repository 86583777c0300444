"""Many requests at once on one network: admission, memory, steps, and the handle each caller holds.

Knows: tokens in, deltas out, for as many requests as fit. Imports no family; one may be run that offers what
`runner.BatchModel` names.
"""

from chatglm.engine.engine import Engine
from chatglm.engine.handle import Handle
from chatglm.engine.stats import Stats
from chatglm.generation.deltas import Completion

__all__ = ["Completion", "Engine", "Handle", "Stats"]
