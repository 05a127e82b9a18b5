"""What commands share: settings out of the command line, and a runtime with the models that they need."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from service.commands import StartError
from service.features.extras import MissingExtra
from service.metrics import Metrics
from service.models.memory import OutOfMemory
from service.runtime import Runtime
from service.served import GenerativeModel, ServedModel, kind_of
from service.settings import Settings, SettingsError, load_settings
from service.tracing import Tracing

FLAGS = ("config", "backend", "dtype", "host", "port", "threads", "log_level", "log_format")


def given(arguments: Namespace) -> dict[str, Any]:
    """What the command line says of the settings."""
    flags = {name: getattr(arguments, name, None) for name in FLAGS}
    return {**flags, "models": tuple(arguments.model) if arguments.model else None}


def settings_of(arguments: Namespace) -> Settings:
    """The settings that hold. Raises StartError."""
    try:
        return load_settings(given(arguments))
    except SettingsError as error:
        raise StartError(str(error)) from error


def started(settings: Settings, tracing: Tracing | None = None) -> Runtime:
    """A runtime. Raises StartError."""
    try:
        return Runtime.start(settings, Metrics(), tracing)
    except (ValueError, OSError, MissingExtra) as error:  # a bad folder, a missing file or package
        raise StartError(str(error)) from error
    except OutOfMemory as error:
        raise StartError(f"no memory for the models with {settings.slots} slots: {error}") from error


def only(kind: type[ServedModel] | type[GenerativeModel], settings: Settings) -> Settings:
    """Settings with the models of one kind alone: the others would be loaded for nothing. Raises StartError."""
    try:
        fitting = tuple(folder for folder in settings.models if kind_of(folder) is kind)
    except ValueError as error:
        raise StartError(str(error)) from None
    if not fitting:
        names = ", ".join(str(folder) for folder in settings.models)
        raise StartError(f"none of {names} is for {kind.task}; name one with --model DIR")
    return settings.model_copy(update={"models": fitting, "api_keys_file": None})  # which are for who asks a server
