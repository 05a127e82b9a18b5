"""What every test has: one hypothesis profile, one thread of arithmetic, a checkpoint of random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.checkpoints import build_checkpoint

# The same examples in every run: a red test is a change of the code, not of the draw.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("suite")
# Tensors here are tiny: a second thread costs more than it computes.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A features-only checkpoint named "tiny": text 6, audio 5, video 4 wide, coupling mean, a clock of 10 Hz."""
    return build_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")
