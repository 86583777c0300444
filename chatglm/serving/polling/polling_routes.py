"""Upstream's two polling endpoints and one to cancel.

Upstream's answers are HTTP 200 with a `code`; where it would have crashed, a 4xx has the same fields and its status.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi.responses import JSONResponse

from chatglm.serving.http_errors import ErrorResponse
from chatglm.serving.middleware import ForgivingJsonRoute
from chatglm.serving.polling.record_store import PollingCode
from chatglm.serving.polling.workers import PollingWorkers
from chatglm.serving.schemas import PollingChat, PollingId, PollingResponse

MESSAGES = {
    PollingCode.OK: "success",
    PollingCode.BUSY: "busy now",
    PollingCode.EXISTS: "request_id already exists",
    PollingCode.UNKNOWN: "request_id not exists",
}
STARTED = "start process"


def polling_router(workers: PollingWorkers) -> APIRouter:
    """`POST /chat`, `POST /get_response` and `POST /cancel`; each in a thread, since encoding takes time."""
    router = APIRouter(route_class=ForgivingJsonRoute, tags=["polling"])
    options: dict[str, Any] = {"response_model": PollingResponse, "response_model_exclude_unset": True}

    @router.post("/chat", summary="Ask", **options)
    def chat(body: Annotated[PollingChat, Body()]) -> dict[str, Any]:
        code = workers.start(body)
        return _reply(code, STARTED if code is PollingCode.OK else MESSAGES[code])

    @router.post("/get_response", summary="Read the answer so far", **options)
    def get_response(body: Annotated[PollingId, Body()]) -> dict[str, Any]:
        record = workers.records.read(body.request_id)
        if record is None:
            return _reply(PollingCode.UNKNOWN, MESSAGES[PollingCode.UNKNOWN])
        return _reply(PollingCode.OK, MESSAGES[PollingCode.OK], response=record)

    @router.post("/cancel", summary="End an answer", **options)
    def cancel(body: Annotated[PollingId, Body()]) -> dict[str, Any]:
        code = workers.cancel(body.request_id)
        return _reply(code, MESSAGES[code])

    return router


def polling_error(error: ErrorResponse, path: str) -> JSONResponse:
    """An error in the form of upstream's answers."""
    return JSONResponse(_reply(error.kind.status, error.message), error.kind.status, error.headers)


def _reply(code: int, message: str, **more: Any) -> dict[str, Any]:
    return {"code": int(code), "msg": message, **more}
