"""adapter_config.json of a LoRA adapter: what peft would make of it. A setting that changes more than A and B of some
layers is refused by name, whether it is known here or not.
"""

from __future__ import annotations

import math
import re
import reprlib
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from chatglm.checkpoints import read_json
from chatglm.errors import MismatchError, UnsupportedModelError
from chatglm.schema import FLAG, Rule, check_keys, number, table_of, text, whole

CONFIG_NAME = "adapter_config.json"
PATTERN_SECONDS, LONGEST_PATTERN, MOST_REPEATS = 1.0, 2000, 10_000
# What `regex` reads as fuzzy matching and as classes, and `re` as characters.
UNLIKE_RE = re.compile(r"\{(?!\d+(?:,\d*)?\}|,\d+\})|\[\[|\[:")
ALL_LINEAR = "all-linear"
DEFAULT_TARGETS = ("query_key_value",)  # peft's for chatglm
COPY_AGAIN = "Copy the folder again."
MERGE = (
    "Merge it where peft is installed, `PeftModel.from_pretrained(base, FOLDER).merge_and_unload()"
    ".save_pretrained(NEW)`, and give NEW, with the base model's tokenizer files, as --model."
)
NAMES = text(LONGEST_PATTERN).or_list()
# What decides about the update.
RULES: Mapping[str, Rule] = {
    "r": whole(1, 65536),
    "lora_alpha": number(),
    "rank_pattern": table_of(whole(1, 65536)).or_none(),
    "alpha_pattern": table_of(number()).or_none(),
    "use_rslora": FLAG.or_none(),
    "target_modules": NAMES.or_none(),
    "exclude_modules": NAMES.or_none(),
    "layers_to_transform": whole(0, 65536).or_list().or_none(),
    "layers_pattern": NAMES.or_none(),
}
# What does not: training alone used it, or it qualifies a setting that is refused. peft overrules fan_in_fan_out for
# linear layers.
WITHOUT_EFFECT = frozenset(
    [
        "task_type",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "peft_version",
        "lora_dropout",
        "fan_in_fan_out",
        "merge_weights",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "runtime_config",
        "qalora_group_size",
    ]
)
# Ways to begin training that leave the base model's weights alone. pissa, olora, corda, loftq and lora_ga take a part
# out of them, and the adapter alone does not say which.
INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
NOTHING = (None, False, "none", "", 0)


