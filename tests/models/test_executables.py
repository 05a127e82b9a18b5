from __future__ import annotations

import pytest
import torch

from service.kernels import backends
from service.models.coupled_mamba_cpu import CoupledMambaProgram
from service.models.executables import make_executable
from service.models.mixture_of_mamba_cpu import MixtureOfMambaProgram
from tests.checkpoints import model_config, random_model
from tests.generative import generative_model


def test_the_reference_is_the_module_itself() -> None:
    model = generative_model()
    assert make_executable(model, "reference") is model


def test_cpu_is_a_program_of_the_dtype_asked_for() -> None:
    mixture = make_executable(generative_model(), "cpu", torch.bfloat16, threads=1)
    assert isinstance(mixture, MixtureOfMambaProgram)
    assert (mixture.dtype, mixture.threads) == (torch.bfloat16, 1)
    coupled = make_executable(random_model(model_config()), "cpu")
    assert isinstance(coupled, CoupledMambaProgram)
    assert coupled.dtype == torch.float32


def test_bf16_weights_take_half_the_bytes() -> None:
    model = generative_model(d_model=64, d_inner=128)
    whole, half = (make_executable(model, "cpu", dtype) for dtype in (torch.float32, torch.bfloat16))
    assert isinstance(whole, MixtureOfMambaProgram)
    assert isinstance(half, MixtureOfMambaProgram)
    assert half.weight_bytes < 0.65 * whole.weight_bytes


@pytest.mark.parametrize(
    ("backend", "dtype", "message"),
    [
        ("cuda", torch.float32, "one of reference, cpu, triton, got 'cuda'"),
        ("reference", torch.bfloat16, "backend reference does not compute with weights of torch.bfloat16"),
        ("cpu", torch.float16, "backend cpu does not compute with weights of torch.float16"),
    ],
)
def test_what_is_not_there_is_an_error(backend: str, dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_executable(generative_model(), backend, dtype)


def test_an_extension_that_does_not_load_is_an_error_and_no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "missing", lambda backend: "it is broken" if backend == "cpu" else None)
    with pytest.raises(ValueError, match="backend cpu: it is broken"):
        make_executable(generative_model(), "cpu")
    assert backends.default_backend() == "triton"  # which is not missing here
    monkeypatch.setattr(backends, "missing", lambda backend: None if backend == "reference" else "it is not here")
    assert backends.default_backend() == "reference"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: what is said without one cannot be seen")
def test_without_a_gpu_triton_is_an_error_that_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"backend triton: (PyTorch .* finds no NVIDIA GPU|Triton is not installed)"):
        make_executable(generative_model(), "triton")


@pytest.mark.parametrize(
    ("available", "capability", "message"), [(False, (9, 0), "no NVIDIA GPU"), (True, (7, 5), "capability (7, 5)")]
)
def test_a_gpu_that_is_absent_or_too_old_is_said(
    monkeypatch: pytest.MonkeyPatch, available: bool, capability: tuple[int, int], message: str
) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert message in str(backends.missing.__wrapped__("triton"))
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    assert backends.missing.__wrapped__("triton") == "Triton is not installed; the extra `gpu` has it"
