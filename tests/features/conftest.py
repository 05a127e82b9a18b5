"""Extractors that several files share."""

from __future__ import annotations

import pytest

from service.features.extract import Extractor
from tests.features.extractors import FULL, WIDTHS, extractor


@pytest.fixture(scope="module")
def full() -> Extractor:
    """All of the bundled recipes."""
    return extractor(FULL, WIDTHS)


@pytest.fixture
def plain() -> Extractor:
    """Features only: text 3, audio 2 and video 4 wide. Needs no extra."""
    return extractor({name: {"recipe": None} for name in WIDTHS}, {"text": 3, "audio": 2, "video": 4})


@pytest.fixture
def mel() -> Extractor:
    """Sound by log-mel and nothing else."""
    return extractor({"audio": {"recipe": "log-mel-40"}}, {"audio": 40})
