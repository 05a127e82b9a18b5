"""The ahead-of-time build: without a GPU, into a cache that a second build finds everything in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.checkpoints import build_checkpoint
from tests.generative import build_generative

pytest.importorskip("triton", reason="Triton is not installed: there is nothing to build with")

from service.kernels.build import main

LINE = re.compile(r"^(sm_\d+) (\w+) +registers +(\d+)  shared +(\d+)  spilled +(\d+) +(cached|[\d.]+ s)", re.MULTILINE)


def build(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, in which Triton compiles; the suite's interprets."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "mixture"
    return build_generative(folder, dtype=torch.bfloat16, n_layers=1, d_model=32, d_inner=64, d_state=16, dt_rank=16)


@pytest.fixture(scope="module")
def built(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    cache = tmp_path_factory.mktemp("cache")
    options = ["--targets", "sm_80,sm_90", "--cache", cache, "--model", mixture]
    return cache, build("-m", "service.kernels.build", *options)


@pytest.mark.timeout(600)
def test_every_kernel_is_compiled_for_both_targets_within_the_budget_of_spills(
    built: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    _, result = built
    assert result.returncode == 0, result.stderr
    lines = LINE.findall(result.stdout)
    kernels = {"_embed", "_route_rows", "_project", "_convolve_and_select", "_keep_windows"}
    kernels |= {"_advance_steps", "make_step_sizes", "_advance_sequences"}
    for target in ("sm_80", "sm_90"):
        assert {kernel for name, kernel, *_ in lines if name == target} == kernels
    assert all(0 < int(registers) <= 255 and int(spilled) <= 32 for _, _, registers, _, spilled, _ in lines)
    assert "sm_90 mixture\n" in result.stdout  # what it is at


def test_a_step_and_a_chunk_add_in_the_same_layout(built: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Their kernels differ around the same code; how a sum is spread over threads is the compiler's choice for each."""
    cache, _ = built
    for target in ("cuda:80", "cuda:90"):
        found = {}
        for kernel in ("_advance_steps", "_advance_sequences"):
            texts = [text for path in cache.rglob(f"{kernel}.ttgir") if target in (text := path.read_text())]
            assert texts
            found[kernel] = {layout for text in texts for layout in layouts_of_sums(text)}
        assert found["_advance_steps"] == found["_advance_sequences"]
        assert len(found["_advance_steps"]) == 1


def layouts_of_sums(text: str) -> list[str]:
    """Of the tensors that a kernel's TTGIR sums along their first axis."""
    names = re.findall(r"\"tt\.reduce\".*?axis = 0.*?\}\) : \(tensor<\w+, (#\w+)>\)", text, re.DOTALL)
    return [re.search(rf"^{name} = (.*)$", text, re.MULTILINE)[1] for name in names]  # type: ignore[index]


@pytest.mark.timeout(600)
def test_a_second_build_finds_all_in_the_cache(
    built: tuple[Path, subprocess.CompletedProcess[str]], mixture: Path
) -> None:
    cache, first = built
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    again = build("-m", "service.kernels.build", "--targets", "sm_90", "--cache", cache, "--model", mixture)
    assert f"{len(LINE.findall(again.stdout))} variants, 0 compiled" in again.stdout, again.stderr
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()} == before
    count = len(LINE.findall(first.stdout))
    assert f"{count} variants, {count} compiled" in first.stdout


@pytest.mark.timeout(600)
def test_what_spills_more_than_the_budget_is_told_and_fails(tmp_path: Path) -> None:
    code = "import sys; from service.kernels import build; build.SPILL_BUDGET = -1; sys.exit(build.main())"
    folder = build_checkpoint(tmp_path / "coupled", n_layers=1)
    result = build("-c", code, "--targets", "sm_90", "--cache", tmp_path / "cache", "--model", folder)
    assert result.returncode == 1
    assert len(re.findall("spills over -1 bytes: sm_90 _coupled_scan", result.stderr)) == 1


def test_an_unknown_target_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--targets", "sm_70"])
    assert "--targets: sm_70; known are sm_80, sm_90" in capsys.readouterr().err


def test_there_is_nothing_to_compile_where_triton_interprets(mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="kernels are compiled where TRITON_INTERPRET is not set"):
        main(["--targets", "sm_90", "--model", str(mixture)])
