"""From the bytes of a body to checked values, with one sentence when it cannot be.

Knows: JSON, UTF-8, content types, pydantic's error lists. Does not know a framework: both doors read bodies with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from chatglm.serving.errors import InvalidBodyError, InvalidFieldError, WrongContentTypeError

Model = TypeVar("Model", bound=BaseModel)

# What programs send that forget the header: curl -d, and fetch with a string. Upstream reads those as JSON.
FORGOTTEN_TYPES = frozenset({"", "application/x-www-form-urlencoded", "text/plain"})
# What pydantic's kinds of error say to a person; {names} are filled in from the error.
_WORDS = {
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


def require_json_type(content_type: str | None, forgives: bool) -> None:
    """Refuse a header that names another format.

    Args:
        content_type: the header's value.
        forgives: whether the types of clients that forget the header will do; no header at all always does.

    Raises:
        WrongContentTypeError: it says something other than JSON.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    if not is_json and kind and not (forgives and kind in FORGOTTEN_TYPES):
        raise WrongContentTypeError(f"The body is announced as {kind[:100]!r}.", "Send Content-Type: application/json.")


def parse_json(body: bytes) -> Any:
    """The value of a JSON text in UTF-8. NaN and Infinity, which Python's parser would let through, are not JSON.

    Raises:
        InvalidBodyError: it is none, or not in UTF-8, or holds half a character as `\\ud800`.
    """
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
        if rb"\ud" in body.lower():
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate cannot be encoded
    except UnicodeDecodeError as error:
        raise InvalidBodyError(f"The body is not UTF-8 at byte {error.start}.") from None
    except UnicodeEncodeError:
        raise InvalidBodyError("The body holds half of a surrogate pair, which is no character.") from None
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


def validate(model: type[Model], value: Any) -> Model:
    """A JSON value as a checked request.

    Raises:
        InvalidFieldError: naming the first field that is wrong.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise describe(error.errors(include_url=False)) from None


def describe(errors: Iterable[Mapping[str, Any]]) -> InvalidFieldError:
    """The first of pydantic's errors as a sentence about a field, spelled as in JavaScript: `messages[0].content`."""
    error = next(iter(errors))
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).removeprefix(".")
    if not field:
        return InvalidFieldError("The body must be a JSON object.")
    words = _WORDS.get(error["type"], "is refused: {message}")
    words = words.format(message=error["msg"][:1].lower() + error["msg"][1:], **error.get("ctx", {}))
    return InvalidFieldError(f"{field} {words}.", field)


def _refuse_constant(name: str) -> None:
    raise InvalidBodyError(f"The body is not JSON: {name} is no JSON number.")
