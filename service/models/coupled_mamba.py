"""Coupled Mamba (arXiv 2405.18014): one Mamba chain a modality, coupled through their states.

Glossary
    m   modality, of M            t   packed step (row)          d_model  width of the residual stream
    D   d_inner, channels         N   d_state                    K        d_conv             R  dt_rank
    e   residual stream [m, t, d_model]
    u   input of the convolution, z  gate [m, t, D]              x        SiLU(conv(u)), input of the scan [m, t, D]
    dt  step size after softplus [m, t, D]                       B, C     input and output maps [m, t, N]
    A   decay rates, < 0 [M, N, D]                               h        state [m, N, D]; sigma = sum_m h[m]
    G   coupling [M, M]

One layer, for each modality m (section 3.2, eq. 6; blocks as Mamba's, arXiv 2312.00752):
    u, z   = in_proj[m] LayerNorm(e[m])
    x      = SiLU(causal_conv1d(u))
    r, B, C = x_proj[m] x ;   dt = softplus(dt_proj[m] r)
    h_t[m] = exp(dt A[m]) * sum_i G[m, i] h_{t-1}[i] + dt B x ;   y = C . h_t[m] + D[m] x
    e[m]   = e[m] + out_proj[m] (y * SiLU(z))

`coupling: layers` is the authors' released code: chains are not coupled through h but the streams are mixed between
layers, o[m] = e[m] + LayerNorm(mixer) and e[m] = o[m] + cross[m] [o of the others].

The head: pooling over the steps at which a modality is present (running maximum, running mean), a weighted mean over
the modalities that have had input, Linear, ReLU, Linear.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.kernels.causal_conv1d import causal_conv1d
from service.kernels.coupled_scan import coupled_scan
from service.kernels.coupled_scan.compiled import CompiledLoop, compile_time_loop
from service.kernels.coupled_scan.parallel import coupled_scan_parallel
from service.models.base import Chunk, State, StateTensor
from service.models.coupled_mamba_config import CoupledMambaConfig
from service.models.pooling import Pooling, pool, pool_alone
from service.models.stacked import EPS, StackedLinear, StackedNorm


class CoupledMamba(nn.Module):
    """A Coupled Mamba on packed chunks. `run` serves from slots; calling it trains on whole sequences."""

    def __init__(self, config: CoupledMambaConfig, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.dropout = dropout
        modalities, width = len(config.modalities), config.d_model
        self.inputs = nn.ModuleDict({name: _Input(config, features) for name, features in config.modalities.items()})
        self.layers = nn.ModuleList(_Layer(config, dropout) for _ in range(config.n_layers))
        self.norm_f = StackedNorm(modalities, width)
        if config.dense:  # one mixing of the streams between each two layers, the same every time
            self.cross = StackedLinear(modalities, modalities * width, width)
        if config.coupling == "learned":
            self.coupling_logits = nn.Parameter(torch.zeros(config.n_layers, modalities, modalities))
        self.head = _Head(config)

    def compile_scan(self) -> None:
        """Train with the scan in C++ (see `compiled.py`): on a CPU, 2.7 times as fast. Needs a C++ compiler."""
        for layer in self.layers:
            cast(_Layer, layer).compiled = compile_time_loop()

    def state_tensors(self) -> dict[str, StateTensor]:
        """conv windows, SSM states, which chains have started, and the pooling; layers on the second axis."""
        c = self.config
        m, inner, layers = len(c.modalities), c.d_inner, c.n_layers
        return {
            "conv": StateTensor((layers, m, c.d_conv - 1, inner), torch.float32),
            "ssm": StateTensor((layers, c.state_chains, c.d_state, inner), torch.float32),
            "started": StateTensor((layers, m), torch.bool),
            "pool_max": StateTensor((m, c.d_model), torch.float32, -math.inf),
            "pool_sum": StateTensor((m, c.d_model), torch.float32),
            "pool_count": StateTensor((m,), torch.int64),
        }

    @torch.inference_mode()
    def run(self, chunk: Chunk, state: State) -> Tensor:
        """Advance each sequence of `chunk` from and into its slot -> [r, outputs], the head after each read row.

        With `chunk.alone`, [r, 2 * outputs]: then the head over that row by itself.
        A read before a sequence's first input of any modality gives NaN. Raises ValueError on disagreeing shapes.
        """
        every = torch.arange(len(self.config.modalities))
        return self._forward(chunk, state, every)

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        """Whole, non-empty sequences from the initial state, differentiable.

        inputs {modality: [t, dim]}, present [m, t] bool, offsets [b + 1] -> {output: [b, width]}, width 1 squeezed
        """
        none = torch.empty(0, dtype=torch.int64)
        chunk = Chunk(
            inputs=inputs, present=present, offsets=offsets, slots=none, fresh=none.bool(), reads=offsets[1:] - 1
        )
        chains = torch.nonzero(present.any(1)).squeeze(1)  # a chain that never starts takes part in nothing
        return self.split(self._forward(chunk, None, chains))

    def split(self, outputs: Tensor) -> dict[str, Tensor]:
        """Name the head's columns: [r, outputs] -> {output: [r, width]}, width 1 squeezed."""
        widths = self.config.outputs
        parts = torch.split(outputs, list(widths.values()), dim=1)
        return {name: part.squeeze(1) if widths[name] == 1 else part for name, part in zip(widths, parts, strict=True)}

    def _forward(self, chunk: Chunk, state: State | None, chains: Tensor) -> Tensor:
        names = list(self.config.modalities)
        present = chunk.present[chains]
        rows = []
        for position, chain in enumerate(chains.tolist()):
            values = torch.where(present[position, :, None], chunk.inputs[names[chain]], 0.0)
            rows.append(self.inputs[names[chain]](values))
        e = torch.stack(rows)  # [m, t, d_model]
        for index, layer in enumerate(self.layers):
            mixed = layer(e, chunk, present, chains, self._coupling(index, chains), _layer_state(state, index))
            if self.config.dense:
                e = e + self.norm_f(mixed, chains)
                if index + 1 < len(self.layers):
                    e = e + self.cross(e.transpose(0, 1).flatten(1).expand(len(chains), -1, -1), chains)
            else:
                e = e + mixed
        if not self.config.dense:
            e = self.norm_f(e, chains)
        outputs: Tensor = self.head(pool(e, present, chunk, state), chains)
        if chunk.alone:
            outputs = torch.cat([outputs, self.head(pool_alone(e, present, chunk.reads), chains)], 1)
        return outputs

    def _coupling(self, layer: int, chains: Tensor) -> Tensor:
        """G over the chains that run [m, m]."""
        m = len(chains)
        match self.config.coupling:
            case "mean":
                return torch.full((m, m), 1.0 / m, dtype=self.norm_f.weight.dtype)
            case "sum":
                return torch.ones(m, m, dtype=self.norm_f.weight.dtype)
            case "learned":
                return self.coupling_logits[layer][chains][:, chains].softmax(1)
            case _:
                return torch.eye(m, dtype=self.norm_f.weight.dtype)


