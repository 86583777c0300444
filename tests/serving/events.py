"""Reading Server-Sent Events as the standard says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple


class Event(NamedTuple):
    name: str
    data: str

    def json(self) -> Any:
        return json.loads(self.data)


def read_events(lines: Iterable[str]) -> Iterator[Event | str]:
    """Events, and comments as bare strings."""
    name, data = "message", []
    for line in lines:
        if line.startswith(":"):
            yield line[1:].strip()
        elif line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data.append(line.removeprefix("data: "))
        elif not line and data:
            yield Event(name, "\n".join(data))
            name, data = "message", []
