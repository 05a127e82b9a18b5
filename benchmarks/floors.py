"""What the machine could do at best: a floor under the time of a piece of work, from what it cannot avoid.

The floor is the larger of two times, each from rates measured in the same run on one core: the bytes that must come
from memory or go there, and the arithmetic. The two may overlap; what is arithmetic may not, for products, updates of
states and exponentials share the units that do multiply-adds. A fraction of 1 is a limit and not a promise.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.pinning import AFFINITY, ALL
from service.models.coupled_mamba_config import CoupledMambaConfig
from service.models.mixture_of_mamba_config import MixtureOfMambaConfig

FLOAT_BYTES = 4
CACHE_BYTES = 64 * 2**20  # what is larger must come from memory again at every pass
READ_BYTES = 256 * 2**20  # read to measure the rate: the weights of Mamba-130m in bf16
UPDATE_FLOPS = 6  # three multiply-adds a state and step: the input, the state, the output
EXPONENTIAL_FLOPS = (
    10  # the product with the rate, two that split it, two of a polynomial; tables and shifts beside them
)


@dataclass(frozen=True)
class Rates:
    """Of one core: bytes read, exponentials and floating-point operations (two a multiply-add) a second.

    bf16_flops are those of products of bf16 with sums in fp32. read_bytes_all are what all cores read together: no
    number of them gains more on one in work that memory binds. None: there is one core.
    """

    read_bytes: float
    exponentials: float
    flops: float
    bf16_flops: float
    read_bytes_all: float | None = None

    def of(self, cores: int) -> Rates:
        """Of so many cores, all that there are: what they read together, and the arithmetic of each."""
        return Rates(
            read_bytes=self.read_bytes_all or self.read_bytes,
            exponentials=cores * self.exponentials,
            flops=cores * self.flops,
            bf16_flops=cores * self.bf16_flops,
        )


@dataclass(frozen=True)
class Floor:
    """Seconds under which the work cannot be done with those rates, and what takes them."""

    seconds: float
    bound: str

    def per(self, count: int) -> Floor:
        """Of one, where the work does `count` of them."""
        return Floor(self.seconds / count, self.bound)


@dataclass(frozen=True)
class Needs:
    """What a piece of work cannot avoid: bytes, exponentials, fp32 and bf16 operations of products, states advanced."""

    bytes: int
    exponentials: int
    flops: int = 0
    bf16_flops: int = 0
    updates: int = 0

    def floor(self, rates: Rates) -> Floor:
        """The binding one of the two."""
        arithmetic = (
            self.exponentials / rates.exponentials
            + (self.flops + UPDATE_FLOPS * self.updates) / rates.flops
            + self.bf16_flops / rates.bf16_flops
        )
        return max(Floor(self.bytes / rates.read_bytes, "memory"), Floor(arithmetic, "arithmetic"), key=_seconds)


def measure_rates(budget_s: float = 4.0) -> Rates:
    """Measure this machine on one thread: the best of many short tries, since a floor is what an idle core could do.

    Of each rate the best way that is at hand counts: reads by PyTorch's or NumPy's dot product, products by PyTorch's
    own library or oneDNN, exponentials by PyTorch's or as many as five operations each allow.
    """
    share = budget_s / 8
    large = _huge_pages(READ_BYTES)
    array = large.numpy()
    exponents, out = torch.linspace(-8.0, 0.0, 2**14), torch.empty(2**14)  # both inside the cache
    a, b = torch.rand(512, 512), torch.rand(512, 512)
    products: list[Callable[[], object]] = [lambda: a @ b]
    if torch.backends.mkldnn.is_available():
        blocked, weight = a.to_mkldnn(), b.to_mkldnn()
        products.append(torch.inference_mode()(lambda: F.linear(blocked, weight)))
    c, d = a.bfloat16(), b.bfloat16()
    reads = [lambda: torch.dot(large, large), lambda: np.dot(array, array)]
    flops = 2 * 512**3 / min(_best(product, share) for product in products)
    return Rates(
        read_bytes=READ_BYTES / min(_best(read, 2 * share) for read in reads),
        exponentials=max(2**14 / _best(lambda: torch.exp(exponents, out=out), share), flops / EXPONENTIAL_FLOPS),
        flops=flops,
        bf16_flops=max(flops, 2 * 512**3 / _best(lambda: c @ d, share)),
        read_bytes_all=_read_together(large, share) if len(ALL) > 1 else None,
    )


def coupled_mamba_needs(
    c: CoupledMambaConfig, clips: int, steps: int, weights: int, dtype: torch.dtype = torch.float32
) -> Needs:
    """Of `clips` clips with every modality at `steps` steps, in one batch of a model with `weights` parameters.

    Bytes: the weights once, each clip's features, its state written at the end; what lies between may stay in the
    cache. Exponentials: N decays a channel and step, and three for the two SiLU and the softplus. Flops: the maps, of
    dtype, as the weights are.
    """
    m, rows = len(c.modalities), clips * steps
    state = c.n_layers * c.d_inner * (c.state_chains * c.d_state + m * (c.d_conv - 1))
    maps = m * c.n_layers * c.d_inner * (3 * c.d_model + 2 * c.dt_rank + 2 * c.d_state)
    if c.dense:
        maps += (c.n_layers - 1) * m * (m - 1) * c.d_model**2
    if c.input == "mlp":
        maps += sum(width * c.d_input + c.d_input * c.d_model for width in c.modalities.values())
    else:
        maps += sum(width * c.d_model for width in c.modalities.values())
    taps, halved = m * c.n_layers * c.d_inner * c.d_conv, dtype == torch.bfloat16
    return Needs(
        bytes=dtype.itemsize * weights + FLOAT_BYTES * (rows * sum(c.modalities.values()) + clips * state),
        exponentials=rows * m * c.n_layers * c.d_inner * (c.d_state + 3),
        flops=2 * rows * (taps if halved else maps + taps),
        bf16_flops=2 * rows * maps if halved else 0,
        updates=rows * m * c.n_layers * c.d_inner * c.d_state,
    )


def mixture_of_mamba_needs(
    c: MixtureOfMambaConfig,
    ids: int,
    sequences: int,
    steps: int,
    reads: int,
    weights: int,
    dtype: torch.dtype = torch.float32,
    weight_bytes: int | None = None,
) -> Needs:
    """Of `sequences` that read `steps` tokens each in one batch, with the head over `ids` at the last `reads` of them.

    dtype is that of the weights and of the products; weight_bytes, what the weights take where they are kept in fewer
    bytes than `dtype` would. Bytes: the weights once, or with every read where they are more than a cache holds; the
    states, read and written, where they are. Exponentials: N decays a channel and token, and three for the two SiLU
    and the softplus. Flops: the maps and the head.
    """
    rows, channels = sequences * steps, c.n_layers * c.d_inner
    if weight_bytes is None:
        weight_bytes = weights * dtype.itemsize
    state_bytes = FLOAT_BYTES * sequences * channels * (c.d_state + c.d_conv - 1)
    passes = reads if weight_bytes > CACHE_BYTES else 1
    taps = 2 * rows * channels * c.d_conv
    maps = (
        2 * rows * channels * (3 * c.d_model + 2 * c.dt_rank + 2 * c.d_state) + 2 * sequences * reads * c.d_model * ids
    )
    return Needs(
        bytes=passes * (weight_bytes + (2 * state_bytes if state_bytes > CACHE_BYTES else 0)),
        exponentials=rows * channels * (c.d_state + 3),
        flops=taps if dtype == torch.bfloat16 else maps + taps,
        bf16_flops=maps if dtype == torch.bfloat16 else 0,
        updates=rows * channels * c.d_state,
    )


def coupled_scan_needs(m: int, sequences: int, steps: int, d: int, n: int) -> Needs:
    """Of the coupled scan alone: x, dt, B, C read, y and the states written; a decay and an update a state and step."""
    rows = m * sequences * steps
    return Needs(
        bytes=FLOAT_BYTES * (rows * (3 * d + 2 * n) + sequences * d * n),
        exponentials=rows * d * n,
        updates=rows * d * n,
    )


def scan_training_needs(m: int, clips: int, steps: int, d: int, n: int) -> Needs:
    """Of one forward and backward pass of the coupled scan.

    Bytes: x, dt, B, C read forward and again backward with the gradient of y; y and four gradients written.
    Exponentials: the decays, once: whoever saves them for the way back pays in bytes instead. Updates: both ways.
    """
    rows = m * clips * steps
    wide, narrow = rows * d, rows * n
    return Needs(
        bytes=FLOAT_BYTES * (2 * (2 * wide + 2 * narrow) + 2 * wide + 2 * wide + 2 * narrow),
        exponentials=rows * d * n,
        updates=2 * rows * d * n,
    )


def _read_together(memory: Tensor, budget_s: float) -> float:
    """Bytes a second of all cores, each of which reads a part of its own, with a thread a core."""
    parts, cores = np.array_split(memory.numpy(), len(ALL)), sorted(ALL)

    def keep_to(core: int) -> None:
        if AFFINITY:
            os.sched_setaffinity(0, {core})

    with ExitStack() as stack:
        pools = [stack.enter_context(ThreadPoolExecutor(1, initializer=keep_to, initargs=(core,))) for core in cores]

        def read() -> None:
            turns = [pool.submit(np.dot, part, part) for pool, part in zip(pools, parts, strict=True)]
            for turn in turns:
                turn.result()

        return READ_BYTES / _best(read, budget_s)


def _seconds(floor: Floor) -> float:
    return floor.seconds


def _huge_pages(count: int) -> Tensor:
    """fp32 ones in `count` bytes, on huge pages where the system gives them, as the compiled programs keep weights."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory = mmap.mmap(-1, count, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    else:
        memory = mmap.mmap(-1, count)
    return torch.frombuffer(memory, dtype=torch.float32).fill_(1.0)


def _best(run: Callable[[], object], budget_s: float) -> float:
    run()
    best, stop = float("inf"), time.perf_counter() + budget_s
    while (begun := time.perf_counter()) < stop:
        run()
        best = min(best, time.perf_counter() - begun)
    return best
