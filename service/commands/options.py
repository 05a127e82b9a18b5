"""What each command takes. Imports nothing heavy: help is shown, and a mistake told, at once."""

from __future__ import annotations

from argparse import Action, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

EPILOG = "Further settings: environment variables SERPENTINE_*."
SOURCES = ("coupled-mamba-release", "hf-mamba")
Add = Callable[[ArgumentParser], None]


def parser() -> ArgumentParser:
    """Parses a command line; `command` of what comes out is the name of a module of this package."""
    whole = ArgumentParser(prog="serpentine", description="Serves multimodal state-space models.")
    whole.add_argument("--version", action="version", version=version("serpentine"))
    commands = whole.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, add, text in COMMANDS:
        add(commands.add_parser(name, help=text, description=text, epilog=EPILOG))
    return whole


def _models(sub: ArgumentParser) -> None:
    sub.add_argument("--model", metavar="DIR", action="append", type=Path, help="checkpoint folder; may be repeated")
    sub.add_argument("--config", metavar="FILE", type=Path, help="TOML file of settings")
    sub.add_argument("--backend", help="reference, cpu or triton; triton where there is an NVIDIA GPU, else cpu")
    sub.add_argument("--dtype", help="of the weights at work: float32 or bfloat16; the checkpoint's where not given")


def _serve(sub: ArgumentParser) -> None:
    _models(sub)
    sub.add_argument("--host", help="address to listen on (127.0.0.1)")
    sub.add_argument("--port", help="port to listen on (8080); 0 takes a free one")
    sub.add_argument("--threads", help="threads of the model's arithmetic")
    sub.add_argument("--log-level", help="debug, info, warning or error")
    sub.add_argument("--log-format", help="json, pretty or auto")


def _config(sub: ArgumentParser) -> None:
    _serve(sub)
    sub.add_argument("--json", action="store_true", help="print them as JSON, with what each means")


def _predict(sub: ArgumentParser) -> None:
    _models(sub)
    sub.add_argument("--text", help="the transcript")
    sub.add_argument("--audio", metavar="FILE", type=Path, help="an audio file")
    sub.add_argument("--video", metavar="FILE", type=Path, help="a video file or an OpenFace CSV")
    sub.add_argument("--timeline", action="store_true", help="also the running sentiment")
    sub.add_argument("--attribution", action="store_true", help="also each modality's contribution")
    sub.add_argument("--json", action="store_true", help="print what POST /predict answers")


def _generate(sub: ArgumentParser) -> None:
    _models(sub)
    sub.add_argument("prompt", nargs="?", help="text to go on from; parts that follow come after it")
    sub.set_defaults(parts=None)
    sub.add_argument("--text", action=InOrder, dest="parts", help="a part of the prompt; parts keep their order")
    sub.add_argument("--image", action=InOrder, dest="parts", type=Path, metavar="FILE", help="a picture's file")
    sub.add_argument("--audio", action=InOrder, dest="parts", type=Path, metavar="FILE", help="a recording's file")
    sub.add_argument("--mode", help="text-only, image-only, speech-only or interleaved (the latter)")
    sub.add_argument("--max-tokens", type=int, metavar="N", help="of each answer (256)")
    for name, kind in (("temperature", float), ("top-p", float), ("top-k", int)):
        text = "for all modalities, or as MODALITY=VALUE for one; may be repeated"
        sub.add_argument(f"--{name}", action="append", type=_each(kind), metavar="VALUE", help=text)
    sub.add_argument("--guidance", type=float, dest="guidance_scale", metavar="SCALE", help="of images and speech")
    sub.add_argument("--seed", type=int, help="the same seed, the same answer")
    sub.add_argument("--stop", action="append", metavar="TEXT", help="ends an answer; may be repeated")
    sub.add_argument("--n", type=int, help="how many answers (1)")
    sub.add_argument("--out", type=Path, metavar="DIR", help="where PNG and WAV files go")
    sub.add_argument("--play-ascii", action="store_true", help="draw pictures in the terminal")
    sub.add_argument("--json", action="store_true", help="print what POST /generate answers")


