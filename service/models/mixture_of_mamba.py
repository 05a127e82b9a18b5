"""Mixture-of-Mamba (arXiv 2501.16295): Mamba whose projections exist once a modality; each token takes its own.

Glossary
    t   packed token (row)          route   modality of each token [t], of M       d_model  width of the residual stream
    D   d_inner, channels           N       d_state        K  d_conv               R        dt_rank
    e   residual stream [t, d_model]
    u   input of the convolution, z  gate [t, D]           x  SiLU(conv(u)), input of the scan [t, D]
    dt  step size after softplus [t, D]                    B, C  input and output maps [t, N]
    A   decay rates, < 0 [N, D]                            h  state [N, D]

One layer, for a token of modality m (section 2.3; Mamba's block, arXiv 2312.00752, with routed projections):
    u, z    = in_proj[m] RMSNorm(e)
    x       = SiLU(causal_conv1d(u))              the window crosses the borders of modalities
    r, B, C = x_proj[m] x ;   dt = softplus(dt_proj[m] r + bias[m])
    h_t     = exp(dt A) * h_{t-1} + dt B x ;      y = C . h_t + D x
    e       = e + out_proj[m] (y * SiLU(z))

The convolution, A, D and the norms are shared. A projection that is not split has one weight for all modalities; with
none split this is Mamba.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.kernels.causal_conv1d import causal_conv1d
from service.kernels.causal_conv1d.parallel import causal_conv1d_parallel
from service.kernels.coupled_scan.compiled import CompiledLoop, compile_time_loop
from service.kernels.routed_linear import routed_linear
from service.kernels.selective_scan import selective_scan
from service.kernels.selective_scan.parallel import selective_scan_parallel
from service.models.base import State, StateTensor, TokenChunk
from service.models.mixture_of_mamba_config import MixtureOfMambaConfig
from service.models.mixture_of_mamba_release import blocks_from_release
from service.models.vocabulary import Vocabulary


class MixtureOfMamba(nn.Module):
    """A Mixture-of-Mamba language model. `run` serves from slots; calling it trains on whole sequences."""

    def __init__(self, config: MixtureOfMambaConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.embedding = nn.Parameter(torch.randn(vocabulary.size, config.d_model) * 0.02)
        self.blocks = MixtureOfMambaBlocks(config, len(vocabulary.modalities))
        self.norm_f = nn.Parameter(torch.ones(config.d_model))
        if not config.tied:
            self.head = nn.Parameter(torch.randn(vocabulary.size, config.d_model) * 0.02)
        self.register_buffer("borders", vocabulary.borders(), persistent=False)

    def state_tensors(self) -> Mapping[str, StateTensor]:
        """The convolution's windows and the states of the scan, of every layer."""
        return self.blocks.state_tensors()

    @torch.inference_mode()
    def run(self, chunk: TokenChunk, state: State) -> Tensor:
        """Advance each sequence by its tokens, mutating its rows of `state` -> logits at `reads` [r, vocabulary]."""
        e = self.blocks.advance(
            F.embedding(chunk.tokens, self.embedding),
            self.route(chunk.tokens),
            offsets=chunk.offsets,
            slots=chunk.slots,
            fresh=chunk.fresh,
            state=state,
        )
        return self.logits(e[chunk.reads])

    def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        """Whole packed sequences, fresh and differentiable: tokens [t], offsets [b + 1] -> logits [t, vocabulary]."""
        e = F.embedding(tokens, self.embedding)
        return self.logits(self.blocks.advance(e, self.route(tokens), offsets=offsets))

    def route(self, tokens: Tensor) -> Tensor:
        """The modality of each token [t] int64."""
        borders: Tensor = self.get_buffer("borders")
        return torch.bucketize(tokens, borders, right=True)

    def logits(self, e: Tensor) -> Tensor:
        """The head: e [t, d_model] -> [t, vocabulary]."""
        weight = self.embedding if self.config.tied else self.head
        return F.rms_norm(e, e.shape[-1:], self.norm_f, self.config.eps) @ weight.T


