"""The encoder against the equations, and against transformers where that is installed."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from service.features.bert import load_bert
from tests.features.needs import needs_minilm

CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "vocab_size": 11,
    "hidden_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 10,
    "max_position_embeddings": 9,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
}


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    d, wide = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (11, d),
        "embeddings.position_embeddings.weight": (9, d),
        "embeddings.token_type_embeddings.weight": (2, d),
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(CONFIG["num_hidden_layers"]):
        at = f"encoder.layer.{i}"
        dense = {f"{at}.attention.self.{name}": (d, d) for name in ("query", "key", "value")}
        dense |= {f"{at}.attention.output.dense": (d, d), f"{at}.intermediate.dense": (wide, d)}
        dense |= {f"{at}.output.dense": (d, wide)}
        for name, shape in dense.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
    for name in norms:
        shapes |= {f"{name}.weight": (d,), f"{name}.bias": (d,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def by_hand(w: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Equations of BERT, one sentence, one head at a time, in float64."""
    w = {name: tensor.double() for name, tensor in w.items()}

    def dense(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-12).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    word, place, kind = (w[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type"))
    h = norm("embeddings.LayerNorm", torch.stack([word[i] + place[n] + kind[0] for n, i in enumerate(ids)]))
    for i in range(CONFIG["num_hidden_layers"]):
        at = f"encoder.layer.{i}"
        query, key, value = (dense(f"{at}.attention.self.{name}", h) for name in ("query", "key", "value"))
        heads = []
        for head in range(2):
            part = slice(3 * head, 3 * head + 3)
            scores = (query[:, part] @ key[:, part].T / math.sqrt(3)).softmax(-1)
            heads.append(scores @ value[:, part])
        h = norm(f"{at}.attention.output.LayerNorm", h + dense(f"{at}.attention.output.dense", torch.cat(heads, -1)))
        wide = dense(f"{at}.intermediate.dense", h)
        wide = wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2)))
        h = norm(f"{at}.output.LayerNorm", h + dense(f"{at}.output.dense", wide))
    return h


def test_the_encoder_is_the_equations() -> None:
    w, ids = weights(), [3, 0, 10, 7, 7]
    model = load_bert(CONFIG, w)
    torch.testing.assert_close(model(torch.tensor([ids]))[0].double(), by_hand(w, ids), atol=2e-5, rtol=1e-5)


def test_padding_under_a_mask_changes_nothing() -> None:
    model = load_bert(CONFIG, weights())
    ids = torch.tensor([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]])
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    padded = model(ids, mask)
    torch.testing.assert_close(padded[0, :3], model(ids[:1, :3])[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded[1], model(ids[1:])[0], atol=1e-5, rtol=1e-5)


def test_the_model_is_frozen_and_carries_no_other_weights() -> None:
    model = load_bert(
        CONFIG, weights() | {"pooler.dense.weight": torch.zeros(6, 6), "embeddings.position_ids": torch.zeros(1)}
    )
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.state_dict().keys() == weights().keys()


def test_keys_that_lack_or_are_too_many_are_listed() -> None:
    w = weights()
    del w["encoder.layer.1.output.dense.bias"]
    with pytest.raises(ValueError, match=r"lack \['encoder.layer.1.output.dense.bias'\].*unexpected \['cls.bias'\]"):
        load_bert(CONFIG, w | {"cls.bias": torch.zeros(2)})


@pytest.mark.parametrize(("key", "value"), [("model_type", "roberta"), ("hidden_act", "relu")])
def test_a_checkpoint_of_another_kind_is_refused(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=key):
        load_bert(CONFIG | {key: value}, weights())


@needs_minilm
def test_minilm_is_what_transformers_makes_of_it() -> None:
    bert = pytest.importorskip("transformers.models.bert", reason="transformers is not installed: the rival encoder")
    from safetensors.torch import load_file

    from service.features.text import minilm_folder

    config = json.loads((minilm_folder() / "config.json").read_text())
    w = load_file(minilm_folder() / "model.safetensors")
    theirs = bert.BertModel(bert.BertConfig(**config), add_pooling_layer=False).eval()
    assert theirs.load_state_dict(w, strict=False).missing_keys == []
    ids = torch.randint(1000, 20000, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(load_bert(config, w)(ids), theirs(ids).last_hidden_state, atol=1e-5, rtol=1e-5)
