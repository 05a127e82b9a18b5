from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.models.base import Chunk, State, StateTensor
from service.models.coupled_mamba import CoupledMamba
from tests.checkpoints import model_config, random_model
from tests.models.clips import Clips, clips, cuts, forward_clips, make_clips, run_clips

RECURRENT = ("mean", "learned", "sum", "none")
COUPLINGS = (*RECURRENT, "layers")
DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]
fewer = settings(max_examples=20)


@cache
def model_of(coupling: str, dtype: torch.dtype = torch.float64) -> CoupledMamba:
    return random_model(model_config(coupling)).to(dtype)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=["float64", "float32"])
@fewer
@given(data=st.data(), at=cuts)
def test_any_chunking_equals_the_whole_forward_pass(
    coupling: str,
    dtype: torch.dtype,
    tolerance: float,
    data: st.DataObject,
    at: list[int],
) -> None:
    batch = data.draw(clips(dense=coupling == "layers"))
    model = model_of(coupling, dtype)
    whole = forward_clips(model, batch)
    assert whole.isfinite().all()
    torch.testing.assert_close(run_clips(model, batch, at), whole, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("coupling", COUPLINGS)
@fewer
@given(data=st.data())
def test_packed_is_alone(coupling: str, data: st.DataObject) -> None:
    batch = data.draw(clips(dense=coupling == "layers"))
    packed = run_clips(model_of(coupling), batch)
    alone = torch.cat([run_clips(model_of(coupling), clip) for clip in batch.alone()])
    torch.testing.assert_close(packed, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("coupling", COUPLINGS)
@fewer
@given(data=st.data(), at=cuts)
def test_a_read_is_the_last_read_of_the_prefix(coupling: str, data: st.DataObject, at: list[int]) -> None:
    (clip, *_) = data.draw(clips(dense=coupling == "layers")).alone()
    reads = run_clips(model_of(coupling), clip, at, read_all=True)
    for end in range(1, clip.lengths[0] + 1):
        prefix = clip.rows(torch.arange(end))
        if prefix.present.any():
            expected = forward_clips(model_of(coupling), prefix)[0]
            torch.testing.assert_close(reads[end - 1], expected, rtol=1e-12, atol=1e-12)
        else:
            assert reads[end - 1].isnan().all()  # nothing has been heard yet


@pytest.mark.parametrize("coupling", COUPLINGS)
@fewer
@given(data=st.data())
def test_a_step_by_itself_is_read_as_if_pooling_began_with_it(coupling: str, data: st.DataObject) -> None:
    batch = data.draw(clips(dense=coupling == "layers"))
    model, renewed = model_of(coupling), _Renewed(model_of(coupling))
    every_step = run_clips(renewed, batch, range(1, max(batch.lengths)), read_all=True)
    outputs = run_clips(model, batch, read_all=True, alone=True)
    torch.testing.assert_close(outputs[:, 12:], every_step, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert torch.equal(outputs[:, :12].nan_to_num(), run_clips(model, batch, read_all=True).nan_to_num())


class _Renewed(torch.nn.Module):
    """The model, but pooling begins anew with every chunk."""

    def __init__(self, model: CoupledMamba) -> None:
        super().__init__()
        self.model = model

    def state_tensors(self) -> dict[str, StateTensor]:
        return self.model.state_tensors()

    def run(self, chunk: Chunk, state: State) -> Tensor:
        for name, tensor in self.state_tensors().items():
            if name.startswith("pool_"):
                state[name][chunk.slots] = torch.full(tensor.shape, tensor.initial).to(state[name].dtype)
        return self.model.run(chunk, state)


@pytest.mark.parametrize("coupling", RECURRENT)
def test_steps_without_any_input_change_nothing(coupling: str) -> None:
    present = torch.zeros(3, 8, dtype=torch.bool)
    present[0, [0, 2, 3, 6]] = True  # text alone; its convolution window reaches over the gaps
    batch = make_clips([8], present, seed=4)
    expected = forward_clips(model_of(coupling), batch.rows(torch.tensor([0, 2, 3, 6])))
    torch.testing.assert_close(run_clips(model_of(coupling), batch, [1, 4, 5]), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(forward_clips(model_of(coupling), batch), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("coupling", RECURRENT)
def test_an_absent_modality_is_as_if_the_model_had_never_had_it(coupling: str) -> None:
    present = torch.ones(3, 6, dtype=torch.bool)
    present[1] = False  # audio
    batch = make_clips([6], present, seed=5)
    model = model_of(coupling)
    config = dataclasses.replace(model.config, modalities={"text": 6, "video": 4})
    smaller = CoupledMamba(config).double().eval()
    kept = torch.tensor([0, 2])
    for name, target in smaller.state_dict().items():
        source = model.state_dict()[name]
        if name == "coupling_logits":
            source = source[:, kept][:, :, kept]
        elif name.startswith(("layers.", "norm_f.")) or name == "head.weights":
            source = source[kept]
        target.copy_(source)
    rest = {name: rows for name, rows in batch.inputs.items() if name != "audio"}
    expected = forward_clips(smaller, Clips(rest, present[kept], [6]))
    torch.testing.assert_close(run_clips(model, batch), expected, rtol=1e-12, atol=1e-12)


def test_couplings_differ_where_modalities_share_a_past() -> None:
    batch = make_clips([8], torch.ones(3, 8, dtype=torch.bool), seed=6)
    weights = model_of("none").state_dict()
    answers = {}
    for coupling in RECURRENT:
        model = random_model(model_config(coupling)).double()
        model.load_state_dict(weights | {k: v for k, v in model.state_dict().items() if k == "coupling_logits"})
        answers[coupling] = float(run_clips(model, batch)[0, 0])
    assert len({round(answer, 3) for answer in answers.values()}) == len(RECURRENT), answers


@pytest.mark.parametrize("coupling", RECURRENT)
def test_training_on_clips_with_absent_rows_has_finite_gradients(coupling: str) -> None:
    present = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 0], [0, 1, 1, 0]], dtype=torch.bool)
    batch = make_clips([4], present, seed=8)  # absent rows are NaN
    model = random_model(model_config(coupling)).double().requires_grad_(True)
    forward_clips(model, batch).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_inputs_are_normalised_by_the_checkpoints_constants() -> None:
    model = random_model(model_config()).double()
    batch = make_clips([5], torch.ones(3, 5, dtype=torch.bool), seed=7)
    expected = forward_clips(model, batch)
    normalised = {}
    for name, module in model.inputs.items():
        normalised[name] = (batch.inputs[name] - module.mean) * module.scale
        module.mean.zero_()
        module.scale.fill_(1.0)
    torch.testing.assert_close(forward_clips(model, Clips(normalised, batch.present, [5])), expected)


def test_split_names_the_columns() -> None:
    model = random_model(model_config())
    outputs = torch.arange(24.0).view(2, 12)
    named = model.split(outputs)
    assert torch.equal(named["sentiment"], outputs[:, 0])
    assert torch.equal(named["label"], outputs[:, 1:4])
    assert torch.equal(named["emotion"], outputs[:, 4:])
