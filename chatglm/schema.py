"""What the keys of a JSON file may hold. A table gives each key that is read a rule; other keys are ignored."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatglm.errors import DamagedFileError

LONGEST_TEXT = 4096
MOST_ENTRIES = 4096


@dataclass(frozen=True)
class Rule:
    """Values that a key may have, in words that follow "is", and as a test."""

    words: str
    accepts: Callable[[Any], bool]

    def or_none(self) -> Rule:
        return Rule(f"{self.words} or null", lambda value: value is None or self.accepts(value))

    def or_list(self) -> Rule:
        """One value, or a list of such."""
        return Rule(f"{self.words}, or a list of such", lambda value: self.accepts(value) or _all_of(list, value, self))


Rules = Mapping[str, Rule]


def whole(low: int, high: int) -> Rule:
    """Whole numbers, bounds included."""
    return Rule(f"a whole number from {low:,} to {high:,}", lambda value: type(value) is int and low <= value <= high)


def number(low: float = -1e9, high: float = 1e9) -> Rule:
    """Numbers, bounds included; not infinity, not NaN."""
    return Rule(
        f"a number from {low:g} to {high:g}", lambda value: type(value) in (int, float) and bool(low <= value <= high)
    )


def one_of(*values: Any) -> Rule:
    """These values, and not others that are equal to them, such as 1.0 or true for 1."""
    kinds = {(type(value), value) for value in values}
    *most, last = map(repr, values)
    return Rule(
        f"{', '.join(most)} or {last}",
        lambda value: type(value) in (bool, int, str) and (type(value), value) in kinds,
    )


def text(longest: int = LONGEST_TEXT) -> Rule:
    """Text of so many characters at most."""
    return Rule(f"text of at most {longest:,} characters", lambda value: type(value) is str and len(value) <= longest)


def list_of(rule: Rule) -> Rule:
    """Lists of such values."""
    return Rule(f"a list of {rule.words}", lambda value: _all_of(list, value, rule))


def table_of(rule: Rule) -> Rule:
    """Objects with such values."""
    return Rule(f"an object whose values are {rule.words}", lambda value: _all_of(dict, value, rule))


def _all_of(kind: type[list[Any]] | type[dict[str, Any]], value: Any, rule: Rule) -> bool:
    if not isinstance(value, kind) or len(value) > MOST_ENTRIES:
        return False
    return all(map(rule.accepts, value.values() if isinstance(value, dict) else value))


FLAG = Rule("true or false", lambda value: type(value) is bool)


def first_mistake(content: Mapping[str, Any], rules: Rules) -> str:
    """What is wrong with the first key that has a value against its rule, in a few words; "" if none has."""
    for name, rule in rules.items():
        if name in content and not rule.accepts(content[name]):
            return f"{name} is {rule.words}, not {reprlib.repr(content[name])}"
    return ""


def check_keys(path: Path, content: Mapping[str, Any], rules: Rules, remedy: str = "Download this file again.") -> None:
    """Raise DamagedFileError if a key of the JSON file `path` has a value against its rule."""
    if mistake := first_mistake(content, rules):
        raise DamagedFileError(f"{path}: {mistake}.", remedy)
