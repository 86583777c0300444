"""Request and response schemas of `POST /`, `/stream`, `/health` and polling, and how bodies are read against them.

Every range is part of the JSON schema, so the documentation page and the checks cannot disagree. No web framework here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from chatglm.serving.http_errors import BodyTooLargeError, InvalidBodyError, InvalidFieldError, WrongContentTypeError

Model = TypeVar("Model", bound=BaseModel)

# Sent by clients that set no header: curl -d, and fetch with a string. Upstream reads those bodies as JSON.
FORGOTTEN_TYPES = frozenset({"", "application/x-www-form-urlencoded", "text/plain"})
# Messages for pydantic's kinds of error; {names} are filled in from the error.
_MESSAGES = {
    "missing": "is missing",
    "string_type": "must be a string",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "model_type": "must be an object",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "finite_number": "must be a finite number",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "extra_forbidden": "is not a field of this request",
    "value_error": "{error}",
}
MAX_STOP_STRINGS = 16
NUM_SEEDS = 2**63  # larger seeds wrap around
RequestId = Annotated[str, Field(min_length=1, max_length=256)]
Text = Annotated[str, Field(min_length=1)]
# Some clients have no question for an answer that came first and send null for it.
_Said = Annotated[str, BeforeValidator(lambda text: "" if text is None else text, json_schema_input_type=str | None)]
Round = Annotated[list[_Said], Field(min_length=2, max_length=2)]
# Parts of a JSON text: strings, and what begins or separates values. More of them than any conversation needs would
# take many times the memory of their text.
MAX_JSON_PARTS = 20_000
_JSON_PART = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{,]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")


def _whole(value: Any) -> Any:
    """1024.0 is an integer in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def whole_number(kind: Any) -> BeforeValidator:
    """Makes an annotated int also accept 1024.0, with the same range in the schema."""
    return BeforeValidator(_whole, json_schema_input_type=kind)


def listed(value: Any) -> Any:
    """A single string as a list of one."""
    return [value] if isinstance(value, str) else value


_FromZero = Annotated[int, Field(ge=0)]
_FromOne = Annotated[int, Field(ge=1)]
FromZero = Annotated[_FromZero, whole_number(_FromZero)]
FromOne = Annotated[_FromOne, whole_number(_FromOne)]
Number = Annotated[float, Field(allow_inf_nan=False)]
_StopList = Annotated[list[Text], Field(max_length=MAX_STOP_STRINGS)]
StopStrings = Annotated[_StopList, BeforeValidator(listed, json_schema_input_type=Text | _StopList)]


class Strict(BaseModel):
    """No type coercion: a string is no number, 1 is not true. Unknown fields are ignored, as upstream and OpenAI do."""

    model_config = ConfigDict(strict=True, extra="ignore")


class UpstreamRequest(Strict):
    """`POST /` as upstream has it."""

    prompt: Text = Field(description="What the user says.", examples=["你好"])
    history: list[Round] | None = Field(
        None, description="Earlier rounds as [query, answer] pairs, oldest first.", examples=[[]]
    )
    max_length: FromZero | None = Field(
        None, description="Tokens of prompt and answer together; more than the context is clamped. 0 = default."
    )
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = Field(None, description="0 = default.")
    temperature: Annotated[Number, Field(ge=0)] | None = Field(None, description="0 = default, as upstream.")

    def parameters(self) -> dict[str, Any]:
        """Generation parameters; 0 and null mean the default, as upstream."""
        return {
            "max_length": self.max_length or None,
            "top_p": self.top_p or None,
            "temperature": self.temperature or None,
        }


class AnswerOptions(Strict):
    """Generation parameters where 0 means 0: temperature 0 is greedy."""

    max_length: FromOne | None = Field(
        None, description="Tokens of prompt and answer together; more than the context is clamped."
    )
    max_new_tokens: FromOne | None = Field(None, description="Tokens of the answer alone.")
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    top_k: FromZero | None = Field(None, description="0 = all tokens.")
    temperature: Annotated[Number, Field(ge=0)] | None = Field(None, description="0 = greedy.")
    repetition_penalty: Annotated[Number, Field(ge=0.1, le=10)] | None = None
    seed: FromZero | None = Field(None, description="Same seed, same answer.")
    stop: StopStrings | None = Field(None, description="Strings that end the answer; they are not part of it.")
    system: str | None = Field(None, description="Instruction put in front of the conversation.")
    adapter: bool | None = Field(None, description="false leaves a P-Tuning prefix or LoRA update out of this answer.")

    def parameters(self) -> dict[str, Any]:
        """Generation parameters and `system`; None = the default."""
        values = {name: getattr(self, name) for name in AnswerOptions.model_fields}
        return {**values, "seed": None if self.seed is None else self.seed % NUM_SEEDS}


