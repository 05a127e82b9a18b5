"""The rivals are the models they claim to be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import peers
from service.models.convert import coupled_mamba_from_release
from tests.checkpoints import model_config, random_model

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize("scan", [None, peers.selective_scan, peers.selective_scan_lean])
def test_released_gives_what_the_released_code_gave(scan: peers.Scan | None) -> None:
    weights = load_file(GOLDEN / "coupled_release_shared_weights.safetensors")
    io = load_file(GOLDEN / "coupled_release_shared_io.safetensors")
    rival = peers.Released(coupled_mamba_from_release(weights).config, scan).eval()
    rival.load_state_dict({name: weights[name] for name in rival.state_dict()})
    with torch.inference_mode():
        y = rival({"text": io["text"], "audio": io["audio"], "video": io["vision"]})
    torch.testing.assert_close(y, io["y"], atol=1e-5, rtol=0)


def test_the_authors_order_lays_channels_before_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    scan, seen = peers._channels_first_scan, []

    def watched(*tensors: Tensor) -> Tensor:
        seen.extend(t.stride() for t in (*tensors[:2], *tensors[3:5]))
        return scan(*tensors)

    monkeypatch.setattr(peers, "_channels_first_scan", watched)
    weights = load_file(GOLDEN / "coupled_release_shared_weights.safetensors")
    rival = peers.Released(coupled_mamba_from_release(weights).config).eval()
    mixer = rival.layers[0]["mixer"]
    with torch.inference_mode():
        peers.channels_first(mixer, torch.randn(2, 9, mixer.in_proj.in_features))
    assert all(stride[-1] == 1 for stride in seen)  # the steps of a channel lie next to each other


@pytest.mark.parametrize("scan", [peers.coupled_scan, peers.coupled_scan_lean])
def test_coupled_gives_what_our_model_gives(scan: peers.Scan) -> None:
    ours = random_model(model_config("mean"))
    for constants in ours.inputs.values():
        constants.mean.zero_()
        constants.scale.fill_(1.0)
    inputs = {name: torch.randn(2, 9, width) for name, width in ours.config.modalities.items()}
    packed = {name: values.flatten(0, 1) for name, values in inputs.items()}
    with torch.inference_mode():
        y = ours(packed, torch.ones(3, 18, dtype=torch.bool), torch.tensor([0, 9, 18]))
        theirs = peers.Coupled.of(ours, scan)(inputs)
    torch.testing.assert_close(theirs, torch.cat([part.view(2, -1) for part in y.values()], 1), atol=1e-5, rtol=0)


def _inputs(*lead: int) -> list[Tensor]:
    """x, dt, A, B, C, D in float64: 7 steps of 5 channels with 3 states in 2 sequences."""
    shapes = ((2, 7, 5), (2, 7, 5), (5, 3), (2, 7, 3), (2, 7, 3), (5,))
    x, dt, A, B, C, D = (torch.randn(*lead, *shape, dtype=torch.float64) for shape in shapes)
    return [x, dt.exp(), -A.exp(), B, C, D]


def test_the_lean_forms_are_the_same_scans() -> None:
    plain, chains = _inputs(), _inputs(3)
    G = torch.randn(3, 3, dtype=torch.float64).softmax(1)
    exact = {"atol": 1e-12, "rtol": 0}
    torch.testing.assert_close(peers.selective_scan_lean(*plain), peers.selective_scan(*plain), **exact)
    torch.testing.assert_close(peers.coupled_scan_lean(*chains, G), peers.coupled_scan(*chains, G), **exact)


def test_chains_that_are_not_coupled_are_plain_scans() -> None:
    chains = _inputs(3)
    apart = [peers.selective_scan(*(tensor[m] for tensor in chains)) for m in range(3)]
    coupled = peers.coupled_scan(*chains, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(coupled, torch.stack(apart), atol=1e-12, rtol=0)
