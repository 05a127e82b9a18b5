from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from service.codecs.text import TextCodec
from tests.training.digits.trio import make_items, make_model, make_text
from training.digits import fit as fitting
from training.digits.fit import FitSettings, fit, validate, weighted_loss
from training.digits.tokens import batches

SETTINGS = FitSettings(steps=12, documents=6, rate=1e-2, warmup=2, decay=4, again=0, compiled=False)
LOG = logging.getLogger("test")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return make_text(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "SAVE_EVERY", 5)
    monkeypatch.setattr(fitting, "VALIDATE_EVERY", 6)


def test_a_run_that_was_interrupted_ends_where_an_unbroken_one_does(text: TextCodec, tmp_path: Path) -> None:
    whole, broken = make_model(text), make_model(text)
    fit(whole, make_items(), make_items(), text, SETTINGS, tmp_path / "whole", LOG)
    fit(broken, make_items(), make_items(), text, replace(SETTINGS, stop=7), tmp_path / "broken", LOG)
    again = make_model(text)
    fit(again, make_items(), make_items(), text, SETTINGS, tmp_path / "broken", LOG)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=1e-6)


def test_losses_fall_and_are_written_down(text: TextCodec, tmp_path: Path) -> None:
    model = make_model(text)
    held_back = batches(make_items(), text, model.vocabulary, documents=8, count=2, seed=1, group=0)
    before = validate(model, held_back)
    fit(model, make_items(), make_items(), text, SETTINGS, tmp_path, LOG)
    after = validate(model, held_back)
    assert all(after[name] < before[name] for name in ("text_loss", "image_loss", "speech_loss"))
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [6, 12]
    assert set(lines[0]) == {"step", "seconds", "text_loss", "image_loss", "speech_loss", "word_accuracy"}


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [SETTINGS.rate_at(step) for step in range(12)]
    assert rates[0] == pytest.approx(5e-3)
    assert rates[1:9] == pytest.approx([1e-2] * 8)
    assert rates[9:] == pytest.approx([7.5e-3, 5e-3, 2.5e-3])
    more = replace(SETTINGS, again=4, again_rate=8e-3)
    assert [more.rate_at(step) for step in range(12, 16)] == pytest.approx([8e-3, 6e-3, 4e-3, 2e-3])


def test_no_token_is_predicted_across_the_border_of_documents(text: TextCodec) -> None:
    model = make_model(text)
    (batch,) = batches(make_items(), text, model.vocabulary, documents=5, count=1, seed=0, group=0)
    _, after = fitting._pairs(batch)
    firsts = set(batch.offsets[:-1].tolist())
    assert not firsts & set(after.tolist())
    assert len(after) == len(batch.tokens) - len(firsts)


def test_tokens_without_weight_do_not_move_the_loss(text: TextCodec) -> None:
    model = make_model(text)
    (batch,) = batches(make_items(), text, model.vocabulary, documents=5, count=1, seed=0, group=0)
    here, after = fitting._pairs(batch)
    silent = replace(batch, weights=torch.where(torch.arange(len(batch.tokens)) == after[3], 1.0, 0.0))
    logits = model(batch.tokens, batch.offsets)[here[3]]
    expected = torch.nn.functional.cross_entropy(logits[None], batch.tokens[after[3]][None])
    torch.testing.assert_close(weighted_loss(model, silent), expected, rtol=2e-2, atol=2e-2)
