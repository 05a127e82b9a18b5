"""The command `serve`."""

from __future__ import annotations

import ipaddress
import logging
import os
import shlex
import signal
import threading
from argparse import Namespace

import orjson

from service.api.openapi import examples, generate_examples
from service.api.server import Server, bind
from service.commands import StartError
from service.commands.common import settings_of, started
from service.commands.readers import let_go
from service.logs import configure_logging
from service.runtime import Runtime
from service.served import GenerativeModel
from service.tracing import TracingError, start_tracing

log = logging.getLogger(__name__)


def run(arguments: Namespace) -> int:
    """Serve until a signal ends it. Raises StartError."""
    settings = settings_of(arguments)
    configure_logging(settings.log_level, settings.log_format)
    logging.captureWarnings(True)
    try:
        tracing = start_tracing(os.environ)
    except TracingError as error:
        raise StartError(str(error)) from None
    try:
        listener = bind(settings.host, settings.port)
    except OSError as error:
        raise StartError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}") from None
    with listener:
        runtime = started(settings, tracing)
        host, port = listener.getsockname()[:2]
        if not runtime.keys and not ipaddress.ip_address(host).is_loopback:
            log.warning("no API keys are configured: whoever reaches this address may ask", extra={"address": host})
        if runtime.keys:  # beside the event loop, which this interrupts
            signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=runtime.reread_keys, name="keys").start())
        Server(runtime, lambda: _announce(_banner(runtime, host, port))).run(sockets=[listener])
    tracing.close()
    return 0


def _announce(banner: str) -> None:
    try:
        print(banner, flush=True)
    except BrokenPipeError:
        if not let_go():  # a service is not there for who reads this
            raise


def _banner(runtime: Runtime, host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
    key = ' -H "Authorization: Bearer $KEY"' if runtime.keys else ""
    lines = [f"Serpentine listens on {url} and serves {', '.join(runtime.models)}. Try:"]
    for model in {model.task: model for model in reversed(list(runtime.models.values()))}.values():
        if isinstance(model, GenerativeModel):
            route, found = "generate", generate_examples(model)
        else:
            route, found = "predict", examples(model)
        example = shlex.quote(orjson.dumps(next(iter(found.values()))).decode())
        lines.append(f"  curl -s {url}/{route}{key} -H 'Content-Type: application/json' -d {example}")
    return "\n".join(lines)
