"""JSON lists as arrays, read in slabs so that other threads run in between."""

from __future__ import annotations

import numpy as np
import pytest

from service.api import arrays
from service.errors import InvalidInput


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "SLAB", 6)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_slabs_make_the_whole_array(steps: int) -> None:
    values = np.random.default_rng(0).standard_normal((steps, 3))
    assert np.array_equal(arrays.rows(values.tolist(), ("x",)), values.astype(np.float32))


@pytest.mark.parametrize("step", range(5))
def test_what_is_no_number_is_named_by_its_place_whichever_slab_it_is_in(step: int) -> None:
    values = [[0.0, 1, 2.0] for _ in range(5)]
    values[step][1] = True
    with pytest.raises(InvalidInput, match=rf"^x\.{step}\.1: a number is expected, a boolean came"):
        arrays.rows(values, ("x",))
