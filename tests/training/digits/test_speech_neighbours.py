import numpy as np
import pytest

from tests.training.digits.spoken import spoken_digits
from training.digits.fsdd import varied
from training.digits.speech_neighbours import nearest_distances, neighbour_statistics


def test_a_copy_is_at_distance_zero_and_loudness_is_none() -> None:
    clips = [clip.pcm for clip in spoken_digits(2)]
    assert nearest_distances([clips[5] * 0.1], clips) == pytest.approx(0, abs=5e-3)
    assert (nearest_distances([clips[5]], clips[:4]) > 0.3).all()


def test_copies_are_told_from_new_recordings() -> None:
    training = [clip.pcm for clip in spoken_digits(4)]
    held_back = [clip.pcm for clip in spoken_digits(2, seed=1)]
    copies = neighbour_statistics(training[:5], held_back, training)
    assert copies["generated"]["median"] < 0.1 * copies["held_back"]["median"]
    rng = np.random.default_rng(0)
    new = neighbour_statistics([varied(clip, rng) for clip in held_back], held_back, training)
    assert new["generated"]["p5"] > 0.5 * new["held_back"]["p5"]
