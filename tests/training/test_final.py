from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from service.features.clock import ClockSpec
from service.models.base import Chunk, allocate
from service.models.checkpoint import Calibration, load_checkpoint
from service.models.executables import make_executable
from tests.training.test_study import some_clips
from training.affect.batches import pack
from training.affect.final import final_model, folder_features, write_checkpoint
from training.affect.fit import predict
from training.affect.recipe import for_folder
from training.affect.study import Corpora


def test_what_members_that_hear_parts_were_trained_for_is_what_is_served(tmp_path: Path) -> None:
    clips = some_clips()
    members = (("video", "audio"), ("video",))
    recipe = replace(for_folder(clips, ClockSpec("ticks", 10.0), {}, steps=3, batch=8), members=members)
    assert recipe.hears == [("audio", "video"), ("video",)]  # in the model's order
    model = final_model(recipe, Corpora(clips, []), "mean", tmp_path)
    again = final_model(recipe, Corpora(clips, []), "mean", tmp_path)  # from its file
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    features = folder_features(recipe)
    write_checkpoint(tmp_path / "out", "parts", model, recipe, features, Calibration(), (-3.0, 3.0), {})
    checkpoint = load_checkpoint(tmp_path / "out")
    assert checkpoint.config.hears == (("audio", "video"), ("video",))

    examples = [recipe.vocabulary.example(clip) for clip in clips[:5]]  # of the first, nothing but its sound
    expected = predict(model.each(), recipe.hears, examples, recipe.widths, recipe.join)["sentiment"]
    assert np.isnan(expected[1]).tolist() == [True, False, False, False, True]
    program = make_executable(checkpoint.model, "reference")
    batch = pack(examples, recipe.widths, recipe.join)
    chunk = Chunk(
        inputs=batch.inputs,
        present=batch.present,
        offsets=batch.offsets,
        slots=torch.arange(5),
        fresh=torch.ones(5, dtype=torch.bool),
        reads=batch.offsets[1:] - 1,
    )
    served = program.run(chunk, allocate(program.state_tensors(), 5))[:, 0]
    np.testing.assert_allclose(served, np.nanmean(expected, 0), rtol=1e-4, atol=1e-5)
