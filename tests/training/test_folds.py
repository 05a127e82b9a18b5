import pytest

from training.affect.folds import grouped_folds

GROUPS = [f"video{i % 13}" for i in range(200)] + ["long"] * 50


def test_no_group_is_on_both_sides() -> None:
    folds = grouped_folds(GROUPS, 5)
    for fold in range(5):
        inside = {g for g, f in zip(GROUPS, folds, strict=True) if f == fold}
        outside = {g for g, f in zip(GROUPS, folds, strict=True) if f != fold}
        assert inside
        assert not inside & outside


def test_folds_are_of_like_size() -> None:
    folds = grouped_folds(GROUPS, 5)
    sizes = [folds.count(fold) for fold in range(5)]
    assert max(sizes) - min(sizes) <= 20


def test_the_seed_decides() -> None:
    assert grouped_folds(GROUPS, 5, seed=1) == grouped_folds(GROUPS, 5, seed=1)
    assert grouped_folds(GROUPS, 5, seed=1) != grouped_folds(GROUPS, 5, seed=2)


@pytest.mark.parametrize("k", [1, 4])
def test_more_folds_than_groups_or_one_fold_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="folds"):
        grouped_folds(["a", "b", "c"], k)
