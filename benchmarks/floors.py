"""What the machine could do at best: a floor under the time of a piece of work, from what it cannot avoid.

The floor is the largest of three times, each a count over a rate measured in the same run, on one core: bytes that
must come from memory, exponentials, multiply-adds of matrix products. The largest one binds; a run whose parts do not
overlap perfectly takes longer, so that a fraction of 1 is a limit and not a promise. A faster exponential than
PyTorch's moves the floor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from service.models.coupled_mamba_config import CoupledMambaConfig
from service.models.mixture_of_mamba_config import MixtureOfMambaConfig

FLOAT_BYTES = 4
CACHE_BYTES = 64 * 2**20  # what is larger must come from memory again at every pass; the rate is measured on as much


@dataclass(frozen=True)
class Rates:
    """Of one core: bytes read, exponentials and floating-point operations (two a multiply-add) a second, all fp32."""

    read_bytes: float
    exponentials: float
    flops: float


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
    """What a piece of work cannot avoid."""

    read_bytes: int
    exponentials: int
    flops: int

    def floor(self, rates: Rates) -> Floor:
        """The binding one of the three."""
        seconds = {
            "bytes": self.read_bytes / rates.read_bytes,
            "exponentials": self.exponentials / rates.exponentials,
            "flops": self.flops / rates.flops,
        }
        bound = max(seconds, key=seconds.__getitem__)
        return Floor(seconds[bound], bound)


def measure_rates(budget_s: float = 4.0) -> Rates:
    """Measure this machine on one thread: the best of many short tries, since a floor is what an idle core could do."""
    large = torch.ones(CACHE_BYTES // FLOAT_BYTES)  # well beyond the cache of one core
    values, out = torch.linspace(-8.0, 0.0, 2**14), torch.empty(2**14)  # both inside it
    a, b = torch.rand(512, 512), torch.rand(512, 512)
    share = budget_s / 3
    return Rates(
        read_bytes=large.numel() * FLOAT_BYTES / _best(lambda: torch.dot(large, large), share),
        exponentials=values.numel() / _best(lambda: torch.exp(values, out=out), share),
        flops=2 * 512**3 / _best(lambda: a @ b, share),
    )


def coupled_mamba_needs(c: CoupledMambaConfig, clips: int, steps: int, weights: int) -> Needs:
    """Of `clips` clips with every modality at `steps` steps, in one batch of a model with `weights` parameters.

    Bytes: the weights once, each clip's features, its state written at the end; what lies between may stay in the
    cache. Exponentials: N decays a channel and step, and three for the two SiLU and the softplus. Flops: the maps.
    """
    m, rows = len(c.modalities), clips * steps
    state = c.n_layers * c.d_inner * (c.state_chains * c.d_state + m * (c.d_conv - 1))
    layer = c.d_inner * (3 * c.d_model + 2 * c.dt_rank + 2 * c.d_state + c.d_conv)
    maps = m * c.n_layers * layer
    if c.dense:
        maps += (c.n_layers - 1) * m * (m - 1) * c.d_model**2
    if c.input == "mlp":
        maps += sum(width * c.d_input + c.d_input * c.d_model for width in c.modalities.values())
    else:
        maps += sum(width * c.d_model for width in c.modalities.values())
    return Needs(
        read_bytes=FLOAT_BYTES * (weights + rows * sum(c.modalities.values()) + clips * state),
        exponentials=rows * m * c.n_layers * c.d_inner * (c.d_state + 3),
        flops=2 * rows * maps,
    )


def mixture_of_mamba_needs(
    c: MixtureOfMambaConfig, ids: int, sequences: int, steps: int, reads: int, weights: int
) -> Needs:
    """Of `sequences` that read `steps` tokens each in one batch, with the head over `ids` at the last `reads` of them.

    Bytes: the weights once, or with every read where they are more than a cache holds. Exponentials: N decays a channel
    and token, and three for the two SiLU and the softplus. Flops: the maps and the head.
    """
    rows, passes = sequences * steps, reads if FLOAT_BYTES * weights > CACHE_BYTES else 1
    layer = c.d_inner * (3 * c.d_model + 2 * c.dt_rank + 2 * c.d_state + c.d_conv)
    return Needs(
        read_bytes=FLOAT_BYTES * weights * passes,
        exponentials=rows * c.n_layers * c.d_inner * (c.d_state + 3),
        flops=2 * (rows * c.n_layers * layer + sequences * reads * c.d_model * ids),
    )


def scan_training_needs(m: int, clips: int, steps: int, d: int, n: int) -> Needs:
    """Of one forward and backward pass of the coupled scan.

    Bytes: x, dt, B, C read forward and again backward with the gradient of y; y and four gradients written.
    Exponentials: the decays, once: whoever saves them for the way back pays in bytes instead.
    """
    rows = m * clips * steps
    wide, narrow = rows * d, rows * n
    return Needs(
        read_bytes=FLOAT_BYTES * (2 * (2 * wide + 2 * narrow) + 2 * wide + 2 * wide + 2 * narrow),
        exponentials=rows * d * n,
        flops=0,
    )


def _best(run: Callable[[], object], budget_s: float) -> float:
    best, stop = float("inf"), time.perf_counter() + budget_s
    while (begun := time.perf_counter()) < stop:
        run()
        best = min(best, time.perf_counter() - begun)
    return best
