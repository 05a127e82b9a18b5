"""llama.cpp in its own process, asked over pipes: the same model, the same logits."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch

from benchmarks.llama import rival
from benchmarks.llama.rival import llama
from benchmarks.timing import Elapsed
from benchmarks.works import decode

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
NOT_HERE = "llama.cpp's environment is not here; `make .venv-bench/.installed` makes it"


@pytest.mark.skipif(not rival.PYTHON.exists(), reason=NOT_HERE)
def test_it_agrees_with_transformers_after_a_prompt_and_several_sequences_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "SIZES", SIZES)
    peer, _ = decode.build(tmp_path)
    tokens = torch.randint(SIZES["vocab_size"], (3, 6), generator=torch.Generator().manual_seed(0))
    with llama(tmp_path) as other, torch.inference_mode():
        assert "AVX" in other.system or "NEON" in other.system
        assert other.step(tokens[:, :5], fresh=True).seconds > 0
        logits = other.logits(tokens[:, 5:], fresh=False)
        again = other.logits(tokens, fresh=True)
        expected = peer(tokens).logits[:, -1]
    for got in (logits, again):
        torch.testing.assert_close(got, expected, atol=0.02 * float(expected.abs().max()), rtol=0)


def _worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A stand-in for worker.py, run by this Python."""
    path = tmp_path / "worker.py"
    path.write_text(textwrap.dedent(body))
    monkeypatch.setattr(rival, "WORKER", path)
    monkeypatch.setattr(rival, "PYTHON", Path(sys.executable))


def test_what_it_says_that_it_took_is_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _worker(
        tmp_path,
        monkeypatch,
        """
        import json, sys
        print('{"system": "here"}', flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            print(json.dumps({"seconds": 10 * len(asked["tokens"]) + asked["fresh"]}), flush=True)
        """,
    )
    with llama(tmp_path) as other:
        assert other.system == "here"
        assert other.step(torch.zeros(2, 1, dtype=torch.int64), fresh=True) == Elapsed(21)


def test_an_end_before_the_answer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _worker(tmp_path, monkeypatch, "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="status 3"), llama(tmp_path):
        pass


def test_without_its_environment_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rival, "PYTHON", tmp_path / "python")
    assert not rival.installed()
    assert "without its rows" in capsys.readouterr().err
