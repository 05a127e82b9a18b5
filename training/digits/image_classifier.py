"""An independent judge of digit images: a small convolutional classifier that shares nothing with the codec.

For evaluation only; its weights are not shipped. Besides it, what speaks for variety: a classifier trained on
generated images alone, and how near generated images come to those of the training set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from service.models.files import read_tensors, tensor_problems
from training.digits.image_codec import augment

WEIGHTS_FILE = "image_classifier.safetensors"
CLASSES = 10


class ImageClassifier(nn.Module):
    """Grey 28 x 28 images to probabilities of the ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_stage(1, 16),
            nn.MaxPool2d(2),
            *_stage(16, 32),
            *_stage(32, 32),
            nn.MaxPool2d(2),
            *_stage(32, 64),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * 7 * 7, CLASSES),
        )

    def forward(self, images: Tensor) -> Tensor:
        """images [b, 1, 28, 28] float in 0..1 -> logits [b, 10]."""
        logits: Tensor = self.layers(images)
        return logits

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """images [n, 1, 28, 28], uint8 or float in 0..1 -> probabilities [n, 10], in eval mode."""
        self.eval()
        parts = [self(as_floats(part)).softmax(dim=1) for part in images.split(500)]
        return torch.cat(parts) if parts else torch.empty(0, CLASSES)

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Share of images [n, 1, 28, 28] that are taken for their label [n]."""
        return float((self.classify(images).argmax(dim=1) == labels).float().mean())

    def save(self, folder: Path) -> None:
        """Write the weights into `folder`, made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: t.contiguous() for name, t in self.state_dict().items()}, folder / WEIGHTS_FILE)

    @classmethod
    def load(cls, folder: Path) -> ImageClassifier:
        """Read `save`'s folder, in eval mode. Raises ValueError where the weights are absent or do not fit."""
        classifier = cls().eval()
        tensors = read_tensors(folder / WEIGHTS_FILE)
        expected = {name: tuple(t.shape) for name, t in classifier.state_dict().items()}
        if problems := tensor_problems(tensors, expected):
            raise ValueError(f"{folder / WEIGHTS_FILE} does not fit the classifier:\n  " + "\n  ".join(problems))
        classifier.load_state_dict(tensors)
        return classifier


def _stage(wide: int, narrow: int) -> list[nn.Module]:
    return [nn.Conv2d(wide, narrow, 3, padding=1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()]


def as_floats(images: Tensor) -> Tensor:
    """uint8 images as floats in 0..1; floats as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def train_image_classifier(
    images: Tensor, labels: Tensor, work: Path, *, seed: int, log: Callable[[str], None], steps: int = 3_000
) -> ImageClassifier:
    """The classifier in `work`, or a new one trained on images [n, 1, 28, 28] and labels [n] and saved there."""
    if (work / WEIGHTS_FILE).exists():
        return ImageClassifier.load(work)
    classifier = fit_classifier(images, labels, seed=seed, log=log, steps=steps)
    classifier.save(work)
    return classifier


def fit_classifier(
    images: Tensor, labels: Tensor, *, seed: int, log: Callable[[str], None], steps: int = 3_000, batch: int = 128
) -> ImageClassifier:
    """A new classifier from images [n, 1, 28, 28] (uint8 or floats in 0..1) and labels [n] int64, in eval mode.

    Also the test of variety: fitted to generated images alone, how well does it read real ones?
    """
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    classifier = ImageClassifier().train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.2)
    for step in range(steps):
        chosen = torch.randint(len(images), (batch,), generator=draw)
        logits = classifier(augment(as_floats(images[chosen]), draw))
        loss = F.cross_entropy(logits, labels[chosen])
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 500 == 0:
            log(f"image classifier: step {step + 1} of {steps}, loss {loss.item():.4f}")
    return classifier.eval()


@dataclass(frozen=True)
class Nearness:
    """Distances to the nearest training image: their percentiles, and how many fall under a real image's 1st."""

    percentiles: dict[int, float]
    below_real: float


def compare_nearness(
    generated: Tensor, real: Tensor, training: Tensor, *, percentiles: Sequence[int] = (1, 5, 25, 50)
) -> tuple[Nearness, Nearness]:
    """How near generated and held-back real images [n, 1, h, w] come to the training set. -> (generated, real).

    Copies of training images show as generated percentiles far under the real ones, and as `below_real` far over .01.
    """
    training = _blurred(training)
    found = [nearest_distances(_blurred(images), training) for images in (generated, real)]
    first = torch.quantile(found[1], 0.01)
    of_generated, of_real = (
        Nearness({p: float(torch.quantile(d, p / 100)) for p in percentiles}, float((d < first).float().mean()))
        for d in found
    )
    return of_generated, of_real


def nearest_distances(images: Tensor, training: Tensor) -> Tensor:
    """images [n, d], training [m, d] -> [n] Euclidean distance to the nearest row, by way of float32 products."""
    squares = training.square().sum(dim=1)
    nearest = [torch.addmm(squares, part, training.T, alpha=-2).amin(dim=1) for part in images.split(256)]
    return (torch.cat(nearest) + images.square().sum(dim=1)).clamp(min=0).sqrt()


def _blurred(images: Tensor) -> Tensor:
    """[n, 1, h, w] -> [n, h * w] floats, by a 3 x 3 binomial filter: a shift of a fraction of a pixel counts little."""
    line = torch.tensor([0.25, 0.5, 0.25])
    return F.conv2d(as_floats(images), torch.outer(line, line)[None, None], padding=1).flatten(1)
