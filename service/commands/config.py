"""The command `config`: the settings that hold, and where each came from."""

from __future__ import annotations

from argparse import Namespace

import orjson

from service.commands import StartError
from service.commands.common import given
from service.settings import SettingsError
from service.settings_table import effective, shown


def run(arguments: Namespace) -> int:
    """Print them. Raises StartError."""
    try:
        settings = effective(given(arguments))
    except SettingsError as error:
        raise StartError(str(error)) from error
    if arguments.json:
        print(orjson.dumps(settings, option=orjson.OPT_INDENT_2).decode())
        return 0
    width = max(len(setting.name) for setting in settings)
    for setting in settings:
        print(f"{setting.name:{width}}  {setting.source:11}  {shown(setting.value)}")
    return 0
