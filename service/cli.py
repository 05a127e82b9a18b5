"""The command `serpentine`: serve | predict | generate | models | convert | config | keys | cluster.

Exit status: 0 done, 1 the input was refused or the work failed, 2 the command could not start. Answers go to stdout,
all else to stderr.
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from service.api.context import make_id
from service.api.openapi import examples, generate_examples
from service.api.schemas import prediction_body
from service.api.server import Server, bind
from service.cli_cluster import add_cluster_options, deploy_to_cluster
from service.cli_generate import add_options, generate, request_of
from service.engine.prediction import Prediction, PredictOptions
from service.errors import ServiceError
from service.features.extras import MissingExtra
from service.features.types import Media, TextSegment
from service.keys.keyring import new_key
from service.logs import configure_logging
from service.metrics import Metrics
from service.models.checkpoint import CheckpointConfig
from service.models.convert import SOURCES, convert
from service.models.expand import AddedMedium
from service.models.memory import OutOfMemory
from service.runtime import Runtime
from service.served import GenerativeModel, ServedModel, kind_of, load_model
from service.settings import Settings, SettingsError, load_settings
from service.settings_table import effective, shown
from service.tracing import Tracing, TracingError, start_tracing

FLAGS = ("config", "host", "port", "threads", "log_level", "log_format")

log = logging.getLogger(__name__)


class StartError(Exception):
    """The command cannot begin; its text says why in a line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line -> its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        return status
    except ServiceError as error:
        return _complain(error.detail, 1)
    except (StartError, SettingsError) as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return 130


