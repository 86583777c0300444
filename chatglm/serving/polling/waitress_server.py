"""The Flask application on waitress, and its shutdown.

SIGTERM -> /chat answers 503, /get_response still answers -> answers go on for `shutdown_timeout` seconds
        -> those left are cancelled -> for another moment clients can read the end -> exit 0
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from typing import Any

from waitress.server import create_server

from chatglm.cli.settings import MAX_BODY_BYTES
from chatglm.cli.signals import record_stop_signals
from chatglm.serving.commands import StartedServer
from chatglm.serving.polling.flask_app import create_polling_app
from chatglm.serving.polling.workers import PollingWorkers
from chatglm.serving.service import RequestService

# Requests only read and write records, so a few threads serve many clients.
NUM_THREADS = 8
MAX_CONNECTIONS = 1000
# Up to so many times the limit the application itself rejects a long body, in its own form.
DISCARD_FACTOR = 8
# Clients poll about once a second; the last answers stay readable for this long.
LAST_READS_SECONDS = 1.5


def make_polling_server(app: Any, bound: socket.socket) -> Any:
    """A waitress server on a bound socket."""
    bound.listen(MAX_CONNECTIONS)
    # No warnings about requests that wait for a thread: each takes a millisecond.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    return create_server(
        app,
        sockets=[bound],
        threads=NUM_THREADS,
        connection_limit=MAX_CONNECTIONS,
        max_request_body_size=MAX_BODY_BYTES * DISCARD_FACTOR,
        ident=None,
        clear_untrusted_proxy_headers=True,
    )


def run(start: StartedServer) -> int:
    """Serve until a signal comes; returns the exit code."""
    service = RequestService(start.pipeline, start.settings)
    workers = PollingWorkers(service)
    with record_stop_signals() as signals:
        server = make_polling_server(create_polling_app(service, workers), start.bound)
        threading.Thread(target=server.run, name="chatglm-waitress", daemon=True).start()
        start.announce()
        signals.wait()
        service.close()
        if workers.records.num_unfinished:
            workers.drain(start.settings.shutdown_timeout, lambda: signals.count > 1)
            time.sleep(LAST_READS_SECONDS)
        server.task_dispatcher.shutdown()
        return signals.exit_code
