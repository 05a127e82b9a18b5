"""A dense model of text becomes one of three modalities, which begins as the dense one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from service.models.convert import convert
from service.models.expand import AddedMedium, expanded
from service.models.vocabulary import Medium, Vocabulary
from tests.generative import generative_model
from tests.models.hugging_face import TOKENS, converted, logits_of, random_mamba, save_mamba
from tests.models.tokens import stepwise

MEDIA = {"image": AddedMedium(9, (4, 4)), "speech": AddedMedium(6, (1, 5))}


def test_modalities_are_added_to_no_other_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="modalities are added to hf-mamba, not to coupled-mamba-release"):
        convert("coupled-mamba-release", tmp_path, tmp_path / "out", MEDIA)


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": False}], ids=["tied", "untied"])
def test_three_modalities_begin_as_the_dense_model(tmp_path: Path, options: dict[str, Any]) -> None:
    theirs = random_mamba(**options)
    checkpoint = converted(save_mamba(theirs, tmp_path / "hf"), media=MEDIA)
    model, vocabulary = checkpoint.model, checkpoint.config.vocabulary
    assert dict(vocabulary.sizes) == {"text": 65, "image": 9, "speech": 6}
    assert vocabulary.media == {"image": Medium(61, 62, (4, 4)), "speech": Medium(63, 64, (1, 5))}
    assert model.config.split == ("in_proj", "x_proj", "dt_proj", "out_proj")
    torch.testing.assert_close(stepwise(model, TOKENS)[:, :61], logits_of(theirs, TOKENS), rtol=0, atol=1e-4)
    for layer in model.blocks.layers:
        for name in ("in_proj", "x_proj", "dt_proj", "dt_bias", "out_proj"):
            first, *others = getattr(layer, name)
            assert len(others) == 2
            assert all(torch.equal(first, other) for other in others)
    for rows in [model.embedding[61:]] + ([] if model.config.tied else [model.head[61:]]):
        assert rows.shape == (19, 24)
        assert 0.01 < rows.std() < 0.03
        assert len(rows.unique(dim=0)) == 19


def test_the_copies_are_routed(tmp_path: Path) -> None:
    model = converted(save_mamba(random_mamba(), tmp_path / "hf"), media=MEDIA).model
    tokens = [3, 61, 66, 67, 62, 63, 75, 64, 5]  # an image and a clip between text
    before = stepwise(model, tokens)
    model.blocks.layers[0].in_proj[1] *= 1.5
    after = stepwise(model, tokens)
    assert torch.equal(after[:2], before[:2])
    assert (after[2:] - before[2:]).abs().amax(1).min() > 0


def test_new_rows_are_the_same_every_time_and_differ_by_seed() -> None:
    dense = generative_model(vocabulary=Vocabulary({"text": 9}), split=[])
    one, same, other = (expanded(dense, MEDIA, seed) for seed in (0, 0, 1))
    assert torch.equal(one.embedding, same.embedding)
    assert not torch.equal(one.embedding[9:], other.embedding[9:])
    assert torch.equal(one.embedding[:9], dense.embedding)
    one.blocks.layers[0].A_log.zero_()  # nothing is shared with the dense model, not even what is no copy
    assert bool(dense.blocks.layers[0].A_log.any())


def test_a_model_that_is_not_dense_is_not_expanded() -> None:
    for model in (generative_model(), generative_model(vocabulary=Vocabulary({"text": 9}))):
        with pytest.raises(ValueError, match="a dense model of text is expected"):
            expanded(model, MEDIA)
