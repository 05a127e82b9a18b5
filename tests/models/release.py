"""The released Coupled Mamba, written once more from golden/README.md in plain torch, one clip at a time, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = ("audio", "vision", "text")  # in the order of the branches
PREFIXES = {"shared": ("linear", "regression"), "branched": ("projection", "regression_head")}


def golden_weights() -> dict[str, Tensor]:
    return load_file(GOLDEN / "coupled_release_shared_weights.safetensors")


def golden_io() -> dict[str, Tensor]:
    """audio, vision, text [4, 50, dim] and y [4, 1]."""
    return load_file(GOLDEN / "coupled_release_shared_io.safetensors")


def branched_weights(shared: Mapping[str, Tensor], *, jitter: float = 0.0) -> dict[str, Tensor]:
    """The shared layout's tensors under the names of the branched one, a copy a branch, each `jitter` off."""
    g = torch.Generator().manual_seed(11)
    branched = {}
    for name, tensor in shared.items():
        if name.startswith("layers."):
            for branch in range(3):
                copy = tensor + jitter * torch.randn(tensor.shape, generator=g) * tensor.std()
                branched[name.replace("layers.", f"mamba_branches.{branch}.")] = copy
        elif not name.endswith("_inner"):
            branched[name.replace("_linear.", "_projection.").replace("regression.", "regression_head.")] = tensor
    return branched


def released(w: Mapping[str, Tensor], clip: Mapping[str, Tensor], layout: str) -> Tensor:
    """audio, vision, text [t, dim] -> y [1]."""
    projection, head = PREFIXES[layout]
    e = {name: _project(w, f"{name}_{projection}.fc", clip[name]) for name in NAMES}
    layers = sum(name.endswith(".mixer.D") for name in w) // (3 if layout == "branched" else 1)
    o = {}
    for i in range(layers):
        for branch, name in enumerate(NAMES):
            at = f"mamba_branches.{branch}.{i}" if layout == "branched" else f"layers.{i}"
            o[name] = _norm(w, "norm_f", _mixer(w, f"{at}.mixer", _norm(w, f"{at}.norm", e[name]))) + e[name]
        if i + 1 < layers:
            e = {
                "text": o["text"] + _linear(w, "resnet_text.dense", torch.cat([o["audio"], o["vision"]], -1)),
                "audio": o["audio"] + _linear(w, "resnet_audio.dense", torch.cat([o["vision"], o["text"]], -1)),
                "vision": o["vision"] + _linear(w, "resnet_vision.dense", torch.cat([o["audio"], o["text"]], -1)),
            }
    weighed = ("audio", "visual", "text")
    if layout == "branched":
        weights = torch.softmax(torch.cat([w[f"weight_{name}"] for name in weighed]), 0)
    else:
        inner = torch.cat([w[f"weight_{name}_inner"] for name in weighed])
        weights = inner / inner.sum()
    pooled = sum(weights[i] * o[name].amax(0) for i, name in enumerate(NAMES))
    return _linear(w, f"{head}.out_proj", F.relu(_linear(w, f"{head}.dense", pooled)))


def _linear(w: Mapping[str, Tensor], at: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{at}.weight"], w.get(f"{at}.bias"))


def _norm(w: Mapping[str, Tensor], at: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{at}.weight"], w[f"{at}.bias"])


def _project(w: Mapping[str, Tensor], at: str, x: Tensor) -> Tensor:
    hidden = F.relu(_norm(w, f"{at}.1", _linear(w, f"{at}.0", x)))
    return _norm(w, f"{at}.4", _linear(w, f"{at}.3", hidden))


def _mixer(w: Mapping[str, Tensor], at: str, e: Tensor) -> Tensor:
    """Mamba's block: e [t, d_model] -> [t, d_model]."""
    u, z = _linear(w, f"{at}.in_proj", e).chunk(2, dim=-1)
    kernel = w[f"{at}.conv1d.weight"]
    padded = F.pad(u.T[None], (kernel.shape[2] - 1, 0))
    x = F.silu(F.conv1d(padded, kernel, w[f"{at}.conv1d.bias"], groups=kernel.shape[0]))[0].T
    A = -torch.exp(w[f"{at}.A_log"])
    n = A.shape[1]
    rank, B, C = _linear(w, f"{at}.x_proj", x).split([w[f"{at}.dt_proj.weight"].shape[1], n, n], dim=-1)
    dt = F.softplus(_linear(w, f"{at}.dt_proj", rank))
    h, ys = torch.zeros_like(A), []
    for t in range(len(x)):
        h = torch.exp(dt[t, :, None] * A) * h + (dt[t] * x[t])[:, None] * B[t]
        ys.append(h @ C[t] + w[f"{at}.D"] * x[t])
    return _linear(w, f"{at}.out_proj", torch.stack(ys) * F.silu(z))
