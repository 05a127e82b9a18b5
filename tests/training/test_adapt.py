import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from training.affect import adapt as module
from training.affect.adapt import SecondStage, adapt, disagreement, load_adapter
from training.affect.adapter import AdapterSettings, adapted_encoder, adapter_tensors, loss_of, save_adapter
from training.affect.text_corpora import Sentence

SETTINGS = AdapterSettings(rank=2)
STAGE = SecondStage(steps=3, heads_alone=1, batch=2)
SAID = [
    Sentence(f"v{i}_1", "mosi", text, f"v{i}", 2.0 - i, label=2 - i) for i, text in enumerate(("GOOD", "IT IS", "BAD"))
]
OTHERS = [
    Sentence("s0", "sst", "a fine film", "s0", 1.2, 3, 2),
    Sentence("m0", "meld", "oh no", "m0", None, None, 0, 3),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of rank 2 that changes the encoder."""
    torch.manual_seed(3)
    tensors = {name: 0.01 * torch.randn(t.shape) for name, t in adapter_tensors(adapted_encoder(SETTINGS)).items()}
    path = tmp_path_factory.mktemp("base") / "text_adapter.safetensors"
    save_adapter({name: t.to(torch.bfloat16) for name, t in tensors.items()}, SETTINGS, path)
    return path


def test_an_adapter_is_read_as_it_was_written(base: Path) -> None:
    encoder = adapted_encoder(SETTINGS)
    load_adapter(encoder, base)
    read, written = adapter_tensors(encoder), load_file(base)
    assert read.keys() == written.keys()
    assert all(torch.equal(read[name], written[name]) for name in read)


def test_the_encoder_drops_out_as_much_as_it_is_told() -> None:
    rates = {
        m.p for m in adapted_encoder(replace(SETTINGS, encoder_dropout=0.3)).modules() if isinstance(m, nn.Dropout)
    }
    assert rates == {0.3}


def test_an_adapter_of_other_layers_is_refused(base: Path) -> None:
    with pytest.raises(ValueError, match="adapts other layers"):
        load_adapter(adapted_encoder(replace(SETTINGS, targets=("query",))), base)


def test_the_second_stage_goes_on_from_the_first_and_repeats_itself(base: Path) -> None:
    rested = adapt(base, SAID, OTHERS, SETTINGS, replace(STAGE, heads_alone=3), "test")
    encoder = adapted_encoder(SETTINGS)
    load_adapter(encoder, base)
    before = adapter_tensors(encoder)
    assert all(torch.equal(rested[name], before[name]) for name in before)  # while the heads learn, the adapter rests
    trained = adapt(base, SAID, OTHERS, SETTINGS, STAGE, "test")
    assert any(not torch.equal(trained[name], before[name]) for name in before)
    # A short way from the first stage, not a new adapter.
    assert all((trained[name].float() - before[name].float()).abs().max() < 0.01 for name in before)
    again = adapt(base, SAID, OTHERS, SETTINGS, STAGE, "test")
    assert all(torch.equal(again[name], trained[name]) for name in before)


def test_two_passes_disagree_by_the_square_of_the_sentiments_and_the_divergence_of_the_classes() -> None:
    first = {"sentiment": torch.tensor([[1.0], [0.0]]), "label": torch.tensor([[0.0, 0.0], [1.0, 1.0]])}
    assert disagreement(first, first) == 0
    second = {"sentiment": torch.tensor([[3.0], [0.0]]), "label": torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])}
    even, tilted = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
    both = (even * (even / tilted).log()).sum() + (tilted * (tilted / even).log()).sum()
    expected = 4.0 / 2 + both / 4 / 2  # the means over two sentences
    assert disagreement(first, second) == pytest.approx(expected.item())
    assert disagreement(second, first) == pytest.approx(expected.item())


def test_the_second_stage_learns_from_the_disagreement(base: Path) -> None:
    with_it, without = (
        adapt(base, SAID, OTHERS, SETTINGS, replace(STAGE, consistency=weight), "test") for weight in (1.0, 0.0)
    )
    assert any(not torch.equal(with_it[name], without[name]) for name in with_it)


def test_both_passes_learn_the_labels(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    for share in (1.0, 0.0):
        passes = itertools.cycle((1.0, share))
        monkeypatch.setattr(module, "loss_of", lambda *args, scale=passes: next(scale) * loss_of(*args))
        trained.append(adapt(base, SAID, OTHERS, SETTINGS, STAGE, "test"))
    assert any(not torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_a_sentence_counts_by_the_weight_of_its_corpus() -> None:
    torch.manual_seed(0)
    rows = [SAID[0], OTHERS[0], OTHERS[1]]
    outputs = {"sentiment": torch.randn(3, 1), "grade": torch.randn(3, 5), "label": torch.randn(3, 3)}
    alone = {
        corpus: loss_of(outputs, rows, {"mosi": 0.0, "sst": 0.0, "meld": 0.0, corpus: 1.0}, 0.05).item()
        for corpus in ("mosi", "sst", "meld")
    }
    assert min(alone.values()) > 0
    both = loss_of(outputs, rows, {"mosi": 2.0, "sst": 1.0, "meld": 0.5}, 0.05).item()
    assert both == pytest.approx(2.0 * alone["mosi"] + alone["sst"] + 0.5 * alone["meld"])
