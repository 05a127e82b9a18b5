"""Trains the image codec on MNIST: an autoencoder first, then its codebook by k-means, then both together.

What a step draws depends on (seed, step) only, so that a run that is resumed goes on as if it had not stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from service.codecs.image import ImageCodec
from service.codecs.image_network import ImageCodecConfig
from training.digits.vq import TrainingQuantizer

DIGITS = ImageCodecConfig(normalise_polarity=True)


@dataclass(frozen=True)
class CodecRecipe:
    """How a codec is trained. `plain_steps` come before there is a codebook."""

    config: ImageCodecConfig = DIGITS
    steps: int = 5_000
    plain_steps: int = 400
    batch: int = 128
    learning_rate: float = 2e-3
    commitment: float = 0.25
    checkpoint_every: int = 500


def train_image_codec(
    images: Tensor, work: Path, *, seed: int, log: Callable[[str], None], recipe: CodecRecipe | None = None
) -> ImageCodec:
    """The codec in `work`, or a new one trained on `images` and saved there, in fp16.

    images [n, C, H, W] uint8. `work` also keeps the state of an unfinished run, which is taken up again.
    """
    if (work / "DONE").exists():
        return ImageCodec.load(work)
    recipe = recipe or CodecRecipe()
    work.mkdir(parents=True, exist_ok=True)
    _fit(images, work, seed, log, recipe).save(work)
    (work / "DONE").touch()
    (work / "training.pt").unlink(missing_ok=True)
    return ImageCodec.load(work)


def _fit(images: Tensor, work: Path, seed: int, log: Callable[[str], None], recipe: CodecRecipe) -> ImageCodec:
    torch.manual_seed(seed)
    codec = ImageCodec(recipe.config)
    networks = torch.nn.ModuleList([codec.encoder, codec.decoder])
    quantizer = TrainingQuantizer(recipe.config.codes, recipe.config.code_width)
    optimizer = torch.optim.AdamW(networks.parameters(), lr=recipe.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1, cycle_momentum=False
    )
    parts = {"networks": networks, "quantizer": quantizer, "optimizer": optimizer, "schedule": schedule}
    first, state = 0, work / "training.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        first = saved.pop("step")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        log(f"image codec: goes on from step {first}")
    began = time.monotonic()
    for step in range(first, recipe.steps):
        draw = torch.Generator().manual_seed((seed << 32) + step)
        batch = augment(images[torch.randint(len(images), (recipe.batch,), generator=draw)].float() / 255, draw)
        features = codec.encoder(batch)
        if step == recipe.plain_steps:
            many = images[torch.randint(len(images), (20 * recipe.batch,), generator=draw)].float() / 255
            with torch.no_grad():
                quantizer.start(codec.encoder(augment(many, draw)), draw)
        commitment = features.new_zeros(())
        if step >= recipe.plain_steps:
            features, _, commitment = quantizer(features, draw)
        # Cross-entropy, not squares: the gradient of squares dies where the sigmoid saturates, in an all-blank answer.
        error = F.binary_cross_entropy_with_logits(codec.decoder(features), batch)
        (10 * error + recipe.commitment * commitment).backward()
        torch.nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == recipe.steps:
            rate = (step + 1 - first) / (time.monotonic() - began)
            log(
                f"image codec: step {step + 1} of {recipe.steps}, cross-entropy {error.item():.5f}, commitment "
                f"{commitment.item():.4f}, {rate:.1f} steps a second"
            )
            torch.save({"step": step + 1, **{name: part.state_dict() for name, part in parts.items()}}, state)
    codec.codebook.codes.copy_(quantizer.codes)
    return codec.eval()


def augment(images: Tensor, generator: torch.Generator, *, pixels: float = 2, degrees: float = 10) -> Tensor:
    """Shifted by up to `pixels`, turned by up to `degrees`, scaled by 1 / 1.2 to 1.2; one image in four stays.

    images [b, C, H, W] -> the same shape; what comes in from outside is 0.
    """
    b, _, height, width = images.shape
    uniform = torch.rand(5, b, generator=generator) * 2 - 1
    stays = uniform[4] < -0.5
    angle = (uniform[0] * degrees * torch.pi / 180).masked_fill(stays, 0)
    scale = (uniform[1] * 0.182).masked_fill(stays, 0).exp()
    shift = (uniform[2:4] * pixels * 2 / torch.tensor([[width], [height]])).masked_fill(stays, 0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([cos, -sin * height / width, shift[0], sin * width / height, cos, shift[1]], dim=1)
    grid = F.affine_grid(rows.view(b, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


@dataclass(frozen=True)
class CodecQuality:
    """What `measure` found. `perplexity` is exp of the entropy of the codes: how many are in effect in use."""

    mse: float
    codes_used: int
    perplexity: float


def measure(codec: ImageCodec, images: Tensor) -> tuple[CodecQuality, Tensor]:
    """Reconstruct images [n, C, H, W] uint8. -> the figures, and the reconstructions [n, C, H, W] in 0..1."""
    codes = torch.cat([codec.encode(part.float() / 255) for part in images.split(500)])
    remade = torch.cat([codec.decode(part) for part in codes.split(500)])
    counts = torch.bincount(codes.flatten(), minlength=codec.config.codes)
    share = counts[counts > 0] / counts.sum()
    perplexity = float((-(share * share.log()).sum()).exp())
    error = float(F.mse_loss(remade, images.float() / 255))
    return CodecQuality(error, int((counts > 0).sum()), perplexity), remade
