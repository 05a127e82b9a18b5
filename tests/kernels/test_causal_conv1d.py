from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from torch import Tensor

from service.kernels.causal_conv1d import causal_conv1d
from tests.kernels.cases import Case, Step, assert_untouched, cases, cuts, in_chunks, make_case, poison
from tests.kernels.naive import naive_conv


def _pool(case: Case, dtype: torch.dtype = torch.float64) -> Tensor:
    m, k, d = case.weight.shape
    return poison(case.pool_rows, m, k - 1, d, dtype=dtype)


def _step(case: Case, state: Tensor) -> Step:
    x, weight, bias = (tensor.to(state.dtype) for tensor in (case.x, case.weight, case.bias))

    def step(rows: Tensor, offsets: Tensor, fresh: Tensor) -> Tensor:
        kept = {"state": state, "slots": case.slots, "fresh": fresh}
        return causal_conv1d(x[:, rows], weight, bias, offsets=offsets, present=case.present[:, rows], **kept)

    return step


@given(case=cases())
def test_equals_naive_loops_from_poisoned_slots(case: Case) -> None:
    state = _pool(case)
    before = state.clone()
    y = in_chunks(_step(case, state), case.lengths, [])
    for i, rows in enumerate(torch.arange(sum(case.lengths)).split(case.lengths)):
        expected, window = naive_conv(case.x[:, rows], case.weight, case.bias, case.present[:, rows])
        torch.testing.assert_close(y[:, rows], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(state[case.slots[i]], window, rtol=0, atol=0)
    assert_untouched(state, before, case.slots)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@given(case=cases(), at=cuts)
def test_any_chunking_is_one_pass(dtype: torch.dtype, tolerance: float, case: Case, at: list[int]) -> None:
    whole, cut = _pool(case, dtype), _pool(case, dtype)
    one_pass = in_chunks(_step(case, whole), case.lengths, [])
    chunked = in_chunks(_step(case, cut), case.lengths, at)
    torch.testing.assert_close(chunked, one_pass, rtol=0, atol=tolerance)
    torch.testing.assert_close(cut, whole, rtol=0, atol=0, equal_nan=True)


@given(case=cases())
def test_packed_is_alone_and_training_is_serving(case: Case) -> None:
    packed = in_chunks(_step(case, _pool(case)), case.lengths, [])
    for rows in torch.arange(sum(case.lengths)).split(case.lengths):
        alone = {"offsets": torch.tensor([0, len(rows)]), "present": case.present[:, rows]}
        y = causal_conv1d(case.x[:, rows], case.weight, case.bias, **alone)  # no state: as in training
        torch.testing.assert_close(y, packed[:, rows], rtol=0, atol=1e-12)


@given(case=cases(chains=(1,), complete=True))
def test_a_lone_chains_slot_used_again_starts_afresh(case: Case) -> None:
    state = _pool(case)
    step, rows = _step(case, state), torch.arange(sum(case.lengths))
    fresh = torch.ones(len(case.lengths), dtype=torch.bool)
    first = step(rows, case.offsets, fresh)
    torch.testing.assert_close(step(rows, case.offsets, fresh), first, rtol=0, atol=0)
    stale = step(rows, case.offsets, ~fresh)
    k = case.weight.shape[1]
    for i, part in enumerate(rows.split(case.lengths)):
        if len(part) >= k - 1:  # the window is this sequence's own end: it goes on as if its input came twice
            twice = case.x[:, torch.cat([part, part])]
            y = causal_conv1d(twice, case.weight, case.bias, offsets=torch.tensor([0, 2 * len(part)]))
            torch.testing.assert_close(stale[:, part], y[:, len(part) :], rtol=0, atol=1e-12, msg=f"sequence {i}")


@given(case=cases(chains=(1, 3)))
def test_gradients_are_those_of_the_sum_of_taps(case: Case) -> None:
    x, weight, bias = (torch.nan_to_num(t).requires_grad_() for t in (case.x, case.weight, case.bias))
    y = causal_conv1d(x, weight, bias, offsets=case.offsets, present=case.present)
    seed = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    ours = torch.autograd.grad((y * seed).sum(), (x, weight, bias))
    k, expected = weight.shape[1], [torch.zeros_like(tensor) for tensor in (x, weight, bias)]
    begins = case.offsets.tolist()
    for m, (begin, end) in itertools.product(range(x.shape[0]), itertools.pairwise(begins)):
        here = [t for t in range(begin, end) if case.present[m, t]]
        for place, t in enumerate(here):
            expected[2][m] += seed[m, t]
            for j in range(k):
                if (source := place - (k - 1 - j)) >= 0:
                    expected[0][m, here[source]] += seed[m, t] * weight.detach()[m, j]
                    expected[1][m, j] += seed[m, t] * x.detach()[m, here[source]]
    for name, one, other in zip(("x", "weight", "bias"), ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


def test_absent_presence_means_all_present() -> None:
    case = make_case(2, 1, 3, 4, [5, 2], torch.ones(2, 7, dtype=torch.bool), seed=0)
    masked = causal_conv1d(case.x, case.weight, case.bias, offsets=case.offsets, present=case.present)
    assert torch.equal(causal_conv1d(case.x, case.weight, case.bias, offsets=case.offsets), masked)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("weight", torch.zeros(2, 4, 5)),
        ("bias", torch.zeros(3, 3)),
        ("present", torch.ones(2, 6, dtype=torch.bool)),
        ("state", torch.zeros(5, 2, 2, 3)),  # a window of another kernel size
        ("offsets", torch.tensor([0, 5, 7, 7])),
        ("offsets", torch.tensor([0, 5, 6])),
        ("offsets", torch.tensor([1, 5, 7])),
        ("offsets", torch.tensor([0, 9, 7])),
        ("fresh", torch.ones(3, dtype=torch.bool)),
        ("slots", torch.tensor([1, 1])),
        ("slots", torch.tensor([1, 5])),
        ("slots", torch.tensor([-1, 1])),
        ("slots", None),
        ("fresh", None),
    ],
)
def test_a_wrong_argument_is_named(name: str, wrong: Tensor | None) -> None:
    case = make_case(2, 1, 3, 4, [5, 2], torch.ones(2, 7, dtype=torch.bool), seed=0)
    arguments = {"weight": case.weight, "bias": case.bias, "offsets": case.offsets, "present": case.present}
    arguments |= {"state": _pool(case), "slots": case.slots, "fresh": torch.ones(2, dtype=torch.bool)}
    causal_conv1d(case.x, **arguments)
    with pytest.raises(ValueError, match=rf"causal_conv1d: .*\b{name}\b"):
        causal_conv1d(case.x, **(arguments | {name: wrong}))
