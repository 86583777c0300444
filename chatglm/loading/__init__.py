"""Where models come from: the embedded demo, a folder or a hub id, made ready to run in bounded memory.

Knows: how to find, examine and load a model with its tokenizer. Does not know how it is used.
"""

from chatglm.loading.sources import find_folder
from chatglm.loading.steps import LoadedModel, checked_folder, load

__all__ = ["LoadedModel", "checked_folder", "find_folder", "load"]
