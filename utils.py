"""Models over several GPUs: `load_model_on_gpus("chatglm-6b", num_gpus=2)`. See README.md."""

from chatglm.loading import load_model_on_gpus
from chatglm.loading.placement import auto_configure_device_map

__all__ = ["auto_configure_device_map", "load_model_on_gpus"]
