"""Stage 1: the autoencoder, from 64-pixel crops where the edges are, then from whole pictures."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from drawing import render
from scenes import random_scene
from training import Average, Checkpoint, Log, Muon

SIZES = ((128, 128), (128, 128), (160, 96), (96, 160))  # width, height
CROP = 64
LATENT_STD = 0.3  # small, so that the noise schedule hides the layout at its noisy end


def build() -> AutoencoderKL:
    """The network: the classes of Stable Diffusion, a sixtieth of its size."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=False,
    )


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """uint8 (H, W, 3) pictures to float32 (N, 3, H, W) in -1 .. 1, channels last in memory."""
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return (stacked.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def crop_at_an_edge(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A 64x64 window around a pixel drawn in proportion to the contrast there."""
    grey = picture.astype(np.float32).mean(2)
    contrast = np.abs(np.diff(grey, axis=0))[:, 1:] + np.abs(np.diff(grey, axis=1))[1:] + 0.5
    total = np.cumsum(contrast.ravel())
    index = int(np.searchsorted(total, rng.uniform(0, total[-1])))
    y, x = divmod(index, contrast.shape[1])
    corner = []
    for centre, full in ((y, picture.shape[0]), (x, picture.shape[1])):
        corner.append(int(np.clip(centre - CROP // 2 + rng.integers(-12, 13), 0, full - CROP)))
    return picture[corner[0] : corner[0] + CROP, corner[1] : corner[1] + CROP]


def batch(step: int, whole: bool, count: int) -> Tensor:
    """The pictures of one step; the same step gives the same pictures."""
    rng = random.Random(step)
    width, height = SIZES[step % len(SIZES)]
    pictures = [np.asarray(render(random_scene(rng), rng, width, height)) for _ in range(count)]
    if not whole:
        crops = np.random.default_rng(step)
        pictures = [crop_at_an_edge(picture, crops) for picture in pictures]
    return to_tensor(pictures)


def loss_of(vae: AutoencoderKL, x: Tensor) -> tuple[Tensor, float]:
    """What training lessens, and the plain squared error for the log."""
    posterior = vae.encode(x).latent_dist
    error = vae.decode(posterior.sample()).sample - x
    edges = (error[..., 1:, :] - error[..., :-1, :]).abs().mean() + (error[..., 1:] - error[..., :-1]).abs().mean()
    squared = error.square().mean()
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    return error.abs().mean() + 4 * squared + 0.5 * edges + 2e-4 * kl, squared.item()


@torch.no_grad()
def psnr(vae: AutoencoderKL, count: int = 64) -> float:
    """Mean PSNR in dB of reconstructions of held-out 128x128 pictures, 8-bit in and out."""
    rng = random.Random(987_654_321)
    values = []
    for _ in range(count):
        picture = np.asarray(render(random_scene(rng, held_out=True), rng))
        decoded = vae.decode(vae.encode(to_tensor([picture])).latent_dist.mean).sample[0]
        again = ((decoded.permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).round().numpy()
        values.append(10 * np.log10(255**2 / np.mean((again - picture) ** 2.0)))
    return float(np.mean(values))


@torch.no_grad()
def latent_std(vae: AutoencoderKL) -> float:
    """Standard deviation of the latents of training pictures."""
    x = torch.cat([batch(step, True, 32) for step in (4_000_000, 4_000_004)])
    return float(vae.encode(x).latent_dist.mean.std())


def train(work: Path, steps: int, lr: float = 0.03, adam_lr: float = 2e-3) -> AutoencoderKL:
    """Train to ``work/vae.pt`` (resumed if there), and save the averaged weights to ``work/vae/``."""
    torch.manual_seed(0)
    vae = build().to(memory_format=torch.channels_last)
    optimiser, average = Muon([vae], lr, adam_lr), Average([vae], 0.998)
    checkpoint = Checkpoint(work / "vae.pt", [vae], optimiser, average)
    log = Log("vae", steps, 100)
    for step in range(checkpoint.load(), steps):
        whole = step >= 0.75 * steps
        optimiser.set_progress(step / steps)
        loss, squared = loss_of(vae, batch(step, whole, 4 if whole else 12))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        average.update()
        log.add(step, loss=loss.item(), mse=squared)
        if step % 500 == 499:
            checkpoint.save(step + 1)
            average.swap()
            print(f"vae {step + 1}  held-out PSNR {psnr(vae, 16):.2f} dB", flush=True)
            average.swap()
    average.swap()
    vae.register_to_config(scaling_factor=round(LATENT_STD / latent_std(vae), 5))
    vae.save_pretrained(work / "vae")
    print(f"vae: held-out PSNR {psnr(vae):.2f} dB, scaling factor {vae.config.scaling_factor}", flush=True)
    return vae
