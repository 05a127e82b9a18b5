import pytest
import torch
from torch import Tensor

from service.codecs.mel import MelSpec, log_mel, mel_filters, sound, spectrum
from service.codecs.vocoder import SpectrumNetwork, griffin_lim, least_squares_magnitude

SPEC = MelSpec()


def vowel(frames: int = 40, pitch: float = 125.0) -> Tensor:
    """Harmonics that swell and fade. -> [1, frames·hop]"""
    time = torch.arange(frames * SPEC.hop) / SPEC.rate
    tones = sum(torch.sin(2 * torch.pi * pitch * k * time + k) / k for k in range(1, 12))
    return (0.2 * tones * torch.hann_window(len(time)))[None]


def mismatch(pcm: Tensor, magnitude: Tensor) -> float:
    """Spectral convergence: how far a sound's magnitudes are from those wanted, relative to them."""
    return float((spectrum(pcm, SPEC).abs() - magnitude).norm() / magnitude.norm())


def test_a_hop_is_a_frame() -> None:
    assert spectrum(torch.zeros(2, 7 * SPEC.hop), SPEC).shape == (2, SPEC.bins, 7)
    assert log_mel(torch.zeros(2, 7 * SPEC.hop), SPEC).shape == (2, SPEC.n_mels, 7)
    with pytest.raises(ValueError, match="81 samples"):
        spectrum(torch.zeros(1, 81), SPEC)


def test_sound_undoes_spectrum() -> None:
    pcm = torch.randn(3, 11 * SPEC.hop, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sound(spectrum(pcm, SPEC), SPEC), pcm, atol=1e-5, rtol=1e-5)


def test_a_tone_is_loudest_in_the_band_around_it() -> None:
    time = torch.arange(20 * SPEC.hop) / SPEC.rate
    for band in (3, 10, 25):
        weights = mel_filters(SPEC)[band]
        hz = float((weights * torch.arange(SPEC.bins)).sum() / weights.sum()) * SPEC.rate / SPEC.n_fft
        assert int(log_mel(torch.sin(2 * torch.pi * hz * time)[None], SPEC)[0, :, 10].argmax()) == band


def test_no_band_is_empty_and_each_sums_to_one() -> None:
    for bands in (32, 128):
        filters = mel_filters(MelSpec(n_mels=bands))
        torch.testing.assert_close(filters.sum(1), torch.ones(bands))


def test_bands_reach_from_low_to_high() -> None:
    spec = MelSpec(low_hz=300, high_hz=3500)
    hz = torch.nonzero(mel_filters(spec).sum(0)).flatten() * spec.rate / spec.n_fft
    assert 300 <= hz.min() < 300 + 40
    assert 3500 - 40 < hz.max() <= 3500


def test_silence_is_the_floor() -> None:
    mel = log_mel(torch.zeros(1, 3 * SPEC.hop), SPEC)
    assert mel.exp().allclose(torch.full_like(mel, SPEC.floor))


def test_griffin_lim_nears_the_magnitudes() -> None:
    magnitude = spectrum(vowel(), SPEC).abs()
    few, many = (mismatch(griffin_lim(magnitude, SPEC, iterations), magnitude) for iterations in (0, 40))
    assert many < 0.15
    assert many < 0.5 * few


def test_griffin_lim_is_the_same_each_time() -> None:
    magnitude = spectrum(vowel(12), SPEC).abs()
    first = griffin_lim(magnitude, SPEC)
    torch.rand(100)
    assert torch.equal(first, griffin_lim(magnitude, SPEC))


def test_griffin_lim_of_silence_is_silence() -> None:
    assert not griffin_lim(torch.zeros(1, SPEC.bins, 5), SPEC).any()


def test_least_squares_fits_the_bands() -> None:
    wanted = log_mel(vowel(), SPEC)
    magnitude = least_squares_magnitude(wanted, SPEC)
    assert (magnitude >= 0).all()
    fitted = mel_filters(SPEC) @ magnitude
    assert float((fitted - wanted.exp()).norm() / wanted.exp().norm()) < 0.02


def test_the_spectrum_network_starts_from_the_bands() -> None:
    torch.manual_seed(0)
    network = SpectrumNetwork(SPEC, 8)
    torch.nn.init.zeros_(network.last.weight)
    torch.nn.init.zeros_(network.last.bias)
    flat = network(torch.full((1, SPEC.n_mels, 4), -1.0))
    covered = mel_filters(SPEC).sum(0) > 0
    torch.testing.assert_close(flat[0, covered], torch.full((int(covered.sum()), 4), -1.0).exp())


@pytest.mark.parametrize("wrong", [{"floor": 0.0}, {"hop": 300}, {"n_fft": 255}, {"high_hz": 5000.0}, {"n_mels": 0}])
def test_impossible_specs_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"positive|even|bands"):
        MelSpec(**wrong)  # type: ignore[arg-type]
