"""Enters the families into transformers' Auto registries once those are imported: `import chatglm` stays light."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from chatglm.schema import Rule, check_keys, table_of, text, whole

AUTO_CLASSES = "transformers.models.auto"
# Modules of transformers that read a folder's JSON files.
JSON_READERS = (
    "configuration_utils",
    "generation.configuration_utils",
    "models.auto.tokenization_auto",
    "tokenization_utils_base",
    "utils.hub",
)
# What tokenizer_config.json of published folders names, whatever the family -> the family without a config.json.
SHARED_TOKENIZER_NAMES = {"ChatGLMTokenizer": "ChatGLM", "ChatGLM4Tokenizer": "GLM4"}
# What finds a file of a model on the hub.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
WATCHED = ("transformers.", "chatglm.")


def register() -> None:
    """Enter configuration, network and tokenizer of every family; doing it twice is harmless."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    from chatglm.loading import checked_folder
    from chatglm.models import FAMILIES

    guard_readers(JSON_READERS)
    for family in FAMILIES:
        family.model_class.check_folder = staticmethod(checked_folder)
        AutoConfig.register(family.model_type, family.config_class, exist_ok=True)
        for auto_class in (AutoModel, AutoModelForSeq2SeqLM, AutoModelForCausalLM):
            auto_class.register(family.config_class, family.model_class, exist_ok=True)
        # Under a class of its own, not under the config: otherwise `trust_remote_code=True`, as in every upstream
        # example, makes the library look for the tokenizer's remote file instead of taking ours.
        name_only = type(f"{family.prefix}TokenizerName", (family.config_class,), {})
        AutoTokenizer.register(name_only, tokenizer_class=family.tokenizer_class, exist_ok=True)
    for name in SHARED_TOKENIZER_NAMES:
        by_folder = type(name, (TokenizerOfFolder,), {})
        name_only = type(f"{name}Name", (FAMILIES[0].config_class,), {})
        AutoTokenizer.register(name_only, tokenizer_class=by_folder, exist_ok=True)


class TokenizerOfFolder:
    """Stands in the Auto registry for a class name that several families share."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """The tokenizer of the family that config.json is of; raises CheckpointError as it does."""
        from transformers.utils.hub import cached_file

        from chatglm.checkpoints import read_json
        from chatglm.models import FAMILIES, family_of

        path = Path(pretrained_model_name_or_path) / "config.json"
        if not Path(pretrained_model_name_or_path).is_dir():
            asked = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            found = cached_file(str(pretrained_model_name_or_path), "config.json", **asked)
            path = Path(str(found))
        prefix = SHARED_TOKENIZER_NAMES[cls.__name__]
        by_name = next((row for row in FAMILIES if row.prefix == prefix), FAMILIES[0])
        family = family_of(read_json(path), path.parent) if path.exists() else by_name
        return family.tokenizer_class.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


def guard_readers(modules: Iterable[str]) -> None:
    """Let these modules of transformers read files with a byte-order mark, and refuse damaged settings."""
    for name in modules:
        vars(import_module(f"transformers.{name}"))["open"] = _open


def _open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
    """The built-in function, also for text that begins with a byte-order mark, as Windows editors write it.

    Raises CheckpointError for settings that are no JSON object, or hold a value that the library takes as it is.
    """
    if mode == "r" and kwargs.get("encoding") == "utf-8":
        kwargs["encoding"] = "utf-8-sig"
        if str(file).endswith("config.json"):
            return io.StringIO(json.dumps(_settings(Path(file))))
    return open(file, mode, *args, **kwargs)


def _settings(path: Path) -> dict[str, Any]:
    from chatglm.checkpoints import read_json

    keys = read_json(path)
    check_keys(path, keys, AUTO_RULES)
    return keys


def _is_code(value: Any) -> bool:
    is_list = type(value) is list and bool(value)
    return type(value) is str or (is_list and all(part is None or type(part) is str for part in value))


def _is_dtype(value: Any) -> bool:
    import torch

    if type(value) is str:
        return isinstance(getattr(torch, value, None), torch.dtype)
    return value is None or type(value) in (int, dict)  # newer models have a type for each part


CODE = Rule("a name or a list of names", _is_code)
# What the Auto classes take without a look.
AUTO_RULES = {
    "model_type": text().or_none(),
    "tokenizer_class": text().or_none(),
    "vocab_size": whole(0, 10**9).or_none(),
    "auto_map": Rule(
        table_of(CODE).words, lambda value: (_is_code if type(value) is list else table_of(CODE).accepts)(value)
    ),
    **dict.fromkeys(("dtype", "torch_dtype"), Rule("the name of a type of torch", _is_dtype)),
}


def register_when_needed() -> None:
    """Register now if the Auto classes are loaded already, otherwise when the import that loads them is complete."""
    if AUTO_CLASSES in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _Watcher())


class _Watcher(MetaPathFinder, threading.local):
    """Counts, in each thread, how deep it is in imports of the two packages."""

    depth = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(WATCHED):
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Counted(spec.loader, self)
        return spec

    def finish(self) -> None:
        """An outermost import is complete: register if it has loaded the Auto classes, and watch no more."""
        if AUTO_CLASSES in sys.modules and self in sys.meta_path:
            sys.meta_path.remove(self)
            register()


class _Counted(Loader):
    """Another loader whose modules count as being imported while they execute."""

    def __init__(self, loader: Loader, watcher: _Watcher) -> None:
        self._loader, self._watcher = loader, watcher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._watcher.depth += 1
        try:
            self._loader.exec_module(module)
        finally:
            self._watcher.depth -= 1
        if self._watcher.depth == 0:
            self._watcher.finish()
