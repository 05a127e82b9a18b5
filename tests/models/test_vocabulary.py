from __future__ import annotations

import pytest
import torch

from service.models.vocabulary import Vocabulary
from tests.generative import VOCABULARY, generative_model


def test_each_id_belongs_to_one_modality_and_is_routed_so() -> None:
    modalities = [VOCABULARY.modality(token) for token in range(VOCABULARY.size)]
    assert modalities == ["text"] * 30 + ["image"] * 7 + ["speech"] * 5
    routes = generative_model().route(torch.arange(42))
    assert [VOCABULARY.modalities[route] for route in routes] == modalities
    assert [VOCABULARY.span(name) for name in VOCABULARY.modalities] == [range(30), range(30, 37), range(37, 42)]


def test_sentinels_are_those_that_the_model_has() -> None:
    assert VOCABULARY.sentinels == {24, 25, 26, 27, 28, 29}
    assert Vocabulary({"text": 9}, eos=0).sentinels == {0}
    assert Vocabulary({"text": 9}).sentinels == set()


def test_the_sentinel_before_an_answer_is_like_no_other() -> None:
    vocabulary = Vocabulary({"text": 9}, bos=1, eos=2, answer=3)
    assert vocabulary.sentinels == {1, 2, 3}
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary
    with pytest.raises(ValueError, match="sentinels must differ"):
        Vocabulary({"text": 9}, bos=1, eos=2, answer=2)
    with pytest.raises(ValueError, match="0 to 8"):
        Vocabulary({"text": 9}, answer=9)


def test_one_modality_has_no_borders_and_one_route() -> None:
    vocabulary = Vocabulary({"text": 9})
    assert vocabulary.borders().tolist() == []
    assert generative_model(vocabulary=vocabulary).route(torch.tensor([0, 8])).tolist() == [0, 0]


@pytest.mark.parametrize("token", [-1, 42])
def test_an_id_out_of_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(ValueError, match=rf"token {token} is out of 0\.\.41"):
        VOCABULARY.modality(token)
    with pytest.raises(KeyError):
        VOCABULARY.span("smell")
