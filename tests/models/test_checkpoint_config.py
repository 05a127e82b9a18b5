from __future__ import annotations

import json
from typing import Any

import pytest

from service.models.checkpoint import Calibration, CheckpointConfig
from tests.checkpoints import checkpoint_config, model_config
from tests.models.files import MISSING, changed

ENTRY: dict[str, Any] = json.loads(json.dumps(checkpoint_config(model_config("learned")).to_json()))


def test_what_is_written_is_what_is_read() -> None:
    config = CheckpointConfig.from_json(ENTRY)
    assert config == checkpoint_config(model_config("learned"))
    assert json.loads(json.dumps(config.to_json())) == ENTRY


def test_the_least_config_has_documented_defaults() -> None:
    model = {"modalities": {"text": 4}, "d_model": 40, "n_layers": 1, "d_state": 2}
    config = CheckpointConfig.from_json({"name": "x", "architecture": "coupled-mamba", "model": model, "features": {}})
    assert (config.version, config.scale, config.calibration) == ("1", (-3.0, 3.0), Calibration())
    assert (config.model.dt_rank, config.model.d_inner, config.model.coupling) == (3, 80, "mean")  # ceil(40 / 16)
    assert dict(config.model.outputs) == {"sentiment": 1}


def test_an_interval_is_found_under_any_order_of_its_modalities() -> None:
    config = CheckpointConfig.from_json(
        changed(ENTRY, "calibration.intervals", {"video+audio": {"low": -1, "high": 2}})
    )
    assert config.calibration.intervals == {"audio+video": (-1.0, 2.0)}


WRONG: list[tuple[str, Any, str]] = [
    ("extra", 1, r"unknown entries \['extra'\]"),
    ("name", MISSING, r"missing entries \['name'\]"),
    ("name", 5, "name: "),
    ("format", 2, "format: "),
    ("architecture", "gru", "architecture: "),
    ("model", 3, "model: "),
    ("model.d_modle", 3, r"model: unknown entries \['d_modle'\]"),
    ("model.d_model", MISSING, "model: .*d_model"),
    ("model.d_model", "12", "model.d_model: "),
    ("model.d_model", True, "model.d_model: "),
    ("model.n_layers", 0, "model.n_layers: "),
    ("model.d_conv", 1, "model.d_conv: "),
    ("model.dt_rank", -1, "model.dt_rank: "),
    ("model.expand", 2.0, "model.expand: "),
    ("model.modalities", ["text"], "model.modalities: "),
    ("model.modalities", {}, "model.modalities: "),
    ("model.modalities", {f"m{i}": 1 for i in range(9)}, "model.modalities: "),
    ("model.modalities.audio", 0, "model.modalities.audio: "),
    ("model.outputs", [1], "model.outputs: "),
    ("model.outputs", {"label": 3}, "model.outputs: needs sentiment"),
    ("model.outputs.sentiment", 2, "model.outputs: .*width 1"),
    ("model.coupling", "max", "model.coupling: "),
    ("model.input", None, "model.input: "),
    ("model.input", "mlp", "model.d_input: "),  # needs a width
    ("model.modality_weights", "sum", "model.modality_weights: "),
    ("model.pool", "max", "model.pool: "),
    ("model.pool", [], "model.pool: "),
    ("model.pool", ["max", "max"], "model.pool: "),
    ("members", 0, "members: an integer from 1 to 16, got 0"),
    ("members", 17, "members: "),
    ("members", True, "members: "),
    ("members", "3", "members: "),
    ("hears", "text", "hears: a list of the modalities of each of the 1 members"),
    ("hears", [["text", "audio", "video"]] * 2, "hears: a list of the modalities of each of the 1 members"),
    ("hears", [[]], "hears: some of "),
    ("hears", ["text"], "hears: some of "),
    ("hears", [3], "hears: some of "),
    ("hears", [["smell"]], "hears: some of "),
    ("hears", [["audio", "text", "video"]], "hears: some of .* in that order"),
    ("hears", [["text", "text"]], "hears: some of "),
    ("hears", [["text", "audio"]], "hears: a single model hears all of "),
    ("hears", None, "hears: a list"),
    ("features", 3, "features: "),
    ("scale", 3, "scale: "),
    ("scale", [1], "scale: "),
    ("scale", [3, -3], "scale: "),
    ("labels", "abc", "labels: "),
    ("labels", ["a", "b"], "labels: .* 3 names, got 2"),
    ("emotions", [], "emotions: .* 8 names, got 0"),
    ("calibration", 3, "calibration: "),
    ("calibration.tempreature", 1, r"calibration: unknown entries \['tempreature'\]"),
    ("calibration.temperature", "x", "calibration.temperature: "),
    ("calibration.temperature", 0, "calibration: .*temperature > 0"),
    ("calibration.coverage", 1.0, "calibration: coverage"),
    ("calibration.abstain_below", 1.5, "calibration: .*abstain_below"),
    ("calibration.intervals", [1], "calibration.intervals: "),
    ("calibration.intervals.text", [-1, 1], "calibration.intervals.text: "),
    ("calibration.intervals.text", {"low": -1}, "calibration.intervals.text.high: "),
    ("calibration.intervals.text", {"low": 1, "high": -1}, "calibration.intervals.text: "),
    ("calibration.intervals.smell", {"low": -1, "high": 1}, "calibration.intervals.smell: "),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG)
def test_a_wrong_entry_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        CheckpointConfig.from_json(changed(ENTRY, path, value))


def test_a_modality_that_no_member_hears_is_named() -> None:
    values = ENTRY | {"members": 2, "hears": [["text"], ["text", "video"]]}
    with pytest.raises(ValueError, match=r"^hears: no member hears audio$"):
        CheckpointConfig.from_json(values)


def test_what_members_hear_is_everything_unless_it_is_said() -> None:
    two = CheckpointConfig.from_json(ENTRY | {"members": 2})
    assert two.members_hear == (("text", "audio", "video"),) * 2
    assert "hears" not in two.to_json()
    parts = CheckpointConfig.from_json(ENTRY | {"members": 2, "hears": [["text", "audio"], ["video"]]})
    assert parts.members_hear == (("text", "audio"), ("video",))
    assert CheckpointConfig.from_json(parts.to_json()) == parts


def test_a_model_without_labels_needs_the_three_of_the_scale() -> None:
    values = changed(ENTRY, "model.outputs", {"sentiment": 1}) | {"labels": ["low", "high"], "emotions": []}
    with pytest.raises(ValueError, match=r"^labels: .* 3 names"):
        CheckpointConfig.from_json(values)
