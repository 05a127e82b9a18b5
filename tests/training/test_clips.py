import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from service.features.types import Steps
from training.affect.clips import LabelledClip, read_clips, write_clips


def a_folder(folder: Path, **changes: object) -> Path:
    np.save(folder / "a.npy", np.ones((3, 5), np.float32))
    np.savez(folder / "b.npz", clip=np.zeros((4, 2)), times=np.arange(4) / 10)
    save_file({"clip": np.full((2, 7), 0.5, np.float16)}, folder / "c.safetensors")
    entry = {
        "id": "clip",
        "group": "video",
        "features": {"text": "c.safetensors#clip", "audio": "a.npy", "video": "b.npz#clip"},
        "times": {"video": "b.npz#times"},
        "sentiment": -1.5,
        "label": "negative",
    } | changes
    (folder / "manifest.jsonl").write_text(json.dumps(entry) + "\n\n", "utf-8")
    return folder


def test_every_kind_of_file_is_read(tmp_path: Path) -> None:
    (clip,) = read_clips(a_folder(tmp_path))
    assert {name: steps.values.shape for name, steps in clip.features.items()} == {
        "text": (2, 7),
        "audio": (3, 5),
        "video": (4, 2),
    }
    assert all(steps.values.dtype == np.float32 for steps in clip.features.values())
    assert clip.features["audio"].times is None
    np.testing.assert_allclose(clip.features["video"].times, [0, 0.1, 0.2, 0.3])
    assert (clip.group, clip.sentiment, clip.label, clip.emotion) == ("video", -1.5, "negative", None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": {}}, "at least one modality"),
        ({"features": {"audio": "missing.npy"}, "times": {}}, "no such file"),
        ({"features": {"audio": "../a.npy"}, "times": {}}, "no such file"),
        ({"features": {"audio": "b.npz#other"}, "times": {}}, "no array 'other'"),
        ({"features": {"audio": "b.npz#times"}, "times": {}}, "expected \\[steps, dim\\]"),
        ({"times": {"audio": "b.npz#times"}}, "4,\\) times for 3 steps"),
        ({"features": {"audio": "a.npy"}}, "times of \\['video'\\]"),
        ({"mood": "good"}, "unknown entries \\['mood'\\]"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"manifest.jsonl:1: .*{message}"):
        list(read_clips(a_folder(tmp_path, **changes)))


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    np.save(folder / "a.npy", np.full((3, 5), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"a\.npy: not all finite"):
        list(read_clips(folder))


def test_written_clips_are_read_back(tmp_path: Path) -> None:
    values = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    clips = [
        LabelledClip("x", "g", "corpus", {"audio": Steps(values, np.arange(4.0))}, 1.0, "positive", "happy"),
        LabelledClip("y", "g", "corpus", {"text": Steps(values)}, split="dev"),
    ]
    write_clips(tmp_path, clips)
    first, second = read_clips(tmp_path)
    np.testing.assert_array_equal(first.features["audio"].values, values)
    np.testing.assert_array_equal(first.features["audio"].times, np.arange(4.0))
    np.testing.assert_allclose(second.features["text"].values, values, atol=1e-3)  # kept as float16
    assert (first.sentiment, first.label, first.emotion) == (1.0, "positive", "happy")
    assert (second.sentiment, second.split) == (None, "dev")
