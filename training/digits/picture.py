"""python -m training.digits.picture OUT: ten digits drawn by the bundled model, side by side, as a PNG."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from service.codecs.prompt import TextPart
from service.settings import BUNDLED
from training.digits.ask import Question, ask, served
from training.digits.language import ONES
from training.digits.measure import sampling

ROWS, SCALE, SEED = 3, 3, 1


def main(out: Path) -> None:
    """Draw each digit ROWS times, at temperature 1 and the checkpoint's guidance."""
    with served(BUNDLED / "digits-trio") as (runtime, model):
        params = sampling(model, 1.0, model.config.generation.guidance_scale, SEED)
        questions = [Question((TextPart(f"draw {word}"),), "image-only", d) for d, word in enumerate(ONES)] * ROWS
        answers = ask(runtime, model, questions, params)
        assert model.codecs.image is not None
        codes = torch.from_numpy(np.stack([answer.images[0] for answer in answers]))
        images = model.codecs.image.decode(codes)[:, 0].unflatten(0, (ROWS, len(ONES)))
    sheet = images.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)  # [rows * 28, digits * 28]
    levels = (sheet * 255).round().to(torch.uint8).numpy()
    Image.fromarray(levels.repeat(SCALE, 0).repeat(SCALE, 1)).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
