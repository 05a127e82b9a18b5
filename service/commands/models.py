"""The command `models`: what would be served."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import orjson

from service.commands import StartError
from service.commands.common import settings_of
from service.features.extras import MissingExtra
from service.logs import configure_logging
from service.metrics import Metrics
from service.served import GenerativeModel, load_model


def run(arguments: Namespace) -> int:
    """Print a card a model. Raises StartError."""
    settings = settings_of(arguments)
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
