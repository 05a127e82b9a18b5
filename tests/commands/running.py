"""Commands in-process."""

from __future__ import annotations

import pytest

from service.cli import main


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """A command -> exit status, stdout, stderr."""
    try:
        status = main([str(word) for word in words])
    except SystemExit as end:  # argparse's way out
        status = int(end.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err
