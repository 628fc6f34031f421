"""moto's server, which carries out one request after another: `one_by_one_moto.py PORT`.

Its own server looks for an object first and stores the new one later, each request in a thread, so that of
two conditional writes at the same time both may be accepted. Bodies are read before a request has its turn.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple
from werkzeug.wsgi import get_input_stream


class OneByOne:
    """A WSGI application that is entered by one thread at a time."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._turn = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = get_input_stream(environ).read()
        environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(body), str(len(body))
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        with self._turn:
            return list(self._application(environ, start_response))


if __name__ == "__main__":
    serving = OneByOne(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", int(sys.argv[1]), serving, threaded=True, request_handler=MotoRequestHandler)
