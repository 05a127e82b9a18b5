import numpy as np

from service.features.types import Steps
from training.affect.clips import LabelledClip
from training.affect.floor import ridge_on_text
from training.affect.study import Corpora


def test_ridge_finds_what_is_linear_and_nothing_in_noise() -> None:
    rng = np.random.default_rng(0)

    def clips(signal: float) -> list[LabelledClip]:
        rows = []
        for i in range(400):
            values = rng.normal(size=(5, 3)).astype(np.float32) + rng.normal()
            sentiment = signal * float(values.mean()) + float(rng.normal(0, 0.1))
            rows.append(LabelledClip(f"c{i}", f"g{i % 20}", "some", {"text": Steps(values)}, sentiment))
        return rows

    assert ridge_on_text(lambda fold: Corpora(clips(1.0), []), "some", 4)["r"] > 0.9
    assert abs(ridge_on_text(lambda fold: Corpora(clips(0.0), []), "some", 4)["r"]) < 0.2
