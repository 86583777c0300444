"""The bodies of the polling API.

Knows: upstream's fields and the optional ones beside them. Does not know HTTP.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from chatglm.serving.options import AnswerOptions, Round, Strict, Text

RequestId = Annotated[str, Field(min_length=1, max_length=256)]


class PollingChat(AnswerOptions):
    """`POST /chat`: upstream's three fields, and generation parameters if wanted."""

    request_id: RequestId
    query: Text
    history: list[Round] | None = None


class PollingId(Strict):
    """`POST /get_response` and `POST /cancel`."""

    request_id: RequestId
