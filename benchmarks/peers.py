"""The rivals: Coupled Mamba as one would write it in PyTorch, padded batches and a loop over time.

Written from the papers' equations, to be read beside them. The maps are `nn.Linear` and `nn.Conv1d`, one call a
modality, and the scans go through time in Python. Each scan comes in two forms: the one of Mamba's released code, and
a leaner one that is the stronger rival. The released model can also be run in the order and the layout of its authors'
code, which is slower still. Symbols as in service/models/coupled_mamba.py; batches are [b, l, ...].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.models.coupled_mamba import CoupledMamba
from service.models.coupled_mamba_config import CoupledMambaConfig

Scan = Callable[..., Tensor]

OTHERS = {"audio": ("vision", "text"), "vision": ("audio", "text"), "text": ("audio", "vision")}


def selective_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """h <- exp(dt A) h + dt B x, y = C . h + D x. x, dt [b, l, d], A [d, n], B, C [b, l, n], D [d] -> y [b, l, d].

    The decays and inputs of all steps are laid out before the loop as [b, d, l, n], as the reference scan of Mamba's
    released code does.
    """
    return _channels_first_scan(x.mT, dt.mT, A, B.mT, C.mT, D).mT


def _channels_first_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """x, dt [b, d, l], B, C [b, n, l] -> y [b, d, l]."""
    decay = torch.exp(torch.einsum("bdl,dn->bdln", dt, A))
    drive = torch.einsum("bdl,bnl,bdl->bdln", dt, B, x)
    h = torch.zeros_like(drive[:, :, 0])
    outputs = []
    for t in range(x.shape[2]):
        h = decay[:, :, t] * h + drive[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", h, C[:, :, t]))
    return torch.stack(outputs, 2) + D[:, None] * x


def selective_scan_lean(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """`selective_scan` with each step's decays computed in its turn, so that they stay in the cache."""
    h = x.new_zeros(x.shape[0], *A.shape)
    dtx = dt * x
    outputs = []
    for t in range(x.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + dtx[:, t, :, None] * B[:, t, None]
        outputs.append(torch.einsum("bdn,bn->bd", h, C[:, t]))
    return torch.stack(outputs, 1) + D * x


def coupled_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, G: Tensor) -> Tensor:
    """h[m] <- exp(dt[m] A[m]) sum_i G[m, i] h[i] + dt[m] B[m] x[m], y[m] = C[m] . h[m] + D[m] x[m]; M chains.

    x, dt [m, b, l, d], A [m, d, n], B, C [m, b, l, n], D [m, d], G [m, m] -> y [m, b, l, d]; laid out as above.
    """
    x, dt, B, C = (tensor.transpose(2, 3) for tensor in (x, dt, B, C))
    decay = torch.exp(torch.einsum("mbdl,mdn->mbdln", dt, A))
    drive = torch.einsum("mbdl,mbnl,mbdl->mbdln", dt, B, x)
    h = torch.zeros_like(drive[:, :, :, 0])
    outputs = []
    for t in range(x.shape[3]):
        h = decay[:, :, :, t] * torch.einsum("ij,jbdn->ibdn", G, h) + drive[:, :, :, t]
        outputs.append(torch.einsum("mbdn,mbn->mbd", h, C[:, :, :, t]))
    return (torch.stack(outputs, 3) + D[:, None, :, None] * x).transpose(2, 3)


def coupled_scan_lean(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, G: Tensor) -> Tensor:
    """`coupled_scan` with each step's decays computed in its turn."""
    h = x.new_zeros(*x.shape[:2], *A.shape[1:])
    dtx = dt * x
    outputs = []
    for t in range(x.shape[2]):
        decay = torch.exp(dt[:, :, t, :, None] * A[:, None])
        h = decay * torch.einsum("ij,jbdn->ibdn", G, h) + dtx[:, :, t, :, None] * B[:, :, t, None]
        outputs.append(torch.einsum("mbdn,mbn->mbd", h, C[:, :, t]))
    return torch.stack(outputs, 2) + D[:, None, None] * x


