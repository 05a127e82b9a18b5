"""The command `predict`: the sentiment of one clip, without a server."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import orjson

from service.api.context import make_id
from service.api.schemas import prediction_body
from service.commands import StartError
from service.commands.common import only, settings_of, started
from service.engine.prediction import Prediction, PredictOptions
from service.features.types import Media, TextSegment
from service.logs import configure_logging
from service.served import ServedModel


def run(arguments: Namespace) -> int:
    """Print a prediction. Raises StartError, ServiceError."""
    settings = settings_of(arguments)
    configure_logging("warning", settings.log_format)
    text = None if arguments.text is None else (TextSegment(arguments.text),)
    media = Media(text, _content(arguments.audio), _content(arguments.video))
    if media == Media():
        raise StartError("nothing to predict; give at least one of --text, --audio, --video")
    runtime = started(only(ServedModel, settings))
    try:
        options = PredictOptions(timeline=arguments.timeline, attribution=arguments.attribution)
        call_id = make_id("/predict")
        prediction = runtime.submit(runtime.model(None), media, {}, options, deadline=None, request_id=call_id).result()
    finally:
        runtime.close(0)
    print(orjson.dumps(prediction_body(prediction, call_id)).decode() if arguments.json else describe(prediction))
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
