"""The command `generate`: an answer printed while it is drawn, its pictures and sounds written to files."""

from __future__ import annotations

import base64
import queue
import sys
from argparse import Namespace
from collections import deque
from pathlib import Path
from typing import Any

import orjson

from service.api.context import make_id
from service.api.generate_answer import Answering, encoded, generation_body, part_type
from service.api.generate_request import GenerateRequest, checked, sampling_of
from service.codecs.assembly import CodesContent, Event, PartCompleted, PartStarted, TextGrown
from service.codecs.bundle import IMAGE
from service.commands import StartError
from service.commands.common import only, settings_of, started
from service.drawing import drawn
from service.engine.generation import ChoiceEnded, TokenDrawn
from service.logs import configure_logging
from service.models.vocabulary import TEXT
from service.runtime import Runtime
from service.served import GenerativeModel

SUFFIXES = {"image": ".png", "audio": ".wav"}
Told = TokenDrawn | ChoiceEnded


def run(arguments: Namespace) -> int:
    """Print an answer. Raises StartError, ServiceError."""
    settings = settings_of(arguments)
    configure_logging("warning", settings.log_format)
    if arguments.prompt is None and not arguments.parts:
        raise StartError("nothing to go on from; give a text, or at least one of --text, --image, --audio")
    try:
        call = request_of(arguments)
        if arguments.out is not None:
            arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"cannot use {error.filename}: {error.strerror or error}") from None
    runtime = started(only(GenerativeModel, settings))
    try:
        generate(runtime, call, arguments)
    finally:
        runtime.close(0)
    return 0


def request_of(arguments: Namespace) -> GenerateRequest:
    """What the command line asks, checked as the route checks it. Raises InvalidInput, TooLarge, OSError."""
    parts = [("text", arguments.prompt)] if arguments.prompt is not None else []
    parts += arguments.parts or []
    document: dict[str, Any] = {"prompt": [_part(kind, value) for kind, value in parts]}
    for name in ("mode", "max_tokens", "guidance_scale", "seed", "stop", "n"):
        if (value := getattr(arguments, name)) is not None:
            document[name] = value
    for name in ("temperature", "top_p", "top_k"):
        for modality, value in getattr(arguments, name) or ():
            if modality is None:
                document[name] = value
            else:
                named = document.get(name)
                document[name] = {**(named if isinstance(named, dict) else {}), modality: value}
    return checked(document, sys.maxsize)


def _part(kind: str, value: str | Path) -> dict[str, Any]:
    if isinstance(value, Path):
        return {"type": kind, "data": base64.b64encode(value.read_bytes()).decode()}
    return {"type": kind, "text": value}


def generate(runtime: Runtime, call: GenerateRequest, arguments: Namespace) -> None:
    """Draw and print. Raises ServiceError, OSError."""
    model = runtime.model(None, "generation")
    params = sampling_of(call.body, model.config, runtime.settings.max_tokens)
    answering = Answering(make_id("/generate"), model.config, model.codecs, params, call.body.tokens)
    told: queue.SimpleQueue[Told | None] = queue.SimpleQueue()
    future = runtime.generate(model, call.parts, params, deadline=None, request_id=answering.id, listener=told.put)
    future.add_done_callback(lambda _: told.put(None))
    printer = _Printer(answering, arguments.out, pictures=arguments.play_ascii, silent=arguments.json)
    try:
        while (event := told.get()) is not None:
            printer.tell(event)
    finally:
        future.cancel()
        printer.close()
    if arguments.json:
        print(orjson.dumps(generation_body(answering, future.result())).decode())
    else:
        future.result()


class _Printer:
    """Prints answers one after the other: what is told of later ones waits for those before."""

    def __init__(self, answering: Answering, out: Path | None, *, pictures: bool, silent: bool) -> None:
        """silent: write files and nothing else."""
        self.answering, self.out, self.pictures, self.silent = answering, out, pictures, silent
        n = answering.params.n
        self._waiting: list[deque[Told]] = [deque() for _ in range(n)]
        self._current, self._assembler = 0, answering.assembler()
        self._drawn, self._most = 0, n * answering.params.max_tokens
        self._midline = False
        self._terminal, self._progress, self._noted = sys.stdout.isatty(), sys.stderr.isatty(), False

    def tell(self, told: Told) -> None:
        """One piece of news."""
        self._waiting[told.choice].append(told)
        while self._current < len(self._waiting) and self._waiting[self._current]:
            self._show(self._waiting[self._current].popleft())
        if isinstance(told, TokenDrawn):
            self._drawn += 1
            self._note(f"{self._drawn} of at most {self._most} tokens")

    def close(self) -> None:
        """Leave both streams at the beginning of a line."""
        self._clear()
        self._end_line()

    def _show(self, told: Told) -> None:
        if isinstance(told, TokenDrawn):
            for part in self._assembler.feed(told.token):
                self._part(part)
            return
        for part in self._assembler.finish(told.text_bytes_dropped):
            self._part(part)
        self._end_line()
        self._current, self._assembler = self._current + 1, self.answering.assembler()
        if self._current < len(self._waiting):
            self._line(f"--- {self._current + 1} of {len(self._waiting)}")

    def _part(self, part: Event) -> None:
        if isinstance(part, TextGrown):
            self._write("".join(map(_printable, part.text)) if self._terminal else part.text)
        elif isinstance(part, PartStarted) and part.modality != TEXT:
            self._end_line()
        elif isinstance(part, PartCompleted) and isinstance(part.content, CodesContent):
            self._codes(part.index, part.content)

    def _codes(self, index: int, content: CodesContent) -> None:
        """An image, a clip, or codes that the model has no codec for."""
        codecs = self.answering.codecs
        kind, data = part_type(content.modality, codecs), encoded(content, codecs)
        if data is None:
            self._line(f"[{content.modality}: {' '.join(map(str, content.codes))}]")
            return
        where = f"{len(data)} bytes; --out DIR keeps it"
        if self.out is not None:
            path = self.out / f"{self._current}-{index}{SUFFIXES[kind]}"
            path.write_bytes(data)
            where = str(path)
        if kind == IMAGE and self.pictures:
            self._line(drawn(data, colour=self._terminal))
        self._line(f"[{kind}: {where}]")

    def _line(self, text: str) -> None:
        self._end_line()
        self._write(f"{text}\n")

    def _end_line(self) -> None:
        if self._midline:
            self._write("\n")

    def _write(self, text: str) -> None:
        if self.silent:
            return
        self._clear()
        sys.stdout.write(text)
        sys.stdout.flush()
        self._midline = not text.endswith("\n")

    def _note(self, text: str) -> None:
        """Progress, where a person looks and it overwrites no answer."""
        if self._progress and not (self._midline and self._terminal):
            sys.stderr.write(f"\r{text}\x1b[K")
            sys.stderr.flush()
            self._noted = True

    def _clear(self) -> None:
        if self._noted:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._noted = False


def _printable(character: str) -> str:
    """A character that cannot steer a terminal."""
    return character if character.isprintable() or character in "\n\t" else "\ufffd"
