"""The compiled ops against the reference in float64, and against themselves under any packing and chunking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from service.kernels import causal_conv1d, coupled_scan, routed_linear, selective_scan
from service.kernels.causal_conv1d.cpu import causal_conv1d as conv_cpu
from service.kernels.coupled_scan.cpu import coupled_scan as coupled_cpu
from service.kernels.cpu import BEST, INSTRUCTION_SETS
from service.kernels.routed_linear.cpu import routed_linear as linear_cpu
from service.kernels.selective_scan.cpu import selective_scan as selective_cpu
from tests.kernels.cases import Case, Step, cases, cuts, in_chunks, make_case
from tests.kernels.steps import (
    COUPLINGS,
    Pools,
    assert_equals_reference,
    bits,
    conv_step,
    coupled_pools,
    coupled_step,
    routed,
    selective_step,
    sized,
)

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

    def step(pools: Pools, op: Any) -> Step:
        return coupled_step(case, kind, pools, op, **({"isa": isa} if op is coupled_cpu else {}))

    ops = (coupled_scan.coupled_scan, coupled_cpu)
    assert_equals_reference(case, lambda dtype: coupled_pools(case, kind, dtype), step, ops)


@every_set
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_selective_scan_equals_the_reference(isa: str, size: Any) -> None:
    case = sized(1, *size[1:])

    def step(pools: Pools, op: Any) -> Step:
        return selective_step(case, pools, op, **({"isa": isa} if op is selective_cpu else {}))

    ops = (selective_scan.selective_scan, selective_cpu)
    assert_equals_reference(case, lambda dtype: Pools(case, *case.A.shape[1:], dtype=dtype), step, ops)


@every_set
@pytest.mark.parametrize("kind", COUPLINGS)
def test_steps_that_forget_everything_among_short_ones(isa: str, kind: str) -> None:
    case = sized(3, 5, 33, 4, [12, 3], density=1.0)
    case.dt[:, 2::3] *= 1e4  # decays of 2^-100000: less than a float can say

    def step(pools: Pools, op: Any) -> Step:
        return coupled_step(case, kind, pools, op, **({"isa": isa} if op is coupled_cpu else {}))

    ops = (coupled_scan.coupled_scan, coupled_cpu)
    assert_equals_reference(case, lambda dtype: coupled_pools(case, kind, dtype), step, ops)
    whole, cut = (coupled_pools(case, kind, torch.float32) for _ in range(2))
    every = range(12)
    assert bits(in_chunks(step(whole, coupled_cpu), case.lengths, [])) == bits(
        in_chunks(step(cut, coupled_cpu), case.lengths, every)
    )


@every_set
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_causal_conv1d_equals_the_reference(isa: str, size: Any) -> None:
    case = sized(*size)
    m, taps, d = case.weight.shape

    def step(pools: Pools, op: Any) -> Step:
        return conv_step(case, pools, op, **({"isa": isa} if op is conv_cpu else {}))

    ops = (causal_conv1d.causal_conv1d, conv_cpu)
    assert_equals_reference(case, lambda dtype: Pools(case, m, taps - 1, d, dtype=dtype), step, ops)


@every_set
@settings(max_examples=25)
@given(case=cases(), at=cuts)
def test_any_chunking_gives_the_same_bits(isa: str, case: Case, at: list[int]) -> None:
    m, n, d = case.A.shape
    window = (m, case.weight.shape[1] - 1, d)
    makers: list[tuple[Callable[[], Pools], Callable[[Pools], Step]]] = [
        (lambda: Pools(case, n, d, dtype=torch.float32), lambda p: selective_step(case, p, selective_cpu, isa=isa)),
        (lambda: Pools(case, *window, dtype=torch.float32), lambda p: conv_step(case, p, conv_cpu, isa=isa)),
    ]
    for kind in COUPLINGS:
        makers.append(
            (
                lambda kind=kind: coupled_pools(case, kind, torch.float32),
                lambda p, kind=kind: coupled_step(case, kind, p, coupled_cpu, isa=isa),
            )
        )
    for make, step in makers:
        whole, cut = make(), make()
        assert bits(in_chunks(step(whole), case.lengths, [])) == bits(in_chunks(step(cut), case.lengths, at))
        assert bits(whole.state) == bits(cut.state)
        assert torch.equal(whole.started, cut.started)


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


WRONG = [
    ("x", torch.zeros(3, 6, 4)),
    ("A", torch.zeros(3, 2, 5)),
    ("started", torch.zeros(5, 2, dtype=torch.bool)),
    ("present", torch.ones(3, 6, dtype=torch.bool)),
    ("offsets", torch.tensor([0, 5, 8])),
    ("offsets", torch.tensor([0, 8, 7])),
    ("offsets", torch.tensor([1, 5, 7])),
    ("slots", torch.tensor([2, 2])),
    ("slots", torch.tensor([2, 5])),
    ("slots", torch.tensor([-1, 2])),
    ("fresh", torch.ones(1, dtype=torch.bool)),
    ("state", torch.zeros(5, 3, 2, 4, dtype=torch.float64)),
    ("state", torch.zeros(5, 3, 4, 2).transpose(2, 3)),
]


@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_a_wrong_argument_is_named_and_nothing_is_written(name: str, wrong: Tensor) -> None:
    case = make_case(3, 2, 4, 3, [5, 2], torch.ones(3, 7, dtype=torch.bool), seed=0)
    arguments: dict[str, Any] = {key: getattr(case, key) for key in ("x", "dt", "A", "B", "C", "D")}
    arguments |= {"coupling": case.learned, "state": torch.full((5, 3, 2, 4), torch.nan), "slots": case.slots}
    arguments |= {"started": torch.zeros(5, 3, dtype=torch.bool), "offsets": case.offsets, "present": case.present}
    arguments["fresh"] = torch.ones(2, dtype=torch.bool)
    with pytest.raises(ValueError, match=rf"coupled_scan: .*{'dt' if name == 'x' else name}"):
        coupled_cpu(**(arguments | {name: wrong}))
    assert arguments["state"].isnan().all()
    coupled_cpu(**arguments)


def test_an_unknown_instruction_set_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=f"mmx: this processor and build have .*portable.*{BEST}"):
        linear_cpu(torch.ones(1, 1), torch.ones(1, 1, 1), None, torch.zeros(1, dtype=torch.int64), isa="mmx")