class MixtureOfMambaBlocks(nn.Module):
    """The stack of residual blocks, without embedding and head."""

    def __init__(self, config: MixtureOfMambaConfig, modalities: int) -> None:
        super().__init__()
        self.config, self.modalities = config, modalities
        self.layers = nn.ModuleList(_Layer(config, modalities) for _ in range(config.n_layers))
        self.compiled: CompiledLoop | None = None

    @classmethod
    def from_release(
        cls, tensors: Mapping[str, Tensor], modalities: int | Sequence[str], unsplit_dt_bias: bool = True
    ) -> MixtureOfMambaBlocks:
        """The blocks of a checkpoint of the released code, fp32 (or float64) and frozen. Any projections may be split.

        tensors          `layers.{i}.norm.weight`, `layers.{i}.mamba_model.*`; sizes are taken from them
        modalities       how many, or their names
        unsplit_dt_bias  False: drop the bias of an unsplit dt_proj, as the released code does
        Raises ValueError listing what is missing, unexpected, of another shape or not finite.
        """
        count = modalities if isinstance(modalities, int) else len(modalities)
        config, state = blocks_from_release(tensors, count, unsplit_dt_bias=unsplit_dt_bias)
        with torch.device("meta"):
            blocks = cls(config, count).eval().requires_grad_(False)
        blocks.load_state_dict(state, assign=True)
        return blocks

    def compile_scan(self) -> None:
        """Train with the loop over time in C++ (built here, if need be). Serving does not use it."""
        self.compiled = compile_time_loop()

    def state_tensors(self) -> Mapping[str, StateTensor]:
        """conv [layers, 1, K - 1, D] and ssm [layers, N, D] a slot, fp32."""
        c = self.config
        return {
            "conv": StateTensor((c.n_layers, 1, c.d_conv - 1, c.d_inner), torch.float32),
            "ssm": StateTensor((c.n_layers, c.d_state, c.d_inner), torch.float32),
        }

    def forward(self, x: Tensor, route: Tensor) -> Tensor:
        """Whole sequences of equal length: x [b, t, d_model], route [b, t] int64 -> [b, t, d_model]."""
        b, t, _ = x.shape
        offsets = torch.arange(b + 1, device=x.device) * t
        return self.advance(x.flatten(0, 1), route.flatten(), offsets=offsets).view_as(x)

    def advance(
        self,
        e: Tensor,
        route: Tensor,
        *,
        offsets: Tensor,
        slots: Tensor | None = None,
        fresh: Tensor | None = None,
        state: State | None = None,
    ) -> Tensor:
        """Packed tokens e [t, d_model] of modality route [t] through all blocks -> [t, d_model].

        With `state` (see `state_tensors`; mutated) each sequence goes on from its slot, or starts where fresh [b] is
        set; without, all are fresh, nothing is kept, and the result is differentiable.
        """
        c = self.config
        for index, module in enumerate(self.layers):
            layer = cast(_Layer, module)
            normed = F.rms_norm(e, e.shape[-1:], layer.norm, c.eps)
            u, z = routed_linear(normed, layer.in_proj, None, route).chunk(2, dim=1)
            kept: dict[str, Any] = {"offsets": offsets, "slots": slots, "fresh": fresh}
            if state is None:
                conv = causal_conv1d_parallel(u, layer.conv_weight, layer.conv_bias, offsets=offsets)
            else:
                weight, bias = layer.conv_weight[None], layer.conv_bias[None]
                conv = causal_conv1d(u[None], weight, bias, state=state["conv"][:, index], **kept)[0]
            x = F.silu(conv)
            dt, B, C = self._selected(layer, x, route)
            A = -torch.exp(layer.A_log)
            if state is None:
                y = selective_scan_parallel(x, dt, A, B, C, layer.D, offsets=offsets, compiled=self.compiled)
            else:
                y = selective_scan(x, dt, A, B, C, layer.D, state=state["ssm"][:, index], **kept)
            e = e + routed_linear(y * F.silu(z), layer.out_proj, None, route)
        return e

    def _selected(self, layer: _Layer, x: Tensor, route: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = self.config
        r, B, C = torch.split(routed_linear(x, layer.x_proj, None, route), [c.dt_rank, c.d_state, c.d_state], dim=1)
        return F.softplus(routed_linear(r, layer.dt_proj, layer.dt_bias, route)), B, C


class _Layer(nn.Module):
    """Parameters of one block; a split projection has M on its first axis, an unsplit one 1.

    norm [d_model], in_proj [M, 2D, d_model], conv_weight [K, D], conv_bias [D], x_proj [M, R + 2N, D],
    dt_proj [M, D, R], dt_bias [M, D] or None, A_log [N, D], D [D], out_proj [M, d_model, D]
    """

    def __init__(self, c: MixtureOfMambaConfig, modalities: int) -> None:
        super().__init__()
        copies = {name: modalities if name in c.split else 1 for name in ("in_proj", "x_proj", "dt_proj", "out_proj")}
        self.norm = nn.Parameter(torch.ones(c.d_model))
        self.in_proj = _uniform(copies["in_proj"], 2 * c.d_inner, c.d_model)
        self.conv_weight = nn.Parameter((torch.rand(c.d_conv, c.d_inner) * 2 - 1) / math.sqrt(c.d_conv))
        self.conv_bias = nn.Parameter(torch.zeros(c.d_inner))
        self.x_proj = _uniform(copies["x_proj"], c.dt_rank + 2 * c.d_state, c.d_inner)
        self.dt_proj = _uniform(copies["dt_proj"], c.d_inner, c.dt_rank)
        self.dt_bias = nn.Parameter(_dt_bias(copies["dt_proj"], c.d_inner)) if c.dt_bias else None
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, c.d_state + 1))[:, None].repeat(1, c.d_inner))
        self.D = nn.Parameter(torch.ones(c.d_inner))
        self.out_proj = _uniform(copies["out_proj"], c.d_model, c.d_inner, gain=1 / math.sqrt(c.n_layers))


def _uniform(copies: int, outputs: int, inputs: int, gain: float = 1.0) -> nn.Parameter:
    return nn.Parameter((torch.rand(copies, outputs, inputs) * 2 - 1) * gain / math.sqrt(inputs))


def _dt_bias(copies: int, channels: int, low: float = 1e-3, high: float = 1e-1) -> Tensor:
    """Biases whose softplus is log-uniform between low and high, as Mamba's released code starts from."""
    dt = torch.exp(torch.rand(copies, channels) * math.log(high / low) + math.log(low))
    return dt + torch.log(-torch.expm1(-dt))