class _Layer(nn.Module):
    """LayerNorm and mixer of one layer, all modalities' weights stacked on the first axis."""

    def __init__(self, config: CoupledMambaConfig, dropout: float) -> None:
        super().__init__()
        m, inner, rank, n = len(config.modalities), config.d_inner, config.dt_rank, config.d_state
        self.config, self.dropout = config, dropout
        self.compiled: CompiledLoop | None = None
        self.norm = StackedNorm(m, config.d_model)
        self.in_proj = StackedLinear(m, config.d_model, 2 * inner, bias=False)
        self.conv_weight = nn.Parameter((torch.rand(m, config.d_conv, inner) * 2 - 1) / math.sqrt(config.d_conv))
        self.conv_bias = nn.Parameter(torch.zeros(m, inner))
        self.x_proj = StackedLinear(m, inner, rank + 2 * n, bias=False)
        self.dt_proj = StackedLinear(m, rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, n + 1).log()[None, :, None].repeat(m, 1, inner))
        self.D = nn.Parameter(torch.ones(m, inner))
        self.out_proj = StackedLinear(m, inner, config.d_model, bias=False)
        # softplus(bias) is log-uniform in [0.001, 0.1], as Mamba initialises it.
        dt = torch.exp(torch.rand(m, inner) * math.log(100.0) + math.log(0.001))
        self.dt_proj.bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))

    def forward(
        self, e: Tensor, chunk: Chunk, present: Tensor, chains: Tensor, coupling: Tensor, state: State | None
    ) -> Tensor:
        """The mixer's output [m, t, d_model], before the residual."""
        config = self.config
        u, z = self.in_proj(self.norm(e, chains), chains).chunk(2, dim=2)
        offsets, slots, fresh = chunk.offsets, chunk.slots, chunk.fresh
        weight, bias = self.conv_weight[chains], self.conv_bias[chains]
        window = None if state is None else state["conv"]
        x = F.silu(
            causal_conv1d(u, weight, bias, state=window, slots=slots, offsets=offsets, fresh=fresh, present=present)
        )
        projected = self.x_proj(x, chains)
        rank, B, C = projected.split([config.dt_rank, config.d_state, config.d_state], dim=2)
        dt = F.softplus(self.dt_proj(rank, chains))
        A, D = -torch.exp(self.A_log[chains]), self.D[chains]
        renormalise = config.coupling != "sum"
        if state is None:
            y = coupled_scan_parallel(
                x,
                dt,
                A,
                B,
                C,
                D,
                coupling,
                offsets=offsets,
                present=present,
                renormalise=renormalise,
                compiled=self.compiled,
            )
        else:
            y = coupled_scan(
                x,
                dt,
                A,
                B,
                C,
                D,
                coupling,
                state=state["ssm"],
                started=state["started"],
                slots=slots,
                offsets=offsets,
                fresh=fresh,
                present=present,
                renormalise=renormalise,
            )
        out = self.out_proj(y * F.silu(z), chains)
        return F.dropout(out, self.dropout, self.training)


