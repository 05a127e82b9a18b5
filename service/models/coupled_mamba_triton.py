"""Coupled Mamba on a GPU: weights packed once, a handful of kernels a layer over the rows of all modalities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from service.kernels.causal_conv1d.triton import launch_causal_conv1d
from service.kernels.coupled_scan.triton import launch_coupled_scan
from service.kernels.routed_linear.triton import project
from service.kernels.triton.checks import MOST_TAPS
from service.kernels.triton.norm import layer_norm
from service.kernels.triton.pooling import pool_rows
from service.kernels.triton.routing import Tiles, stacked_tiles
from service.kernels.triton.select import Sequences
from service.kernels.triton.tiles import product_tile
from service.models.base import Chunk, State, StateTensor, check_features, check_state
from service.models.coupled_mamba import CoupledMamba
from service.models.coupled_mamba_triton_weights import InputWeights, LayerWeights, Pair, Weights
from service.models.stacked import EPS
from service.models.triton_packing import blocks_of, check_chunk, kernel_device, send

BLOCK_ROWS = 16_384  # steps in one pass; a longer chunk runs in blocks of so many, with the same bits


class CoupledMambaTriton:
    """The executable of a `CoupledMamba` for the backend `triton`. The state is that of the reference, on a GPU.

    dtype bfloat16 rounds the weights of the projections and what they multiply; the rest is fp32 either way.
    Not for two threads at a time.
    """

    same_bits = True

    def __init__(
        self,
        model: CoupledMamba,
        *,
        dtype: torch.dtype = torch.float32,
        block_rows: int = BLOCK_ROWS,
        device: torch.device | None = None,
    ) -> None:
        c = self.config = model.config
        if c.d_conv > MOST_TAPS:
            raise ValueError(f"model.d_conv: the backend triton has up to {MOST_TAPS} taps, got {c.d_conv}")
        self.dtype, self.block_rows, self.device = dtype, block_rows, device or kernel_device()
        self._tensors, self._split = model.state_tensors(), model.split
        self._weights = Weights(model, dtype, self.device)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights on the device."""
        return self._weights.bytes

    def state_tensors(self) -> Mapping[str, StateTensor]:
        """The state of a slot, as the reference lays it out."""
        return self._tensors

    def split(self, outputs: Tensor) -> dict[str, Tensor]:
        """Name the head's columns: [r, outputs] -> {output: [r, width]}, width 1 squeezed."""
        return self._split(outputs)

    def run(self, chunk: Chunk, state: State) -> Tensor:
        """Advance each sequence of `chunk` from and into its slot -> [r, outputs], the head after each read row.

        With `chunk.alone`, [r, 2 * outputs]: then the head over that row by itself.
        The chunk and the outputs are on the CPU, the state on `device`. A read before a sequence's first input of any
        modality gives NaN. Raises ValueError, before anything is written, where shapes disagree or offsets, slots or
        reads are out of range.
        """
        rows = check_features(chunk, self.config.modalities)
        check_chunk("coupled_mamba", chunk, rows, check_state(self._tensors, state, self.device))
        width = sum(self.config.outputs.values())
        outputs = torch.empty(chunk.reads.shape[0], 2 * width if chunk.alone else width)
        for block in blocks_of(chunk, rows, self.block_rows):
            sequences, part = send(block, self.device), slice(block.begin, block.end)
            if not sequences.count:
                continue
            present = chunk.present[:, part].to(self.device, non_blocking=True).contiguous()
            inputs = {name: values[part].to(self.device, non_blocking=True) for name, values in chunk.inputs.items()}
            read = (chunk.reads >= block.begin) & (chunk.reads < block.end)
            reads = (chunk.reads[read] - block.begin).to(self.device)
            answers = self.advance(inputs, present, reads, sequences, state, chunk.alone)
            if reads.numel():
                outputs[read] = answers.cpu()
        return outputs

    def advance(
        self,
        inputs: Mapping[str, Tensor],
        present: Tensor,
        reads: Tensor,
        sequences: Sequences,
        state: State,
        alone: bool,
    ) -> Tensor:
        """A block, all of it on the device -> [r, outputs or twice as many]."""
        c, (m, t) = self.config, present.shape
        tile_rows = product_tile(1, 1, self.dtype).rows
        one = stacked_tiles(t, 1, tile_rows, self.device)
        every = stacked_tiles(t, m, tile_rows, self.device)
        e = torch.empty(m, t, c.d_model, device=self.device)
        for index, (name, entry) in enumerate(self._weights.inputs.items()):
            self._read_input(entry, inputs[name], present[index], e[index], one)
        for index, layer in enumerate(self._weights.layers):
            mixed = torch.empty_like(e) if c.dense else e
            kept = {name: state[name][:, index] for name in ("conv", "ssm", "started")}
            self._mix(layer, e, mixed, present, sequences, kept, every)
            if c.dense:
                layer_norm(mixed, *self._weights.norm_f, e, eps=EPS, add=True)
                if index + 1 < len(self._weights.layers):
                    streams = e.transpose(0, 1).reshape(1, t, -1).expand(m, -1, -1)
                    self._project(
                        streams.reshape(m * t, -1), cast(Pair, self._weights.cross), e.view(m * t, -1), every, add=True
                    )
        if not c.dense:
            layer_norm(e, *self._weights.norm_f, e, eps=EPS)
        maximum, mean = torch.empty(2, t, m, c.d_model, device=self.device)
        heard = torch.empty(t, m, dtype=torch.bool, device=self.device)
        read = torch.zeros(t, dtype=torch.bool, device=self.device)
        read.index_fill_(0, reads, True)
        kept = {name: state[name] for name in ("pool_max", "pool_sum", "pool_count")}
        on = {"slots": sequences.slots, "offsets": sequences.offsets, "fresh": sequences.fresh}
        pool_rows(e, present, read, maximum, mean, heard, **kept, **on)
        answers = self._answer(maximum[reads], mean[reads], heard[reads])
        if alone:
            step = e[:, reads].transpose(0, 1)
            answers = torch.cat([answers, self._answer(step, step, present[:, reads].T)], 1)
        return answers

    def _read_input(self, layer: InputWeights, values: Tensor, present: Tensor, out: Tensor, tiles: Tiles) -> None:
        """values [t, features] -> out [t, d_model]."""
        values = (torch.where(present[:, None], values, 0.0) - layer.mean) * layer.scale
        if layer.norm is None or layer.second is None or layer.second_norm is None:
            self._project(values, layer.linear, out, tiles)
            return
        hidden = torch.empty(values.shape[0], self.config.d_input, device=self.device)
        self._project(values, layer.linear, hidden, tiles)
        weight, bias = layer.norm
        layer_norm(hidden[None], weight[None], bias[None], hidden[None], eps=EPS, relu=True)
        self._project(hidden, layer.second, out, tiles)
        weight, bias = layer.second_norm
        layer_norm(out[None], weight[None], bias[None], out[None], eps=EPS)

    def _mix(
        self,
        layer: LayerWeights,
        e: Tensor,
        out: Tensor,
        present: Tensor,
        sequences: Sequences,
        state: State,
        tiles: Tiles,
    ) -> None:
        """One layer's mixer of e [m, t, d_model], added to `out` where that is e itself."""
        c, (m, t, _) = self.config, e.shape
        normed = torch.empty(m, t, c.d_model, dtype=self.dtype, device=self.device)
        uz = torch.empty(m, t, 2 * c.d_inner, device=self.device)
        x = torch.empty(m, t, c.d_inner, device=self.device)
        selected = torch.empty(m, t, c.dt_rank + 2 * c.d_state, device=self.device)
        dt, y = torch.empty_like(x), torch.empty_like(x)
        layer_norm(e, *layer.norm, normed, eps=EPS)
        self._project(normed.view(m * t, -1), (layer.in_proj, None), uz.view(m * t, -1), tiles)
        kept = {"slots": sequences.slots, "offsets": sequences.offsets, "fresh": sequences.fresh, "present": present}
        launch_causal_conv1d(uz, *layer.conv, x, state=state["conv"], silu_after=True, **kept)
        self._project(x.view(m * t, -1), (layer.x_proj, None), selected.view(m * t, -1), tiles)
        self._project(selected.view(m * t, -1), layer.dt_proj, dt.view(m * t, -1), tiles, after="softplus")
        B, C = (selected[:, :, c.dt_rank + i * c.d_state :] for i in (0, 1))
        launch_coupled_scan(
            x,
            dt,
            layer.A,
            B,
            C,
            layer.D,
            layer.coupling,
            uz[:, :, c.d_inner :],
            y,
            state=state["ssm"],
            started=state["started"],
            renormalise=c.coupling != "sum",
            **kept,
        )
        self._project(
            y.view(m * t, -1), (layer.out_proj, None), out.view(m * t, -1), tiles, add=out.data_ptr() == e.data_ptr()
        )

    def _project(
        self,
        x: Tensor,
        weights: tuple[Tensor, Tensor | None],
        y: Tensor,
        tiles: Tiles,
        *,
        add: bool = False,
        after: str = "",
    ) -> None:
        """y = weight x + bias, rows by `tiles`; weights of one modality may come without their axis."""
        weight, bias = weights
        weight = weight[None] if weight.dim() == 2 else weight
        if tiles.count:
            tile = product_tile(weight.shape[1], weight.shape[2], self.dtype)
            project(x, weight, bias, y, tiles, tile, add=add, after=after)

    def _answer(self, maximum: Tensor, mean: Tensor, heard: Tensor) -> Tensor:
        """The head over a pooling [r, m, d_model], heard [r, m] -> [r, outputs]."""
        c, (rows, m, _) = self.config, maximum.shape
        features = torch.cat([maximum if kind == "max" else mean for kind in c.pool], dim=2)
        # Summed a modality at a time: PyTorch's own order of summing may follow the number of rows.
        total, mixed = torch.zeros(rows, 1, device=self.device), torch.zeros_like(features[:, 0])
        weights = torch.where(heard, self._weights.modalities, 0.0)
        for chain in range(m):
            total = total + weights[:, chain, None]
        for chain in range(m):
            own = torch.where(heard[:, chain, None], features[:, chain], 0.0)
            mixed = mixed + weights[:, chain, None] / total * own
        hidden = torch.empty(rows, c.d_head, device=self.device)
        out = torch.empty(rows, sum(c.outputs.values()), device=self.device)
        tiles = stacked_tiles(rows, 1, product_tile(1, 1, self.dtype).rows, self.device)
        self._project(mixed.contiguous(), self._weights.dense, hidden, tiles, after="relu")
        self._project(hidden, self._weights.out, out, tiles)
        return out
