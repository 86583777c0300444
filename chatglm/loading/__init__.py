"""Where models come from: the embedded demo, a folder or a hub id, made ready to run in bounded memory.

Knows: how to find, examine and load a model with its tokenizer. Does not know how it is used.
"""

from chatglm.loading.loader import LoadedModel, checked_folder, load
from chatglm.loading.sources import find_folder

__all__ = ["LoadedModel", "checked_folder", "find_folder", "load"]
