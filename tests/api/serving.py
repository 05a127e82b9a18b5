"""A service that listens on a real socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager

from service.api.server import Server, bind
from service.runtime import Runtime


@contextmanager
def serving(runtime: Runtime, send_buffer: int | None = None) -> Generator[str, None, None]:
    """The address of a server over `runtime`, which it closes at the end. send_buffer: bytes, of each connection."""
    listening = threading.Event()
    server = Server(runtime, listening.set)
    with bind("127.0.0.1", 0) as listener:
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        assert listening.wait(20)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:  # or a test that fails within would leave a thread that no process ends with
            server.handle_exit(0, None)
            thread.join(20)
        assert not thread.is_alive()
