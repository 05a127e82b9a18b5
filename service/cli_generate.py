"""The command `generate`: an answer printed while it is drawn, its pictures and sounds written to files."""

from __future__ import annotations

import base64
import queue
import sys
from argparse import Action, ArgumentParser, ArgumentTypeError, Namespace
from collections import deque
from pathlib import Path
from typing import Any

import orjson

from service.api.context import make_id
from service.api.generate_answer import Answering, encoded, generation_body, part_type
from service.api.generate_request import GenerateRequest, checked, sampling_of
from service.codecs.assembly import CodesContent, Event, PartCompleted, PartStarted, TextGrown
from service.codecs.bundle import IMAGE
from service.drawing import drawn
from service.engine.generation import ChoiceEnded, TokenDrawn
from service.models.vocabulary import TEXT
from service.runtime import Runtime

SUFFIXES = {"image": ".png", "audio": ".wav"}
Told = TokenDrawn | ChoiceEnded


class InOrder(Action):
    """Collects --text, --image and --audio in the order in which they stand."""

    def __call__(self, parser: ArgumentParser, arguments: Namespace, values: Any, option: str | None = None) -> None:
        """Append one part to `arguments.parts`."""
        assert option is not None
        arguments.parts = [*(arguments.parts or ()), (option.removeprefix("--"), values)]


def add_options(parser: ArgumentParser) -> None:
    """The options of `generate`."""
    parser.add_argument("prompt", nargs="?", help="text to go on from; parts that follow come after it")
    parser.set_defaults(parts=None)
    parser.add_argument("--text", action=InOrder, dest="parts", help="a part of the prompt; parts keep their order")
    parser.add_argument("--image", action=InOrder, dest="parts", type=Path, metavar="FILE", help="a picture's file")
    parser.add_argument("--audio", action=InOrder, dest="parts", type=Path, metavar="FILE", help="a recording's file")
    parser.add_argument("--mode", help="text-only, image-only, speech-only or interleaved (the latter)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="of each answer (256)")
    for name, kind in (("temperature", float), ("top-p", float), ("top-k", int)):
        text = "for all modalities, or as MODALITY=VALUE for one; may be repeated"
        parser.add_argument(f"--{name}", action="append", type=_each(kind), metavar="VALUE", help=text)
    parser.add_argument("--guidance", type=float, dest="guidance_scale", metavar="SCALE", help="of images and speech")
    parser.add_argument("--seed", type=int, help="the same seed, the same answer")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="ends an answer; may be repeated")
    parser.add_argument("--n", type=int, help="how many answers (1)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where PNG and WAV files go")
    parser.add_argument("--play-ascii", action="store_true", help="draw pictures in the terminal")
    parser.add_argument("--json", action="store_true", help="print what POST /generate answers")


def _each(kind: type[float] | type[int]) -> Any:
    """Parses VALUE or MODALITY=VALUE -> (modality or None, value)."""

    def parse(text: str) -> tuple[str | None, float]:
        modality, equals, value = text.rpartition("=")
        try:
            return (modality if equals else None, kind(value))
        except ValueError:
            raise ArgumentTypeError(f"a number, or MODALITY=number, is expected, not {text!r}") from None

    return parse


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