class StreamRequest(AnswerOptions):
    """`POST /stream`. It has no older clients, so an unknown field is an error: most likely it is misspelled."""

    model_config = ConfigDict(extra="forbid")

    prompt: Text = Field(description="What the user says.", examples=["你好"])
    history: list[Round] | None = Field(
        None, description="Earlier rounds as [query, answer] pairs, oldest first.", examples=[[]]
    )


class PollingChat(AnswerOptions):
    """`POST /chat` of the polling API: upstream's three fields, and generation parameters if wanted."""

    request_id: RequestId
    query: Text
    history: list[Round] | None = None


class PollingAnswer(BaseModel):
    """A question's answer so far."""

    is_finished: bool
    is_handled: bool
    response: str
    timestamp: float
    error: str = ""


class PollingResponse(BaseModel):
    """Every response of the polling API."""

    code: int
    msg: str
    response: PollingAnswer | None = None


class PollingId(Strict):
    """`POST /get_response` and `POST /cancel` of the polling API."""

    request_id: RequestId


class UpstreamResponse(BaseModel):
    """The response of `POST /`: exactly four fields, in this order."""

    response: str
    history: list[Round]
    status: int = 200
    time: str


class Health(BaseModel):
    """The response of `GET /health`."""

    status: Literal["ok", "shutting down"]
    model: str
    running: int
    waiting: int


class ErrorDetail(BaseModel):
    """Every error outside of /v1: one sentence."""

    detail: str


def check_content_type(content_type: str | None, forgives: bool) -> None:
    """Raise WrongContentTypeError for a format other than JSON (and `FORGOTTEN_TYPES` with `forgives`)."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    if not is_json and kind and not (forgives and kind in FORGOTTEN_TYPES):
        raise WrongContentTypeError(f"The body is announced as {kind[:100]!r}.", "Send Content-Type: application/json.")


def parse_json(body: bytes) -> Any:
    """The value of a JSON text in UTF-8; NaN and Infinity are not JSON.

    Raises InvalidBodyError if it is not JSON, or not UTF-8, or has a lone surrogate as `\\ud800`, BodyTooLargeError if
    it has too many parts.
    """
    if sum(1 for _ in islice(_JSON_PART.finditer(body), MAX_JSON_PARTS + 1)) > MAX_JSON_PARTS:
        raise BodyTooLargeError(f"The body has more than {MAX_JSON_PARTS} strings and values.", "Send fewer rounds.")
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
        if any(map(_SURROGATE.search, _strings(value))):
            raise InvalidBodyError("The body holds half of a surrogate pair, which is no character.")
    except UnicodeDecodeError as error:
        raise InvalidBodyError(f"The body is not UTF-8 at byte {error.start}.") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InvalidBodyError(f"The body is not JSON at {place}: {error.msg}.") from None
    except RecursionError:
        raise InvalidBodyError("The body is nested too deeply.") from None
    except InvalidBodyError:
        raise
    except ValueError:
        raise InvalidBodyError("The body holds a number of thousands of digits.") from None
    return value


def _strings(value: Any) -> Iterator[str]:
    """All strings of a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        yield from (key for key in value if isinstance(value, dict))
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def validate(model: type[Model], value: Any) -> Model:
    """A JSON value as a request; raises InvalidFieldError for the first wrong field."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise describe(error.errors(include_url=False)) from None


def describe(errors: Iterable[Mapping[str, Any]]) -> InvalidFieldError:
    """The first of pydantic's errors as one sentence about a field, written as `messages[0].content`."""
    error = next(iter(errors))
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).removeprefix(".")
    if not field:
        return InvalidFieldError("The body must be a JSON object.")
    text = _MESSAGES.get(error["type"], "is refused: {message}")
    text = text.format(message=error["msg"][:1].lower() + error["msg"][1:], **error.get("ctx", {}))
    return InvalidFieldError(f"{field} {text}.", field)


def _refuse_constant(name: str) -> None:
    raise InvalidBodyError(f"The body is not JSON: {name} is no JSON number.")
