"""What commands take: told at once, and at one with the commands."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

from service.commands.options import COMMANDS, SOURCES
from service.models import convert


def test_every_command_runs_and_every_source_is_known() -> None:
    assert all(callable(import_module(f"service.commands.{name}").run) for name, *_ in COMMANDS)
    assert SOURCES == convert.SOURCES


def test_help_waits_for_nothing_heavy() -> None:
    program = """if True:
        import sys
        from service.cli import main
        try:
            main(["serve", "--help"])
        except SystemExit:
            print([name for name in ("fastapi", "numpy", "torch") if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith("usage: serpentine serve"), done.stderr
    assert done.stdout.endswith("[]\n")
