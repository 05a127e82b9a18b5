"""The command `convert`: another code's checkpoint, made into a folder of ours."""

from __future__ import annotations

from argparse import Namespace

from service.commands import StartError
from service.models.checkpoint import CheckpointConfig
from service.models.convert import convert
from service.models.expand import AddedMedium


def run(arguments: Namespace) -> int:
    """Convert, and say what came of it. Raises StartError."""
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
