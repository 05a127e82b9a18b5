"""The command `keys`, in-process."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.keys.keyring import read_keys
from tests.commands.running import run


def test_a_new_key_is_shown_once_and_its_line_works(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, line, shown = run(capsys, "keys", "new", "alice")
    assert status == 0
    secret = shown.split()[-1]
    assert secret not in line
    path = tmp_path / "keys.jsonl"
    path.write_text(line)
    found = read_keys(path).find(secret)
    assert found is not None
    assert found.name == "alice"
    assert run(capsys, "keys", "new", "a b")[0] == 2