@dataclass(frozen=True)
class LoraConfig:
    """A config whose values are checked."""

    path: Path
    keys: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> LoraConfig:
        """Raises DamagedFileError for a wrong value, UnsupportedModelError for an adapter that is not plain LoRA."""
        path = folder / CONFIG_NAME
        keys = read_json(path)
        kind = keys.get("peft_type")
        if kind != "LORA":
            raise UnsupportedModelError(f"{path} describes {reprlib.repr(kind)}, not LORA.", MERGE)
        for name in ("r", "lora_alpha"):
            if keys.get(name) is None:
                raise MismatchError(f"{path} does not say r and lora_alpha.", COPY_AGAIN)
        check_keys(path, keys, RULES, COPY_AGAIN)
        start = keys.get("init_lora_weights")
        if not any(start is known or (start == known and type(start) is str) for known in INITIALISATIONS):
            raise UnsupportedModelError(
                f"{folder} was trained with init_lora_weights {reprlib.repr(start)}, which changes the base model's "
                "weights, and was not converted.",
                "Save it again where it was trained, with path_initial_model_for_weight_conversion. Or else: " + MERGE,
            )
        for name, value in keys.items():
            is_known = name in RULES or name in WITHOUT_EFFECT or name in ("peft_type", "init_lora_weights")
            if not is_known and value not in NOTHING and value != [] and value != {}:
                raise UnsupportedModelError(f"{folder} was trained with {name}, which cannot be loaded here.", MERGE)
        return cls(path, keys)

    def settings(self) -> dict[str, Any]:
        """What decides about the update, as peft's config takes it, to train it further."""
        return {name: self.keys[name] for name in RULES if self.keys.get(name) is not None}

    def ranks_and_scales(self, layers: Collection[str]) -> dict[str, tuple[int, float]]:
        """Layer -> rank and factor of B A."""
        patterns, found = _Patterns(self.path), {}
        for layer in layers:
            rank = self._of_pattern("rank_pattern", layer, patterns, self.keys["r"])
            alpha = self._of_pattern("alpha_pattern", layer, patterns, self.keys["lora_alpha"])
            found[layer] = rank, float(alpha) / (math.sqrt(rank) if self.keys.get("use_rslora") else float(rank))
        return found

    def targets(self, names: Collection[str], all_linear: Collection[str]) -> set[str]:
        """The modules among `names` that peft would give an update."""
        wanted, patterns = self.keys.get("target_modules"), _Patterns(self.path)
        if wanted is None:
            wanted = list(DEFAULT_TARGETS)
        if isinstance(wanted, str) and wanted.lower() == ALL_LINEAR:
            wanted = list(all_linear)
        excluded = self.keys.get("exclude_modules") or []
        kept = [name for name in names if not _is_named(name, excluded, patterns)]
        if isinstance(wanted, str):
            return {name for name in kept if patterns.match(wanted, name, is_whole=True)}
        whole_names = set(wanted)
        return {
            name
            for name in kept
            if name in whole_names or (_is_named(name, wanted, patterns) and self._is_of_layers(name, patterns))
        }

    def _of_pattern(self, key: str, layer: str, patterns: _Patterns, usual: Any) -> Any:
        """The value of the first pattern that fits the end of the name, after a dot."""
        values = self.keys.get(key) or {}
        return next((value for name, value in values.items() if patterns.match(rf"(.*\.)?({name})$", layer)), usual)

    def _is_of_layers(self, name: str, patterns: _Patterns) -> bool:
        numbers = self.keys.get("layers_to_transform")
        if numbers is None or numbers == []:
            return True
        listed = self.keys.get("layers_pattern") or []
        starts = [rf"(?:^|.*?\.){one}" for one in ([listed] if isinstance(listed, str) else listed)]
        for start in starts or [r".*?\.[^.]*"]:
            if found := patterns.match(rf"{start}\.(?P<number>\d+)\.", name):
                number = int(found["number"])
                return number == numbers if isinstance(numbers, int) else number in numbers
        return False


def _is_named(name: str, names: str | list[str], patterns: _Patterns) -> bool:
    """Whether peft's list means this module: by its name or the end of it; a text is a pattern of the whole name."""
    if isinstance(names, str):
        return bool(patterns.match(names, name, is_whole=True))
    wanted, parts = set(names), name.split(".")
    return any(".".join(parts[i:]) in wanted for i in range(len(parts)))


class _Patterns:
    """Matches the regular expressions of a config, in bounded time and memory: they are anybody's."""

    def __init__(self, path: Path) -> None:
        self._path, self._end = path, monotonic() + PATTERN_SECONDS

    def match(self, pattern: str, name: str, *, is_whole: bool = False) -> Any:
        """As of the module `re`; raises MismatchError for an expression that cannot be read or takes too long."""
        import regex  # its matching takes a time limit; 40 ms to import, for adapters only

        counts = [max(1, int(number)) for number in re.findall(r"(?<=[{,])\d{1,12}(?=[,}])", pattern)]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of sets in sets, which a later `re` may know
                re.compile(pattern)  # `regex` reads more than that
            if UNLIKE_RE.search(pattern):
                reason = "has braces or brackets that are not used here"
            elif len(pattern) > LONGEST_PATTERN or math.prod(counts) > MOST_REPEATS:
                reason = "is too long"
            else:
                timeout = max(self._end - monotonic(), 1e-3)
                return (regex.fullmatch if is_whole else regex.match)(pattern, name, timeout=timeout)
        except TimeoutError:
            reason = "takes too long to match"
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            reason = f"cannot be read ({error})"
        raise MismatchError(f"{self._path}: the pattern {pattern[:80]!r} {reason}.", COPY_AGAIN)
