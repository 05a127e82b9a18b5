import numpy as np
import pytest

from service.features.types import Steps
from training.affect.clips import LabelledClip
from training.affect.ridge import Ridge, pooled, taught

STRENGTH = 2.0


def sentences(corpus: str, n: int, seed: int, offset: float = 0.0) -> list[LabelledClip]:
    """Sentences of random lengths whose mean of features is their sentiment, `offset` apart."""
    rng = np.random.default_rng(seed)
    clips = []
    for i in range(n):
        values = (rng.normal(size=(int(rng.integers(1, 9)), 2)) + rng.normal()).astype(np.float32)
        clips.append(
            LabelledClip(
                f"{corpus}{i}",
                f"g{i}",
                corpus,
                {"text": Steps(values)},
                STRENGTH * float(values.mean()) + offset,
                "positive",
            )
        )
    return clips


def test_pooling_is_the_mean_and_the_maximum_of_the_tokens() -> None:
    clip = LabelledClip("a", "a", "some", {"text": Steps(np.array([[1.0, -2.0], [3.0, -6.0]], np.float32))})
    np.testing.assert_array_equal(pooled([clip]), [[2.0, -4.0, 3.0, -2.0]])


def test_a_ridge_predicts_what_is_linear_and_falls_back_to_the_mean() -> None:
    clips, new = sentences("some", 4000, 0, offset=0.5), sentences("some", 200, 1, offset=0.5)
    model = Ridge.fitted(clips)
    truth = np.array([clip.sentiment for clip in new], float)
    assert np.corrcoef(model.predict(new), truth)[0, 1] > 0.97
    assert model.predict(clips).mean() == pytest.approx(np.mean([clip.sentiment or 0.0 for clip in clips]))


def test_sentences_take_the_score_of_the_teacher_and_nothing_else_changes() -> None:
    scored, other = sentences("mosi", 2000, 0), sentences("sst", 300, 1, offset=50.0)
    unscored = LabelledClip("m", "m", "meld", scored[0].features, None, "negative")
    voice = LabelledClip("v", "v", "ravdess", {"audio": Steps(np.zeros((2, 3), np.float32))}, 1.0, "positive", "happy")
    both = LabelledClip("b", "b", "own", {**voice.features, **scored[0].features}, 2.5)
    clips = [*scored, *other, unscored, voice, both]
    given = taught(clips, "mosi", 3.0)
    assert [(c.id, c.label, c.emotion) for c in given] == [(c.id, c.label, c.emotion) for c in clips]
    assert given[-2:] == [voice, both]
    found = np.array([clip.sentiment for clip in given[:-2]], float)
    expected = np.clip(Ridge.fitted(scored).predict(clips[:-2]), -3, 3)
    np.testing.assert_allclose(found, expected)
    assert np.abs(found).max() == 3.0  # the offset of the other corpus left no trace, the limit did