class _Head(nn.Module):
    """Weighted mean over the modalities that have had input, then Linear, ReLU, Linear."""

    def __init__(self, config: CoupledMambaConfig) -> None:
        super().__init__()
        self.kinds, self.normalisation = config.pool, config.modality_weights
        self.weights = nn.Parameter(torch.full((len(config.modalities),), float(config.modality_weights == "ratio")))
        self.dense = nn.Linear(len(config.pool) * config.d_model, config.d_head)
        self.out_proj = nn.Linear(config.d_head, sum(config.outputs.values()))

    def forward(self, pooled: Pooling, chains: Tensor) -> Tensor:
        """pooled over [r, m, d_model] -> [r, outputs]."""
        features = torch.cat([pooled.maximum if kind == "max" else pooled.mean for kind in self.kinds], dim=2)
        weights = self.weights[chains]
        weights = weights.exp() if self.normalisation == "softmax" else weights
        weights = torch.where(pooled.heard, weights, 0.0)  # [r, m]
        weights = weights / weights.sum(1, keepdim=True)
        features = torch.where(pooled.heard[..., None], features, 0.0)
        out: Tensor = self.out_proj(F.relu(self.dense((weights[..., None] * features).sum(1))))
        return out


class _Input(nn.Module):
    """Features of one modality to the residual stream, normalised by constants of the checkpoint first."""

    def __init__(self, config: CoupledMambaConfig, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        if config.input == "linear":
            self.project: nn.Module = nn.Linear(features, config.d_model)
        else:
            hidden = config.d_input
            self.project = nn.Sequential(
                nn.Linear(features, hidden),
                nn.LayerNorm(hidden, EPS),
                nn.ReLU(),
                nn.Linear(hidden, config.d_model),
                nn.LayerNorm(config.d_model, EPS),
            )

    mean: Tensor
    scale: Tensor

    def forward(self, values: Tensor) -> Tensor:
        """values [t, dim] -> [t, d_model]; (values - mean) * scale first."""
        out: Tensor = self.project((values - self.mean) * self.scale)
        return out


def _layer_state(state: State | None, layer: int) -> State | None:
    """Views of one layer's rows: [slots, ...], the layer axis taken out."""
    return state and {name: state[name][:, layer] for name in ("conv", "ssm", "started")}
