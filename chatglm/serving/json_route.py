"""FastAPI routes whose bodies are read strictly: see `bodies.py` for what is JSON here and what is not.

Knows: where FastAPI takes the body from. Does not know any field.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, MutableMapping
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from chatglm.errors import ChatGLMError
from chatglm.serving.bodies import parse_json, require_json_type
from chatglm.serving.errors import InvalidBodyError
from chatglm.serving.refusals import respond

# Kept for the length of a scope, beside FastAPI's own entries.
_ERROR = "chatglm.body_error"


class StrictJsonRequest(Request):
    """A request whose JSON is parsed by us."""

    async def json(self) -> Any:
        try:
            return parse_json(await self.body())
        except InvalidBodyError as error:
            # FastAPI replaces every error of reading by words of its own; ours is kept where the route finds it.
            self.scope[_ERROR] = error
            raise


class StrictJsonRoute(APIRoute):
    """A POST that takes a JSON body."""

    forgives_content_type = False

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler behind our reading of the body."""
        handle = super().get_route_handler()

        async def read_and_handle(request: Request) -> Response:
            if self.body_field is None:
                return await handle(request)
            require_json_type(request.headers.get("content-type"), self.forgives_content_type)
            request = StrictJsonRequest(_as_json(request.scope), request.receive)
            try:
                return await handle(request)
            except Exception as error:
                if _ERROR in request.scope:
                    raise request.scope[_ERROR] from None
                if isinstance(error, (ChatGLMError, HTTPException, RequestValidationError)):
                    raise
                # Beyond this point a defect would be answered too, but its connection be closed.
                return respond(error, request.url.path)

        return read_and_handle


class ForgivingJsonRoute(StrictJsonRoute):
    """Also takes the bodies of clients that forget the header, as upstream does."""

    forgives_content_type = True


def _as_json(scope: MutableMapping[str, Any]) -> dict[str, Any]:
    """The scope with a content type that FastAPI reads as JSON, whatever it was."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    return {**scope, "headers": [*headers, (b"content-type", b"application/json")]}
