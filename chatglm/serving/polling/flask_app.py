"""Upstream's two polling endpoints and one to cancel, in Flask.

Upstream's answers are HTTP 200 with a `code`; where it would have crashed, a 4xx has the same fields and its status.
"""

from __future__ import annotations

from typing import Any

from flask import Flask, Request, Response, jsonify, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from chatglm.cli.settings import MAX_BODY_BYTES
from chatglm.serving.http_errors import BodyTooLargeError, ErrorResponse, router_message
from chatglm.serving.polling.record_store import PollingCode
from chatglm.serving.polling.workers import PollingWorkers
from chatglm.serving.prometheus import CONTENT_TYPE
from chatglm.serving.schemas import Model, PollingChat, PollingId, check_content_type, parse_json, validate
from chatglm.serving.service import RequestService

MESSAGES = {
    PollingCode.OK: "success",
    PollingCode.BUSY: "busy now",
    PollingCode.EXISTS: "request_id already exists",
    PollingCode.UNKNOWN: "request_id not exists",
}
STARTED = "start process"


def create_polling_app(service: RequestService, workers: PollingWorkers) -> Flask:
    """The application of a service and its worker threads."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    _add_routes(app, service, workers)
    _add_access(app, service)
    _add_error_handlers(app)
    return app


def _add_routes(app: Flask, service: RequestService, workers: PollingWorkers) -> None:
    @app.post("/chat")
    def chat() -> Response:
        code = workers.start(_body(PollingChat))
        return _reply(code, STARTED if code is PollingCode.OK else MESSAGES[code])

    @app.post("/get_response")
    def get_response() -> Response:
        record = workers.records.read(_body(PollingId).request_id)
        if record is None:
            return _reply(PollingCode.UNKNOWN, MESSAGES[PollingCode.UNKNOWN])
        return _reply(PollingCode.OK, MESSAGES[PollingCode.OK], response=record)

    @app.post("/cancel")
    def cancel() -> Response:
        code = workers.cancel(_body(PollingId).request_id)
        return _reply(code, MESSAGES[code])

    @app.get("/health")
    def health() -> Response:
        return jsonify({"status": "ok"})

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(service.metrics.render(), content_type=CONTENT_TYPE)


def _add_access(app: Flask, service: RequestService) -> None:
    cors = service.settings.cors

    @app.before_request
    def authenticate() -> None:
        is_preflight = request.method == "OPTIONS"
        if request.path != "/health" and not is_preflight:
            service.authenticate(request.headers.get("Authorization"))

    @app.after_request
    def allow_origins(response: Response) -> Response:
        origin = request.headers.get("Origin")
        if origin and (origin in cors or "*" in cors):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Allow-Headers"] = "Authorization, Content-Type"
            response.headers["Access-Control-Allow-Methods"] = "GET, POST"
            response.headers["Vary"] = "Origin"
        return response


def _add_error_handlers(app: Flask) -> None:
    @app.errorhandler(RequestEntityTooLarge)
    def too_large(error: RequestEntityTooLarge) -> Response:
        return failed(BodyTooLargeError(f"The body is longer than {MAX_BODY_BYTES // 1024**2} MB."))

    @app.errorhandler(HTTPException)
    def on_http(error: HTTPException) -> Response:
        status = error.code or 500
        response = _reply(status, router_message(status, request.method, request.path, error.description or ""))
        response.status_code = status
        for name, value in error.get_headers():
            if name == "Allow":
                response.headers[name] = value
        return response

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        described = ErrorResponse.of(error)
        response = _reply(described.kind.status, described.message)
        response.status_code = described.kind.status
        response.headers.update(described.headers)
        return response


def _reply(code: int, message: str, **more: Any) -> Response:
    return jsonify({"code": int(code), "msg": message, **more})


def _body(model: type[Model]) -> Model:
    current: Request = request
    check_content_type(current.headers.get("Content-Type"), forgives=True)
    return validate(model, parse_json(current.get_data()))