class InOrder(Action):
    """Collects --text, --image and --audio in the order in which they stand."""

    def __call__(self, parser: ArgumentParser, arguments: Namespace, values: Any, option: str | None = None) -> None:
        """Append one part to `arguments.parts`."""
        assert option is not None
        arguments.parts = [*(arguments.parts or ()), (option.removeprefix("--"), values)]


def _each(kind: type[float] | type[int]) -> Any:
    """Parses VALUE or MODALITY=VALUE -> (modality or None, value)."""

    def parse(text: str) -> tuple[str | None, float]:
        modality, equals, value = text.rpartition("=")
        try:
            return (modality if equals else None, kind(value))
        except ValueError:
            raise ArgumentTypeError(f"a number, or MODALITY=number, is expected, not {text!r}") from None

    return parse


def _cards(sub: ArgumentParser) -> None:
    _models(sub)
    sub.add_argument("--json", action="store_true", help="print the model cards")


def _convert(sub: ArgumentParser) -> None:
    sub.add_argument("--from", dest="source", required=True, choices=SOURCES, help="whose checkpoint it is")
    sub.add_argument("path", metavar="PATH", type=Path, help="the file, or for hf-mamba the folder")
    sub.add_argument("out", metavar="OUT", type=Path, help="the folder to make")
    more = "hf-mamba: 2 adds images and 3 speech too, with copies of all projections, to start training from"
    sub.add_argument("--modalities", type=int, choices=(1, 2, 3), default=1, help=more)
    for name, size, text in (
        ("image-codes", 256, "how many codes images are made of"),
        ("image-tokens", 49, "codes of an image"),
        ("speech-codes", 256, "how many units speech is made of"),
        ("speech-tokens", 64, "units of a clip at most"),
    ):
        sub.add_argument(f"--{name}", metavar="N", type=int, default=size, help=f"{text} ({size})")


def _cluster(sub: ArgumentParser) -> None:
    _models(sub)
    sub.add_argument("action", choices=("deploy", "stop"), help="put the service there or replace it; take it away")
    sub.add_argument("--address", help="of the cluster's head (RAY_ADDRESS, or one on this machine)")
    sub.add_argument("--host", default="0.0.0.0", help="address that every node listens on (0.0.0.0)")
    sub.add_argument("--port", type=int, default=8080, help="port that every node listens on (8080)")
    sub.add_argument("--replicas", default="1", metavar="N[:MOST]", help="how many, or the least and the most (1)")
    sub.add_argument("--up-after", type=float, default=30.0, metavar="S", help="of a lack, before one is added (30)")
    sub.add_argument("--down-after", type=float, default=600.0, metavar="S", help="of plenty, before one goes (600)")
    sub.add_argument("--gateways", type=int, default=1, help="processes that pass requests on (1)")
    sub.add_argument("--cpus", type=float, default=1.0, help="that a replica reserves (1)")
    sub.add_argument("--gpus", type=float, default=0.0, help="that a replica reserves (0)")
    sub.add_argument("--spread", action="store_true", help="at most one replica and one gateway a node")


def _keys(sub: ArgumentParser) -> None:
    sub.add_argument("action", choices=("new",), help="new: print a key's line for SERPENTINE_API_KEYS_FILE")
    sub.add_argument("name", metavar="NAME", help="whose it is: in the logs, and for sessions and quotas")


COMMANDS: tuple[tuple[str, Add, str], ...] = (
    ("serve", _serve, "Serve models over HTTP."),
    ("config", _config, "Show the settings that hold, and where each came from."),
    ("predict", _predict, "Sentiment of one clip, without a server."),
    ("generate", _generate, "Go on from text, pictures and recordings, without a server."),
    ("models", _cards, "Show the models that would be served."),
    ("convert", _convert, "Make a checkpoint folder of another code's checkpoint."),
    ("cluster", _cluster, "Serve models from several machines, on a Ray cluster."),
    ("keys", _keys, "Make API keys."),
)
