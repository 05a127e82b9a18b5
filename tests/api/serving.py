"""A service that listens on a real socket."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

from service.api.server import Server, bind
from service.runtime import Runtime


@contextmanager
def serving(runtime: Runtime) -> Generator[str, None, None]:
    """The address of a server over `runtime`, which it closes at the end."""
    listening = threading.Event()
    server = Server(runtime, listening.set)
    with bind("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        assert listening.wait(20)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.handle_exit(0, None)
        thread.join(20)
        assert not thread.is_alive()
