"""`serpentine cluster`: what does not fit is told in a line, before a cluster is looked for."""

from __future__ import annotations

import sys

import pytest

from service.cli import main


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--replicas", "0"], "--replicas: at least one"),
        (["--replicas", "3:2"], "--replicas: at least one, and the least first"),
        (["--replicas", "two"], "--replicas: N or N:MOST is expected, not 'two'"),
        (["--port", "70000"], "--port: 1 to 65535 is expected, not 70000"),
        (["--gateways", "0"], "--gateways: 1 to inf is expected, not 0"),
        (["--cpus", "-1"], "--cpus: 0 to inf is expected, not -1.0"),
        (["--gpus", "nan"], "--gpus: 0 to inf is expected, not nan"),
        (["--up-after", "-1"], "--up-after: 0 to inf is expected, not -1.0"),
        (["--down-after", "nan"], "--down-after: 0 to inf is expected, not nan"),
    ],
)
def test_wrong_options_end_with_2(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "deploy", *words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("action", ["deploy", "stop"])
def test_without_the_extra(action: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "service.cluster.deploy", raising=False)
    monkeypatch.delattr("service.cluster.deploy", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["cluster", action]) == 2
    assert capsys.readouterr().err == (
        "serpentine: a cluster needs ray, which is not installed: pip install 'serpentine[cluster]'\n"
    )
