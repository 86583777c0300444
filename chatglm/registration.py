"""Makes transformers' Auto classes know the families, at the moment the Auto classes are imported and not before.

Knows: Python's import system and the Auto registries. `import chatglm` must stay light, yet
`AutoModel.from_pretrained("chatglm-6b")` must work after it, whichever of the two packages was imported first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

AUTO_CLASSES = "transformers.models.auto"
FAMILY_MODULES = "chatglm.models.chatglm."


def register() -> None:
    """Enter config, network and tokenizer of every family into the Auto registries; doing it twice is harmless."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    from chatglm.models import FAMILIES

    for model_type, family in FAMILIES.items():
        family.model_class.check_folder = staticmethod(_check_folder)
        AutoConfig.register(model_type, family.config_class, exist_ok=True)
        for auto_class in (AutoModel, AutoModelForSeq2SeqLM, AutoModelForCausalLM):
            auto_class.register(family.config_class, family.model_class, exist_ok=True)
        # Under a class of its own, not under the config: otherwise `trust_remote_code=True`, as in every upstream
        # example, makes the library look for the tokenizer's remote file instead of taking ours.
        name_only = type(f"{family.class_prefix}TokenizerName", (family.config_class,), {})
        AutoTokenizer.register(name_only, tokenizer_class=family.tokenizer_class, exist_ok=True)


def _check_folder(folder: Any) -> None:
    """Name the damaged file of a local folder before transformers stumbles over it."""
    from chatglm.loading import checked_folder

    checked_folder(folder)


def register_when_needed() -> None:
    """Register now if the Auto classes are loaded already, otherwise as soon as they are."""
    if AUTO_CLASSES in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _Watcher())


class _Watcher(MetaPathFinder):
    """Waits for the Auto classes and, because importing a family imports them half-way through, for its modules."""

    def __init__(self) -> None:
        self._searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self._searching or not (fullname == AUTO_CLASSES or fullname.startswith(FAMILY_MODULES)):
            return None
        self._searching = True
        try:
            spec = find_spec(fullname)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisterAfter(spec.loader)
        return spec


class _RegisterAfter(Loader):
    """Another loader, and `register()` once the module it loads is complete."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        if AUTO_CLASSES in sys.modules and not any(map(_is_half_imported, _family_modules_but(module))):
            register()


def _family_modules_but(module: ModuleType) -> list[ModuleType]:
    loaded = list(sys.modules.items())
    return [other for name, other in loaded if name.startswith(FAMILY_MODULES) and other is not module]


def _is_half_imported(module: ModuleType) -> bool:
    return bool(getattr(module.__spec__, "_initializing", False))
