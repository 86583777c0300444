"""The Flask application on waitress, and how it comes to its end.

Knows: waitress, signals, the bound of a shutdown. Does not know routes.

    SIGTERM -> /chat says 503, /get_response still answers -> answers go on for `shutdown_timeout` seconds
            -> those left are cancelled -> for another moment clients can read how it ended -> exit 0
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from waitress.server import create_server

from chatglm.cli.settings import MAX_BODY_BYTES
from chatglm.cli.signals import record_stop_signals
from chatglm.serving.commands import StartedServer
from chatglm.serving.desk import RequestService
from chatglm.serving.polling.application import create_app
from chatglm.serving.polling.workers import Workers

# Requests only read and write records, so a few threads serve many clients.
NUM_THREADS = 8
MAX_CONNECTIONS = 1000
# Between these two the application itself says that a body is too long, in its own form.
PATIENCE = 8
# Clients poll about once a second; the last answers wait for them so long.
LAST_READS_SECONDS = 1.5


def make_server(app: Any, start: StartedServer) -> Any:
    """A waitress server on the bound socket."""
    start.bound.listen(MAX_CONNECTIONS)
    # Requests that wait for one of the threads are no news: each takes a millisecond.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    return create_server(
        app,
        sockets=[start.bound],
        threads=NUM_THREADS,
        connection_limit=MAX_CONNECTIONS,
        max_request_body_size=MAX_BODY_BYTES * PATIENCE,
        ident=None,
        clear_untrusted_proxy_headers=True,
    )


def run(start: StartedServer) -> int:
    """Serve until a signal comes; returns the exit code."""
    desk = RequestService(start.pipeline, start.settings)
    workers = Workers(desk)
    with record_stop_signals() as signals:
        server = make_server(create_app(workers, start.settings), start)
        threading.Thread(target=server.run, name="chatglm-waitress", daemon=True).start()
        start.announce()
        signals.wait()
        desk.close()
        if workers.records.num_unfinished:
            workers.drain(start.settings.shutdown_timeout, lambda: signals.count > 1)
            time.sleep(LAST_READS_SECONDS)
        server.task_dispatcher.shutdown()
        return signals.exit_code