def _complain(message: str, status: int) -> int:
    print(f"serpentine: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serpentine", description="Serves multimodal state-space models.")
    parser.add_argument("--version", action="version", version=version("serpentine"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, epilog="Further settings: environment variables SERPENTINE_*."
        )
        sub.set_defaults(run=run)
        return sub

    def model_option(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--model", metavar="DIR", action="append", type=Path, help="checkpoint folder; may be repeated"
        )
        sub.add_argument("--config", metavar="FILE", type=Path, help="TOML file of settings")

    def serve_options(sub: argparse.ArgumentParser) -> None:
        model_option(sub)
        sub.add_argument("--host", help="address to listen on (127.0.0.1)")
        sub.add_argument("--port", help="port to listen on (8080); 0 takes a free one")
        sub.add_argument("--threads", help="threads of the model's arithmetic")
        sub.add_argument("--log-level", help="debug, info, warning or error")
        sub.add_argument("--log-format", help="json, pretty or auto")

    serve_options(command("serve", _serve, "Serve models over HTTP."))

    config = command("config", _config, "Show the settings that hold, and where each came from.")
    serve_options(config)
    config.add_argument("--json", action="store_true", help="print them as JSON, with what each means")

    predict = command("predict", _predict, "Sentiment of one clip, without a server.")
    model_option(predict)
    predict.add_argument("--text", help="the transcript")
    predict.add_argument("--audio", metavar="FILE", type=Path, help="an audio file")
    predict.add_argument("--video", metavar="FILE", type=Path, help="a video file or an OpenFace CSV")
    predict.add_argument("--timeline", action="store_true", help="also the running sentiment")
    predict.add_argument("--attribution", action="store_true", help="also each modality's contribution")
    predict.add_argument("--json", action="store_true", help="print what POST /predict answers")

    generator = command("generate", _generate, "Go on from text, pictures and recordings, without a server.")
    model_option(generator)
    add_options(generator)

    models = command("models", _models, "Show the models that would be served.")
    model_option(models)
    models.add_argument("--json", action="store_true", help="print the model cards")

    converter = command("convert", _convert, "Make a checkpoint folder of another code's checkpoint.")
    converter.add_argument("--from", dest="source", required=True, choices=SOURCES, help="whose checkpoint it is")
    converter.add_argument("path", metavar="PATH", type=Path, help="the file, or for hf-mamba the folder")
    converter.add_argument("out", metavar="OUT", type=Path, help="the folder to make")
    converter.add_argument(
        "--modalities",
        type=int,
        choices=(1, 2, 3),
        default=1,
        help="hf-mamba: 2 adds images and 3 speech too, with copies of all projections, to start training from",
    )
    cluster = command("cluster", _cluster, "Serve models from several machines, on a Ray cluster.")
    model_option(cluster)
    add_cluster_options(cluster)

    keys = command("keys", _keys, "Make API keys.")
    keys.add_argument("action", choices=("new",), help="new: print a key's line for SERPENTINE_API_KEYS_FILE")
    keys.add_argument("name", metavar="NAME", help="whose it is: in the logs, and for sessions and quotas")

    for name, size, text in (
        ("image-codes", 256, "how many codes images are made of"),
        ("image-tokens", 49, "codes of an image"),
        ("speech-codes", 256, "how many units speech is made of"),
        ("speech-tokens", 64, "units of a clip at most"),
    ):
        converter.add_argument(f"--{name}", metavar="N", type=int, default=size, help=f"{text} ({size})")
    return parser


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of the settings."""
    given = {name: getattr(arguments, name, None) for name in FLAGS}
    return {**given, "models": tuple(arguments.model) if arguments.model else None}


def _settings(arguments: argparse.Namespace) -> Settings:
    return load_settings(_given(arguments))


def _cluster(arguments: argparse.Namespace) -> int:
    try:
        return deploy_to_cluster(arguments, _given(arguments))
    except (ValueError, ConnectionError, MissingExtra) as error:
        raise StartError(str(error)) from error


def _config(arguments: argparse.Namespace) -> int:
    settings = effective(_given(arguments))
    if arguments.json:
        print(orjson.dumps(settings, option=orjson.OPT_INDENT_2).decode())
        return 0
    width = max(len(setting.name) for setting in settings)
    for setting in settings:
        print(f"{setting.name:{width}}  {setting.source:11}  {shown(setting.value)}")
    return 0


def _started(settings: Settings, tracing: Tracing | None = None) -> Runtime:
    try:
        return Runtime.start(settings, Metrics(), tracing)
    except (ValueError, OSError, MissingExtra) as error:  # a bad folder, a missing file or package
        raise StartError(str(error)) from error
    except OutOfMemory as error:
        raise StartError(f"no memory for the models with {settings.slots} slots: {error}") from error


def _serve(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
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
        runtime = _started(settings, tracing)
        host, port = listener.getsockname()[:2]
        if not runtime.keys and not ipaddress.ip_address(host).is_loopback:
            log.warning("no API keys are configured: whoever reaches this address may ask", extra={"address": host})
        Server(runtime, lambda: print(_banner(runtime, host, port), flush=True)).run(sockets=[listener])
    tracing.close()
    return 0


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


def _predict(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    configure_logging("warning", settings.log_format)
    text = None if arguments.text is None else (TextSegment(arguments.text),)
    media = Media(text, _content(arguments.audio), _content(arguments.video))
    if media == Media():
        raise StartError("nothing to predict; give at least one of --text, --audio, --video")
    runtime = _started(_only(ServedModel, settings))
    try:
        options = PredictOptions(timeline=arguments.timeline, attribution=arguments.attribution)
        call_id = make_id("/predict")
        prediction = runtime.submit(runtime.model(None), media, {}, options, deadline=None, request_id=call_id).result()
    finally:
        runtime.close(0)
    print(orjson.dumps(prediction_body(prediction, call_id)).decode() if arguments.json else describe(prediction))
    return 0


def _only(kind: type[ServedModel] | type[GenerativeModel], settings: Settings) -> Settings:
    """Settings with the models of one kind alone: the others would be loaded for nothing."""
    try:
        fitting = tuple(folder for folder in settings.models if kind_of(folder) is kind)
    except ValueError as error:
        raise StartError(str(error)) from None
    if not fitting:
        names = ", ".join(str(folder) for folder in settings.models)
        raise StartError(f"none of {names} is for {kind.task}; name one with --model DIR")
    return settings.model_copy(update={"models": fitting, "api_keys_file": None})  # which are for who asks a server


def _generate(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    configure_logging("warning", settings.log_format)
    if arguments.prompt is None and not arguments.parts:
        raise StartError("nothing to go on from; give a text, or at least one of --text, --image, --audio")
    try:
        call = request_of(arguments)
        if arguments.out is not None:
            arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"cannot use {error.filename}: {error.strerror or error}") from None
    runtime = _started(_only(GenerativeModel, settings))
    try:
        generate(runtime, call, arguments)
    finally:
        runtime.close(0)
    return 0


def _content(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise StartError(f"cannot read {path}: {error.strerror or error}") from None


def describe(prediction: Prediction) -> str:
    """A prediction for people, a fact a line."""
    low, high = prediction.scale
    confidence = "" if prediction.confidence is None else f", confidence {prediction.confidence:.2f}"
    abstained = " (too low to say: abstained)" if prediction.abstained else ""
    lines = [f"{prediction.label}: {prediction.sentiment:+.2f} on {low:g} to {high:g}{confidence}{abstained}"]
    if (interval := prediction.interval) is not None:
        lines.append(f"{interval.coverage:.0%} interval: {interval.low:+.2f} to {interval.high:+.2f}")
    for name, values in (("labels", prediction.probabilities), ("emotions", prediction.emotions)):
        if values:
            ranked = sorted(values.items(), key=lambda item: -item[1])
            lines.append(f"{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in ranked))
    for name, reading in prediction.modalities.items():
        note = f" ({prediction.notes[name]})" if name in prediction.notes else ""
        gave = "" if reading is None or reading.contribution is None else f", contribution {reading.contribution:+.2f}"
        lines.append(f"{name}: " + ("absent" if reading is None else f"{reading.steps} steps{gave}") + note)
    if prediction.timeline is not None:
        lines += ["timeline:", *(f"  {t:8.2f}  {value:+.2f}" for t, value in prediction.timeline)]
    return "\n".join(lines)


def _models(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    configure_logging("warning", settings.log_format)
    try:
        cards = [load_model(folder, settings, Metrics()).card for folder in settings.models]
    except (ValueError, OSError, MissingExtra) as error:
        raise StartError(str(error)) from error
    if arguments.json:
        print(orjson.dumps(cards, option=orjson.OPT_INDENT_2).decode())
        return 0
    for card in cards:
        print(_line(card))
    return 0


def _line(card: dict[str, Any]) -> str:
    if card["task"] == GenerativeModel.task:
        codecs, sizes = card["codecs"], card["vocabulary"]["sizes"]
        has = ", ".join(f"{name} [{size}]{'' if name in codecs else ' ids only'}" for name, size in sizes.items())
        does = f"reads and writes {has}"
    else:
        has = ", ".join(
            f"{name} [{modality['dim']}] {modality.get('recipe') or 'features only'}"
            for name, modality in card["recipe"]["modalities"].items()
        )
        does = f"reads {has}"
    return (
        f"{card['name']} {card['version']}  {card['architecture']}, {card['parameters']:,} parameters\n"
        f"  {does}\n  licence: {card.get('licence', 'not stated')}"
    )


def _keys(arguments: argparse.Namespace) -> int:
    try:
        secret, line = new_key(arguments.name)
    except ValueError as error:
        raise StartError(str(error)) from None
    print(f"The key, which is shown this once and kept nowhere:\n\n  {secret}\n", file=sys.stderr)
    print(line)
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    media = {
        "image": AddedMedium(arguments.image_codes, (arguments.image_tokens, arguments.image_tokens)),
        "speech": AddedMedium(arguments.speech_codes, (1, arguments.speech_tokens)),
    }
    added = dict(list(media.items())[: arguments.modalities - 1])
    try:
        config = convert(arguments.source, arguments.path, arguments.out, added)
    except (ValueError, OSError) as error:
        raise StartError(str(error)) from None
    sizes = config.model.modalities if isinstance(config, CheckpointConfig) else config.vocabulary.sizes
    print(f"{arguments.out} reads {dict(sizes)}; serve it: serpentine serve --model {arguments.out}")
    return 0
