from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from service.models.base import State
from service.models.mixture_of_mamba import MixtureOfMamba
from tests.generative import VOCABULARY, generative_model
from tests.models.tokens import dirty_pool, plain_blocks, stepwise, token_chunk

SIZES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tied": False},
    "unsplit": {"split": []},
    "part split": {"split": ["in_proj", "dt_proj"], "d_conv": 2},
    "no bias": {"split": ["x_proj"], "dt_bias": False},
}
tokens_of_a_row = st.lists(st.integers(0, VOCABULARY.size - 1), min_size=1, max_size=9)


def _released(model: MixtureOfMamba) -> dict[str, Tensor]:
    """Our blocks under the released names."""
    tensors = {}
    for index, layer in enumerate(model.blocks.layers):
        at, own = f"layers.{index}.mamba_model", dict(layer.named_parameters())
        tensors[f"layers.{index}.norm.weight"] = own["norm"]
        tensors |= {f"{at}.A_log": own["A_log"].T, f"{at}.D": own["D"], f"{at}.conv1d.bias": own["conv_bias"]}
        tensors[f"{at}.conv1d.weight"] = own["conv_weight"].T[:, None]
        for name in ("in_proj", "x_proj", "dt_proj", "out_proj"):
            kinds = {"weight": own[name]} | ({"bias": own["dt_bias"]} if name == "dt_proj" and "dt_bias" in own else {})
            for kind, stacked in kinds.items():
                for m, tensor in enumerate(stacked):
                    split = f"local_experts_{name}.{m}" if name in model.config.split else name
                    tensors[f"{at}.{split}.{kind}"] = tensor
    return tensors


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_logits_are_those_of_the_equations(sizes: dict[str, Any]) -> None:
    model = generative_model(**sizes).double()
    tokens = torch.tensor([24, 3, 26, 31, 36, 27, 40, 37, 28, 25, 30])
    e = plain_blocks(_released(model), model.embedding[tokens], model.route(tokens).tolist(), model.config.eps)
    e = e / (e.square().mean(1, keepdim=True) + model.config.eps).sqrt() * model.norm_f
    head = model.embedding if model.config.tied else model.head
    logits = model(tokens, torch.tensor([0, 11]))
    assert logits.shape == (11, VOCABULARY.size)
    torch.testing.assert_close(logits, e @ head.T, rtol=0, atol=1e-11)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@given(rows=st.lists(tokens_of_a_row, min_size=1, max_size=3))
def test_serving_step_by_step_is_training_on_the_whole(sizes: dict[str, Any], rows: list[list[int]]) -> None:
    model = generative_model(**sizes)
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    whole = model(torch.tensor([token for row in rows for token in row]), offsets)
    torch.testing.assert_close(whole, torch.cat([stepwise(model, row) for row in rows]), rtol=1e-4, atol=1e-4)


@given(
    rows=st.lists(tokens_of_a_row, min_size=2, max_size=4),
    cuts=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    slots=st.permutations(range(5)),
)
def test_any_chunking_side_by_side_is_each_row_alone(rows: list[list[int]], cuts: list[int], slots: list[int]) -> None:
    model = generative_model().double()
    slots, ends = slots[: len(rows)], [0, *sorted(cuts), 9]
    state = dirty_pool(model.state_tensors(), 5, torch.float64)
    untouched = {name: tensor.clone() for name, tensor in state.items()}
    logits = {}
    for begin, end in itertools.pairwise(ends):
        pieces = [row[begin:end] for row in rows]
        read = model.run(token_chunk(pieces, slots, [begin == 0] * len(rows)), state)
        logits |= dict(zip([i for i, piece in enumerate(pieces) if piece], read, strict=True))
    for i, row in enumerate(rows):
        alone = dirty_pool(model.state_tensors(), 1, torch.float64)
        expected = model.run(token_chunk([row], [0], [True]), alone)[0]
        torch.testing.assert_close(logits[i], expected, rtol=0, atol=1e-10)
        for name, tensor in state.items():
            torch.testing.assert_close(tensor[slots[i]], alone[name][0], rtol=0, atol=1e-10)
    for name, tensor in state.items():
        others = [slot for slot in range(5) if slot not in slots]
        assert tensor[others].numpy().tobytes() == untouched[name][others].numpy().tobytes()


def test_a_slot_used_again_starts_afresh() -> None:
    model = generative_model()
    state = dirty_pool(model.state_tensors(), 2)
    first = model.run(token_chunk([[3, 31, 40]], [1], [True]), state)
    model.run(token_chunk([[9, 9, 12, 33]], [1], [True]), state)
    assert torch.equal(model.run(token_chunk([[3, 31, 40]], [1], [True]), state), first)
    assert not torch.equal(model.run(token_chunk([[3, 31, 40]], [1], [False]), state), first)


def test_the_state_is_fp32_and_its_shapes_are_those_told() -> None:
    model = generative_model()
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_tensors().items()}
    assert shapes == {"conv": ((2, 1, 3, 20), torch.float32), "ssm": ((2, 3, 20), torch.float32)}
    state: State = dirty_pool(model.state_tensors(), 1)
    model.run(token_chunk([[1]], [0], [True]), state)
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())


def test_serving_records_no_gradients() -> None:
    model = generative_model().requires_grad_(True)
    state = dirty_pool(model.state_tensors(), 1)
    logits = model.run(token_chunk([[1, 2]], [0], [True]), state)
    assert not logits.requires_grad
    assert not any(tensor.requires_grad for tensor in state.values())


def test_training_reaches_every_parameter() -> None:
    model = generative_model(tied=False).requires_grad_(True)
    tokens = torch.tensor([24, 3, 31, 40, 5, 33, 38])
    model(tokens, torch.tensor([0, 7])).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.flatten(1).any(1).all() if name.endswith("_proj") else parameter.grad.any()), name
