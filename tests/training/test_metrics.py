import numpy as np
import pytest

from training.affect.metrics import accuracy, over_seeds, regression_figures


def test_regression_figures_by_hand() -> None:
    target = np.array([-2.0, -1.0, 0.0, 1.0, 3.0])
    predicted = np.array([-1.0, 0.5, 0.2, 2.0, 3.0])
    figures = regression_figures(predicted, target)
    assert figures["acc2"] == 0.75  # the zero does not count
    assert figures["mae"] == pytest.approx((1 + 1.5 + 0.2 + 1 + 0) / 5)
    assert figures["r"] == pytest.approx(np.corrcoef(predicted, target)[0, 1])


def test_accuracy_is_that_of_the_largest() -> None:
    assert accuracy(np.array([[0.1, 0.9], [2.0, -1.0]]), np.array([1, 1])) == 0.5


def test_the_interval_over_seeds_is_students() -> None:
    spread = over_seeds([0.80, 0.82, 0.84, 0.86, 0.88])
    assert spread["mean"] == pytest.approx(0.84)
    assert spread["half_width"] == pytest.approx(2.776 * 0.0316228 / 5**0.5, rel=1e-4)


def test_no_seed_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        over_seeds([])
