"""What docker/ holds, as far as it can be judged without building it; `make image-test` does the rest."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from service import __version__
from tests.deploy.tools import ROOT, output, program

FOLDER = ROOT / "docker"


@pytest.mark.parametrize("name", ["Dockerfile", "stand-ins.Dockerfile"])
def test_hadolint_finds_nothing(name: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")  # of the extra `dev`, so that it is never skipped
    assert output(str(hadolint), str(FOLDER / name)) == ""


def test_the_images_are_labelled_with_the_projects_version() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("ARG VERSION")] == [f"ARG VERSION={declared}"] * 2
    assert declared == __version__


def test_the_build_needs_no_more_than_the_context_has() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    needed = set()
    for line in (FOLDER / "Dockerfile").read_text().splitlines():
        words = line.split()
        if words[:1] == ["COPY"] and not words[1].startswith("--from"):
            needed |= set(words[1:-1])
        needed |= {
            word.removeprefix("source=")
            for mount in words
            if mount.startswith("--mount=type=bind,source=")
            for word in mount.split(",")
            if word.startswith("source=")
        }
    assert needed == kept


def test_requirements_are_those_of_the_project() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())

    def printed(*words: str) -> list[str]:
        return output(program("python"), str(FOLDER / "requirements.py"), *words).splitlines()

    extras = declared["project"]["optional-dependencies"]
    assert printed("media", "redis") == declared["project"]["dependencies"] + extras["media"] + extras["redis"]
    assert printed("--build") == declared["build-system"]["requires"]
    with pytest.raises(AssertionError, match="KeyError: 'mdeia'"):
        printed("mdeia")
