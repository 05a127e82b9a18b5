"""The Triton ops against the reference in float64, and against themselves under any packing and chunking."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from service.kernels import routed_linear
from service.kernels.causal_conv1d.triton import causal_conv1d as conv_triton
from service.kernels.coupled_scan.triton import coupled_scan as coupled_triton
from service.kernels.routed_linear.triton import routed_linear as linear_triton
from service.kernels.selective_scan.triton import selective_scan as selective_triton
from tests.bits import bits
from tests.kernels.agreement import WRONG, assert_chunks_keep_bits, assert_equals_reference, assert_refused
from tests.kernels.cases import Case, cases, cuts, make_case, offsets_of
from tests.kernels.steps import (
    COUPLINGS,
    coupled_pools,
    coupled_step,
    drive_conv,
    drive_coupled,
    drive_selective,
    routed,
    sized,
)
from tests.kernels.triton_device import MARKS, on_device

pytestmark = MARKS
coupled, selective, conv, linear = map(on_device, (coupled_triton, selective_triton, conv_triton, linear_triton))
# m, n, d, taps, lengths: odd widths, one state and many, empty sequences; d over a block of channels.
SIZES = [
    (1, 1, 1, 2, [3]),
    (1, 16, 33, 4, [5, 0, 9, 1]),
    (2, 3, 65, 3, [0, 9]),
    (3, 64, 17, 4, [2, 3]),
    (3, 16, 40, 4, [6, 3]),
    (8, 2, 5, 7, [4, 2, 0, 1]),
]


@pytest.mark.parametrize("kind", COUPLINGS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_coupled_scan_equals_the_reference(kind: str, size: Any) -> None:
    case = sized(*size[:4], [min(length, 9) for length in size[4]])
    assert_equals_reference(case, drive_coupled(case, kind), coupled)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_selective_scan_equals_the_reference(size: Any) -> None:
    case = sized(1, *size[1:])
    assert_equals_reference(case, drive_selective(case), selective)


@pytest.mark.parametrize("size", [*SIZES, (1, 1, 3, 32, [35, 3])], ids=str)
def test_causal_conv1d_equals_the_reference(size: Any) -> None:
    case = sized(*size)
    assert_equals_reference(case, drive_conv(case), conv)


@settings(max_examples=3)
@given(case=cases(), at=cuts)
def test_any_chunking_gives_the_same_bits(case: Case, at: list[int]) -> None:
    assert_chunks_keep_bits(case, drive_selective(case), selective, at)
    assert_chunks_keep_bits(case, drive_conv(case), conv, at)
    for kind in ("mean", "learned"):
        assert_chunks_keep_bits(case, drive_coupled(case, kind), coupled, at)


def test_a_sequence_has_the_same_bits_alone_and_in_a_batch() -> None:
    case = sized(3, 16, 40, 4, [4, 0, 7, 1])
    together = coupled_pools(case, "mean", torch.float32)
    y = coupled_step(case, "mean", together, coupled)(
        torch.arange(sum(case.lengths)), case.offsets, torch.ones(len(case.lengths), dtype=torch.bool)
    )
    for i, rows in enumerate(torch.arange(sum(case.lengths)).split(case.lengths)):
        lone = make_lone(case, rows, i)
        pools = coupled_pools(lone, "mean", torch.float32)
        alone = coupled_step(lone, "mean", pools, coupled)(
            torch.arange(len(rows)), lone.offsets, torch.ones(1, dtype=torch.bool)
        )
        assert bits(alone) == bits(y[:, rows])
        assert bits(pools.state[lone.slots]) == bits(together.state[case.slots[i : i + 1]])


def make_lone(case: Case, rows: Tensor, index: int) -> Case:
    """One sequence of a case, on a slot of a smaller pool."""
    entries = vars(case) | {name: getattr(case, name)[:, rows] for name in ("x", "dt", "B", "C", "present")}
    return Case(**(entries | {"lengths": [len(rows)], "slots": torch.tensor([index % 2])}))


def test_inputs_in_bf16_are_widened_before_anything_is_computed() -> None:
    case = make_case(1, 5, 17, 3, [6, 2], torch.ones(1, 8, dtype=torch.bool), seed=1)
    half = {name: getattr(case, name)[0].bfloat16() for name in ("x", "dt", "A", "B", "C", "D")}
    answers = []
    for dtype in (torch.bfloat16, torch.float32):
        kept = {"state": torch.full((5, 5, 17), torch.nan), "slots": case.slots, "offsets": offsets_of(case.lengths)}
        given_ = {name: tensor.to(dtype) for name, tensor in half.items()}
        y = selective(**given_, **kept, fresh=torch.ones(2, dtype=torch.bool))
        assert y.dtype == dtype
        answers.append((kept["state"][case.slots], y.float()))
    assert bits(answers[0][0]) == bits(answers[1][0])
    torch.testing.assert_close(answers[0][1], answers[1][1], rtol=2**-7, atol=1e-6)  # y is rounded on its way out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("rows", "copies", "outputs", "inputs"),
    [(1, 1, 1, 1), (0, 3, 5, 4), (7, 3, 17, 63), (33, 1, 130, 65), (150, 2, 63, 17), (5, 4, 80, 256)],
)
def test_routed_linear_equals_the_reference(
    dtype: torch.dtype, rows: int, copies: int, outputs: int, inputs: int
) -> None:
    x, weight, bias, route = routed(rows, copies, outputs, inputs)
    x, weight = x.to(dtype).float(), weight.to(dtype)  # what is exact in bf16 stays so
    for given_bias in (bias, None):
        expected = routed_linear.routed_linear(
            x.double(), weight.double(), None if given_bias is None else given_bias.double(), route
        )
        torch.testing.assert_close(linear(x, weight, given_bias, route).double(), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_has_the_same_bits_alone_and_among_any_number(dtype: torch.dtype) -> None:
    x, weight, bias, route = routed(150, 3, 33, 70)
    weight = weight.to(dtype)
    y = linear(x, weight, bias, route)
    for count in (1, 2, 15, 16, 17, 65):
        rows = torch.arange(count) * (149 // count)
        assert bits(linear(x[rows], weight, bias, route[rows])) == bits(y[rows]), count


def test_bf16_rounds_x_to_nearest_even() -> None:
    x, weight, bias, route = routed(9, 2, 33, 64)
    rounded = routed_linear.routed_linear(x.bfloat16().double(), weight.bfloat16().double(), bias.double(), route)
    torch.testing.assert_close(linear(x, weight.bfloat16(), bias, route).double(), rounded, rtol=1e-5, atol=2e-5)


def test_a_modality_without_rows_is_not_read() -> None:
    x, weight, bias, _ = routed(40, 4, 17, 20)
    weight[[1, 2]] = torch.nan
    route = torch.tensor([0, 3]).repeat(20)
    assert bool(linear(x, weight, bias, route).isfinite().all())


@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_a_wrong_argument_is_named_and_nothing_is_written(name: str, wrong: Tensor) -> None:
    assert_refused(coupled, name, wrong)
