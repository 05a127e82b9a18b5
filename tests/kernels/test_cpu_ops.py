"""The compiled ops against the reference in float64, and against themselves under any packing and chunking."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from service.kernels import routed_linear
from service.kernels.causal_conv1d.cpu import causal_conv1d as conv_cpu
from service.kernels.coupled_scan.cpu import coupled_scan as coupled_cpu
from service.kernels.cpu import BEST, INSTRUCTION_SETS
from service.kernels.routed_linear.cpu import routed_linear as linear_cpu
from service.kernels.selective_scan.cpu import selective_scan as selective_cpu
from tests.bits import bits
from tests.kernels.agreement import WRONG, assert_chunks_keep_bits, assert_equals_reference, assert_refused
from tests.kernels.cases import Case, cases, cuts
from tests.kernels.steps import COUPLINGS, coupled_pools, drive_conv, drive_coupled, drive_selective, routed, sized

every_set = pytest.mark.parametrize("isa", INSTRUCTION_SETS)
# m, n, d, taps, lengths: odd widths, one state and many, empty and long sequences, more states than fit on the stack.
SIZES = [
    (1, 1, 1, 2, [3]),
    (1, 16, 63, 4, [5, 0, 9, 1]),
    (2, 3, 65, 3, [0, 70]),
    (3, 256, 17, 4, [2, 6]),
    (3, 64, 65, 4, [50, 3]),
    (8, 5, 16, 7, [7, 2, 0, 4]),
    (1, 600, 17, 4, [6, 1]),
    (2, 4, 3, 32, [4096, 33]),
]


@every_set
@pytest.mark.parametrize("kind", COUPLINGS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_coupled_scan_equals_the_reference(isa: str, kind: str, size: Any) -> None:
    case = sized(*size)
    if kind == "sum":  # diverges: few steps
        case = sized(*size[:4], [min(length, 9) for length in size[4]])
    assert_equals_reference(case, drive_coupled(case, kind), partial(coupled_cpu, isa=isa))


@every_set
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_selective_scan_equals_the_reference(isa: str, size: Any) -> None:
    case = sized(1, *size[1:])
    assert_equals_reference(case, drive_selective(case), partial(selective_cpu, isa=isa))


@every_set
@pytest.mark.parametrize("kind", COUPLINGS)
def test_steps_that_forget_everything_among_short_ones(isa: str, kind: str) -> None:
    case = sized(3, 5, 33, 4, [12, 3], density=1.0)
    case.dt[:, 2::3] *= 1e4  # decays of 2^-100000: less than a float can say
    driven, op = drive_coupled(case, kind), partial(coupled_cpu, isa=isa)
    assert_equals_reference(case, driven, op)
    assert_chunks_keep_bits(case, driven, op, range(12))


@every_set
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_causal_conv1d_equals_the_reference(isa: str, size: Any) -> None:
    case = sized(*size)
    assert_equals_reference(case, drive_conv(case), partial(conv_cpu, isa=isa))


@every_set
@settings(max_examples=25)
@given(case=cases(), at=cuts)
def test_any_chunking_gives_the_same_bits(isa: str, case: Case, at: list[int]) -> None:
    assert_chunks_keep_bits(case, drive_selective(case), partial(selective_cpu, isa=isa), at)
    assert_chunks_keep_bits(case, drive_conv(case), partial(conv_cpu, isa=isa), at)
    for kind in COUPLINGS:
        assert_chunks_keep_bits(case, drive_coupled(case, kind), partial(coupled_cpu, isa=isa), at)


@every_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("rows", "copies", "outputs", "inputs"),
    [(1, 1, 1, 1), (0, 3, 5, 4), (7, 3, 17, 63), (33, 1, 130, 65), (200, 2, 63, 17), (5, 4, 80, 256)],
)
def test_routed_linear_equals_the_reference(
    isa: str, dtype: torch.dtype, rows: int, copies: int, outputs: int, inputs: int
) -> None:
    x, weight, bias, route = routed(rows, copies, outputs, inputs)
    x, weight = x.to(dtype).float(), weight.to(dtype).float()  # what is exact in bf16 stays so
    for given_bias in (bias, None):
        expected = routed_linear.routed_linear(
            x.double(), weight.double(), None if given_bias is None else given_bias.double(), route
        )
        y = linear_cpu(x, weight, given_bias, route, dtype=dtype, isa=isa)
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


@every_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_has_the_same_bits_alone_and_among_any_number(isa: str, dtype: torch.dtype) -> None:
    x, weight, bias, route = routed(150, 3, 97, 129)
    y = linear_cpu(x, weight, bias, route, dtype=dtype, isa=isa)
    for count in (1, 2, 3, 4, 5, 6, 7, 8, 31, 32, 100):
        rows = torch.arange(count) * (149 // count)
        some = linear_cpu(x[rows], weight, bias, route[rows], dtype=dtype, isa=isa)
        assert bits(some) == bits(y[rows]), count


@every_set
def test_bf16_rounds_both_operands_to_nearest_even(isa: str) -> None:
    x, weight, bias, route = routed(9, 2, 33, 64)
    rounded = routed_linear.routed_linear(x.bfloat16().double(), weight.bfloat16().double(), bias.double(), route)
    y = linear_cpu(x, weight, bias, route, dtype=torch.bfloat16, isa=isa)
    torch.testing.assert_close(y.double(), rounded, rtol=1e-5, atol=1e-5)


@every_set
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 100, 255, 256])
def test_addresses_need_no_alignment_and_any_number_of_states_will_do(isa: str, n: int) -> None:
    case = sized(2, n, 33, 3, [5, 1])

    def shifted(tensor: Tensor) -> Tensor:
        """The same values, one element after an aligned address."""
        room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
        room[1:] = tensor.flatten()
        return room[1:].view(tensor.shape)

    for kind in ("mean", "learned"):
        aligned, apart = (coupled_pools(case, kind, torch.float32) for _ in range(2))
        apart.state = shifted(apart.state)
        answers = []
        for pools, place in ((aligned, Tensor.contiguous), (apart, shifted)):
            x, dt, A, B, C, D, G = (
                place(tensor.float())
                for tensor in (case.x, case.dt, case.A, case.B, case.C, case.D, case.coupling(kind))
            )
            kept = {"state": pools.state, "started": pools.started, "slots": case.slots, "offsets": case.offsets}
            fresh = torch.ones(2, dtype=torch.bool)
            answers.append(coupled_cpu(x, dt, A, B, C, D, G, fresh=fresh, present=case.present, isa=isa, **kept))
        assert bits(answers[0]) == bits(answers[1])
        assert bits(aligned.state) == bits(apart.state)


@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_a_wrong_argument_is_named_and_nothing_is_written(name: str, wrong: Tensor) -> None:
    assert_refused(coupled_cpu, name, wrong)


def test_an_unknown_instruction_set_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=f"mmx: this processor and build have .*portable.*{BEST}"):
        linear_cpu(torch.ones(1, 1), torch.ones(1, 1, 1), None, torch.zeros(1, dtype=torch.int64), isa="mmx")
