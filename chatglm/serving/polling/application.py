"""The Flask application: upstream's two endpoints, one to cancel, and sentences for bad requests.

Knows: routes, JSON bodies, HTTP statuses. Does not know how an answer is made.

What upstream answers is HTTP 200 with a `code`. What it would have crashed at is a 4xx with the same two fields, `code`
being the status.
"""

from __future__ import annotations

from typing import Any

from flask import Flask, Request, Response, jsonify, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from chatglm.cli.settings import MAX_BODY_BYTES, Settings
from chatglm.serving.access import check_key
from chatglm.serving.bodies import Model, parse_json, require_json_type, validate
from chatglm.serving.errors import BodyTooLargeError, refuse
from chatglm.serving.metrics import CONTENT_TYPE
from chatglm.serving.polling.records import Code
from chatglm.serving.polling.requests import PollingChat, PollingId
from chatglm.serving.polling.workers import Workers

MESSAGES = {
    Code.OK: "success",
    Code.BUSY: "busy now",
    Code.EXISTS: "request_id already exists",
    Code.UNKNOWN: "request_id not exists",
}
STARTED = "start process"


def create_app(workers: Workers, settings: Settings) -> Flask:
    """An application on a pool of workers."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    _add_routes(app, workers)
    _add_access(app, settings)
    _add_errors(app)
    return app


def _add_routes(app: Flask, workers: Workers) -> None:
    @app.post("/chat")
    def chat() -> Response:
        code = workers.start(_body(PollingChat))
        return _reply(code, STARTED if code is Code.OK else MESSAGES[code])

    @app.post("/get_response")
    def get_response() -> Response:
        record = workers.records.read(_body(PollingId).request_id)
        if record is None:
            return _reply(Code.UNKNOWN, MESSAGES[Code.UNKNOWN])
        return _reply(Code.OK, MESSAGES[Code.OK], response=record)

    @app.post("/cancel")
    def cancel() -> Response:
        code = workers.cancel(_body(PollingId).request_id)
        return _reply(code, MESSAGES[code])

    @app.get("/health")
    def health() -> Response:
        return jsonify({"status": "ok"})

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(workers.render_metrics(), content_type=CONTENT_TYPE)


def _add_access(app: Flask, settings: Settings) -> None:
    @app.before_request
    def require_key() -> None:
        is_preflight = request.method == "OPTIONS"
        if settings.api_key is not None and request.path != "/health" and not is_preflight:
            check_key(settings.api_key, request.headers.get("Authorization"))

    @app.after_request
    def allow_origins(response: Response) -> Response:
        origin = request.headers.get("Origin")
        if origin and (origin in settings.cors or "*" in settings.cors):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Allow-Headers"] = "Authorization, Content-Type"
            response.headers["Access-Control-Allow-Methods"] = "GET, POST"
            response.headers["Vary"] = "Origin"
        return response


def _add_errors(app: Flask) -> None:
    @app.errorhandler(RequestEntityTooLarge)
    def too_large(error: RequestEntityTooLarge) -> Response:
        return failed(BodyTooLargeError(f"The body is longer than {MAX_BODY_BYTES // 1024**2} MB."))

    @app.errorhandler(HTTPException)
    def on_http(error: HTTPException) -> Response:
        sentence = {
            404: f"There is nothing at {request.path}.",
            405: f"{request.method} is not possible at {request.path}.",
        }.get(error.code or 500, error.description or "")
        response = _reply(error.code or 500, sentence)
        response.status_code = error.code or 500
        for name, value in error.get_headers():
            if name == "Allow":
                response.headers[name] = value
        return response

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        refusal = refuse(error)
        response = _reply(refusal.row.status, refusal.sentence)
        response.status_code = refusal.row.status
        response.headers.update(refusal.headers)
        return response


def _reply(code: int, message: str, **more: Any) -> Response:
    return jsonify({"code": int(code), "msg": message, **more})


def _body(model: type[Model]) -> Model:
    """The checked body of the request being answered.

    Raises:
        InvalidRequestError: with one sentence.
    """
    current: Request = request
    require_json_type(current.headers.get("Content-Type"), forgives=True)
    return validate(model, parse_json(current.get_data()))