class Mixer(nn.Module):
    """A Mamba block: what goes into its scan, the scan of one chain, what becomes of it."""

    def __init__(self, c: CoupledMambaConfig) -> None:
        super().__init__()
        self.sizes = [c.dt_rank, c.d_state, c.d_state]
        self.in_proj = nn.Linear(c.d_model, 2 * c.d_inner, bias=False)
        self.conv1d = nn.Conv1d(c.d_inner, c.d_inner, c.d_conv, groups=c.d_inner, padding=c.d_conv - 1)
        self.x_proj = nn.Linear(c.d_inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(c.dt_rank, c.d_inner)
        self.A_log = nn.Parameter(torch.arange(1.0, c.d_state + 1).log().repeat(c.d_inner, 1))
        self.D = nn.Parameter(torch.ones(c.d_inner))
        self.out_proj = nn.Linear(c.d_inner, c.d_model, bias=False)
        dt = torch.logspace(-3, -1, c.d_inner)  # as Mamba initialises it
        self.dt_proj.bias.data.copy_(dt + torch.log(-torch.expm1(-dt)))

    def before(self, e: Tensor) -> tuple[Tensor, ...]:
        """[b, l, d_model] -> x, dt, A, B, C, D of the scan, and the gate z."""
        u, z = self.in_proj(e).chunk(2, dim=-1)
        x = F.silu(self.conv1d(u.transpose(1, 2))[..., : e.shape[1]].transpose(1, 2))
        rank, B, C = self.x_proj(x).split(self.sizes, dim=-1)
        return x, F.softplus(self.dt_proj(rank)), -torch.exp(self.A_log), B, C, self.D, z

    def after(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate and project back."""
        return self.out_proj(y * F.silu(z))


def channels_first(mixer: Mixer, e: Tensor) -> Tensor:
    """A mixer as the authors' code runs it where its CUDA kernels do not: channels before steps, [b, d, l].

    [b, l, d_model] -> the same. That layout is what the scan's einsums and the slices of its loop cost: one clip takes
    half as long again as through `before`, `selective_scan` and `after`, to the same answer.
    """
    b, steps = e.shape[:2]

    def by_clip(rows: Tensor) -> Tensor:  # [c, b * l] -> [b, c, l]
        return rows.unflatten(1, (b, steps)).transpose(0, 1)

    u, z = by_clip(mixer.in_proj.weight @ e.flatten(0, 1).T).chunk(2, dim=1)
    x = F.silu(mixer.conv1d(u)[..., :steps])
    rank, B, C = mixer.x_proj(x.mT.flatten(0, 1)).split(mixer.sizes, dim=-1)
    dt = F.softplus(by_clip(mixer.dt_proj.weight @ rank.T) + mixer.dt_proj.bias[:, None])
    B, C = (by_clip(rows.T).contiguous() for rows in (B, C))
    y = _channels_first_scan(x, dt, -torch.exp(mixer.A_log), B, C, mixer.D) * F.silu(z)
    return mixer.out_proj(y.mT)


class Released(nn.Module):
    """The authors' released model, weights shared by the modalities, under the names of its checkpoints.

    scan: of each mixer, steps before channels; None: `channels_first`, as the authors' code goes

    e = mlp(features); o = norm_f(mixer(norm(e))) + e; between layers e = o + dense([o of the others]); maximum over
    time; mean weighted by modality; Linear, ReLU, Linear.
    """

    def __init__(self, c: CoupledMambaConfig, scan: Scan | None = None) -> None:
        super().__init__()
        self.scan = scan
        widths = {"audio": c.modalities["audio"], "vision": c.modalities["video"], "text": c.modalities["text"]}
        self.layers = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(c.d_model), "mixer": Mixer(c)}) for _ in range(c.n_layers)
        )
        for name, width in widths.items():
            mlp = (
                nn.Linear(width, c.d_input),
                nn.LayerNorm(c.d_input),
                nn.ReLU(),
                nn.Linear(c.d_input, c.d_model),
                nn.LayerNorm(c.d_model),
            )
            self.add_module(f"{name}_linear", nn.ModuleDict({"fc": nn.Sequential(*mlp)}))
            self.add_module(f"resnet_{name}", nn.ModuleDict({"dense": nn.Linear(2 * c.d_model, c.d_model)}))
        self.norm_f = nn.LayerNorm(c.d_model)
        self.weight_audio_inner = nn.Parameter(torch.tensor([1.0]))
        self.weight_visual_inner = nn.Parameter(torch.tensor([0.8]))
        self.weight_text_inner = nn.Parameter(torch.tensor([1.2]))
        self.regression = nn.ModuleDict(
            {"dense": nn.Linear(c.d_model, c.d_head), "out_proj": nn.Linear(c.d_head, sum(c.outputs.values()))}
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """{text, audio, video: [b, l, dim]} -> [b, outputs]."""
        features = {"audio": inputs["audio"], "vision": inputs["video"], "text": inputs["text"]}
        e = {name: self.get_submodule(f"{name}_linear")["fc"](values) for name, values in features.items()}
        for index, layer in enumerate(self.layers):
            o = {name: self.norm_f(self._mix(layer, e[name])) + e[name] for name in e}
            if index + 1 < len(self.layers):
                e = {
                    name: o[name] + self.get_submodule(f"resnet_{name}")["dense"](torch.cat([o[i] for i in others], -1))
                    for name, others in OTHERS.items()
                }
        weights = {
            "audio": self.weight_audio_inner,
            "vision": self.weight_visual_inner,
            "text": self.weight_text_inner,
        }
        pooled = sum(weights[name] * o[name].amax(1) for name in o) / sum(weights.values())
        return self.regression["out_proj"](F.relu(self.regression["dense"](pooled)))

    def _mix(self, layer: nn.ModuleDict, e: Tensor) -> Tensor:
        if self.scan is None:
            return channels_first(layer["mixer"], layer["norm"](e))
        *scanned, z = layer["mixer"].before(layer["norm"](e))
        return layer["mixer"].after(self.scan(*scanned), z)


class Coupled(nn.Module):
    """Coupled Mamba of coupling `mean` with its M chains kept apart; every modality is present throughout."""

    def __init__(self, c: CoupledMambaConfig, scan: Scan = coupled_scan) -> None:
        super().__init__()
        self.scan = scan
        m = len(c.modalities)
        self.names = list(c.modalities)
        self.register_buffer("G", torch.full((m, m), 1.0 / m))
        self.inputs = nn.ModuleList(nn.Linear(width, c.d_model) for width in c.modalities.values())
        self.norms = nn.ModuleList(nn.ModuleList(nn.LayerNorm(c.d_model) for _ in range(m)) for _ in range(c.n_layers))
        self.mixers = nn.ModuleList(nn.ModuleList(Mixer(c) for _ in range(m)) for _ in range(c.n_layers))
        self.last_norms = nn.ModuleList(nn.LayerNorm(c.d_model) for _ in range(m))
        self.weights = nn.Parameter(torch.zeros(m))
        self.dense = nn.Linear(2 * c.d_model, c.d_head)
        self.out_proj = nn.Linear(c.d_head, sum(c.outputs.values()))

    @classmethod
    @torch.no_grad()
    def of(cls, ours: CoupledMamba, scan: Scan = coupled_scan) -> Coupled:
        """The same model with the weights of ours, whose input constants must be the initial ones."""
        peer, theirs = cls(ours.config, scan), ours.state_dict()
        for m, name in enumerate(peer.names):
            _copy(peer.inputs[m], theirs, f"inputs.{name}.project", None)
            _copy(peer.last_norms[m], theirs, "norm_f", m)
            for layer, (norms, mixers) in enumerate(zip(peer.norms, peer.mixers, strict=True)):
                at, mixer = f"layers.{layer}", mixers[m]
                _copy(norms[m], theirs, f"{at}.norm", m)
                for linear in ("in_proj", "x_proj", "dt_proj", "out_proj"):
                    _copy(mixer.get_submodule(linear), theirs, f"{at}.{linear}", m)
                mixer.conv1d.weight.copy_(theirs[f"{at}.conv_weight"][m].T[:, None])
                mixer.conv1d.bias.copy_(theirs[f"{at}.conv_bias"][m])
                mixer.A_log.copy_(theirs[f"{at}.A_log"][m].T)
                mixer.D.copy_(theirs[f"{at}.D"][m])
        _copy(peer.dense, theirs, "head.dense", None)
        _copy(peer.out_proj, theirs, "head.out_proj", None)
        peer.weights.copy_(theirs["head.weights"])
        return peer

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """{modality: [b, l, dim]} -> [b, outputs]."""
        e = [project(inputs[name]) for name, project in zip(self.names, self.inputs, strict=True)]
        for norms, mixers in zip(self.norms, self.mixers, strict=True):
            parts = [mixer.before(norm(row)) for mixer, norm, row in zip(mixers, norms, e, strict=True)]
            *scanned, z = (torch.stack(column) for column in zip(*parts, strict=True))
            y = self.scan(*scanned, self.G)
            e = [row + mixer.after(y[m], z[m]) for m, (mixer, row) in enumerate(zip(mixers, e, strict=True))]
        e = [norm(row) for norm, row in zip(self.last_norms, e, strict=True)]
        pooled = torch.stack([torch.cat([row.amax(1), row.mean(1)], -1) for row in e])  # [m, b, 2 d_model]
        pooled = torch.einsum("m,mbd->bd", self.weights.softmax(0), pooled)
        return self.out_proj(F.relu(self.dense(pooled)))


class MambaStep:
    """A token of transformers' MambaForCausalLM from its weights, in their dtype, on matrices; states in fp32."""

    def __init__(self, model: Any, sequences: int) -> None:
        self.model = model
        mixers = [layer.mixer for layer in model.backbone.layers]
        self.rates = [-torch.exp(mixer.A_log.float()) for mixer in mixers]
        self.windows = [
            torch.zeros(sequences, mixer.intermediate_size, mixer.conv_kernel_size, dtype=mixer.D.dtype)
            for mixer in mixers
        ]
        self.states = [torch.zeros(sequences, *rates.shape) for rates in self.rates]

    @torch.inference_mode()
    def __call__(self, tokens: Tensor) -> Tensor:
        """[b] -> logits [b, ids]; mutates the states."""
        e = self.model.backbone.embeddings.weight[tokens]
        for index, layer in enumerate(self.model.backbone.layers):
            mixer, window, h = layer.mixer, self.windows[index], self.states[index]
            u, z = mixer.in_proj(layer.norm(e)).chunk(2, -1)
            window.copy_(window.roll(-1, 2))
            window[:, :, -1] = u
            x = F.silu((window * mixer.conv1d.weight[:, 0]).sum(2) + mixer.conv1d.bias)
            sizes = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]
            rank, B, C = mixer.x_proj(x).split(sizes, -1)
            dt = F.softplus(mixer.dt_proj(rank)).float()
            h.mul_(torch.exp(dt[:, :, None] * self.rates[index])).add_((dt * x)[:, :, None] * B.float()[:, None])
            y = torch.bmm(h, C.float()[:, :, None])[:, :, 0] + mixer.D * x
            e = e + mixer.out_proj((y * F.silu(z)).to(e.dtype))
        return self.model.lm_head(self.model.backbone.norm_f(e)).float()


def _copy(module: nn.Module, theirs: Mapping[str, Tensor], prefix: str, row: int | None) -> None:
    for name, parameter in module.named_parameters():
        tensor = theirs[f"{prefix}.{name}"]
        parameter.copy_(tensor if row is None else tensor[row])
