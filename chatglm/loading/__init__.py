"""Loading models: the embedded demo, a folder or a hub id, made ready to run in bounded memory."""

from chatglm.loading.loader import LoadedModel, load, load_model_on_gpus
from chatglm.loading.sources import checked_folder, examine, find_folder, model_name

__all__ = ["LoadedModel", "checked_folder", "examine", "find_folder", "load", "load_model_on_gpus", "model_name"]
