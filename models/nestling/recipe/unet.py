"""Stage 3: the text encoder and the U-Net, together, on latents of the finished autoencoder."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from drawing import importance, render
from reader import accuracy
from scenes import ATTRIBUTES, Scene, caption, random_scene
from training import Average, Checkpoint, Log, Muon
from vae import LATENT_STD, SIZES, to_tensor

SCHEDULE = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
)
BATCH = 64
CHUNK = 4096
CHUNKS = 12


def build(tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """The two networks: the classes of Stable Diffusion, a hundredth of its size."""
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="eager",
        )
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(64, 128, 144),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,  # the number of heads, by an old misnomer that Stable Diffusion shares
        cross_attention_dim=128,
        norm_num_groups=16,
    )
    unet.set_attn_processor(AttnProcessor())
    return text, unet.to(memory_format=torch.channels_last)


# ---------------------------------------------------------------- data


@torch.no_grad()
def chunk(work: Path, vae: AutoencoderKL, index: int) -> tuple[Tensor, list[Scene]]:
    """4,096 pictures of one size as scaled latents, float32, with their scenes; kept on disk once made."""
    rng = random.Random(f"chunk {index}")
    scenes = [random_scene(rng) for _ in range(CHUNK)]
    path = work / f"latents-{index}.npy"
    if not path.exists():
        width, height = SIZES[index % len(SIZES)]
        parts = []
        for start in range(0, CHUNK, 64):
            pictures = [
                np.asarray(render(scene, random.Random(f"{index} {start + k}"), width, height))
                for k, scene in enumerate(scenes[start : start + 64])
            ]
            parts.append(vae.encode(to_tensor(pictures)).latent_dist.mean * vae.config.scaling_factor)
        np.save(path, torch.cat(parts).contiguous().numpy().astype(np.float16))
    return torch.from_numpy(np.load(path)).float(), scenes


class Data:
    """Batches of latents and captions; chunks are made when the training first needs them."""

    def __init__(self, work: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, steps: int) -> None:
        self.work, self.vae, self.tokenizer, self.steps = work, vae, tokenizer, steps
        self.chunks: list[tuple[Tensor, list[Scene]]] = []

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, 4, H/8, W/8), weights (B, 1, H/8, W/8), ids (B, 77) of a step; one caption in ten is empty."""
        open_to = min(CHUNKS, len(SIZES) + int(CHUNKS * step / self.steps))
        while len(self.chunks) < open_to:
            self.chunks.append(chunk(self.work, self.vae, len(self.chunks)))
        rng = random.Random(f"batch {step}")
        latents, scenes = self.chunks[rng.randrange(len(self.chunks))]
        picked = rng.sample(range(CHUNK), BATCH)
        captions = ["" if rng.random() < 0.1 else caption(scenes[index], rng)[0] for index in picked]
        weights = np.stack([importance(scenes[index], *latents.shape[2:]) for index in picked])[:, None]
        x0 = latents[picked].contiguous(memory_format=torch.channels_last)
        return x0, torch.from_numpy(weights).float(), self.ids(captions)

    def ids(self, captions: list[str]) -> Tensor:
        """Token ids (N, 77)."""
        found: Tensor = self.tokenizer(
            captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        return found


# ---------------------------------------------------------------- training


def alphas_cumprod() -> Tensor:
    """The signal power left at each training timestep."""
    betas = torch.linspace(SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


def timesteps(count: int, alphas: Tensor) -> Tensor:
    """Training timesteps (count,): two in five where noise hides the layout, the others even in the log of sigma.

    Only under strong noise do the words have to say where things are.  Edges are decided far below: latents of a
    deviation of 0.3 are half signal at t = 90 already, so even timesteps would hardly ever practise them.
    """
    sigmas = ((1 - alphas) / alphas).sqrt()
    low, high = torch.tensor(0.05).log(), sigmas[-1].log()
    even = torch.searchsorted(sigmas.log(), torch.rand(count, dtype=sigmas.dtype) * (high - low) + low)
    return torch.where(torch.rand(count) < 0.4, torch.randint(750, 1000, (count,)), even.clamp(max=999))


def loss_of(
    text: CLIPTextModel, unet: UNet2DConditionModel, x0: Tensor, weights: Tensor, ids: Tensor, alphas: Tensor
) -> Tensor:
    """v-prediction, weighted so that every noise level counts alike in units of the data (Karras et al., 2022)."""
    t = timesteps(len(x0), alphas)
    signal2 = alphas[t].float()[:, None, None, None]
    sigma2 = (1 - signal2) / signal2
    noise = torch.randn_like(x0)
    x = signal2.sqrt() * x0 + (1 - signal2).sqrt() * noise
    v = signal2.sqrt() * noise - (1 - signal2).sqrt() * x0
    weights = weights * (sigma2 / LATENT_STD**2 + 1) / (sigma2 + 1)
    predicted = unet(x, t, text(ids).last_hidden_state).sample
    return (weights * (predicted - v).square()).mean()


def train(work: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, reader: nn.Module, steps: int) -> None:
    """Train to ``work/unet.pt`` (resumed if there); save the averages to ``work/text_encoder`` and ``work/unet``."""
    torch.manual_seed(0)
    text, unet = build(tokenizer)
    embeddings = {id(p) for p in text.text_model.embeddings.parameters()}
    optimiser = Muon([text, unet], 0.02, 1e-3, embeddings)
    average = Average([text, unet], 0.995)
    checkpoint = Checkpoint(work / "unet.pt", [text, unet], optimiser, average)
    data, alphas, log = Data(work, vae, tokenizer, steps), alphas_cumprod(), Log("unet", steps, 50)
    for step in range(checkpoint.load(), steps):
        optimiser.set_progress(step / steps)
        loss = loss_of(text, unet, *data.batch(step), alphas)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*text.parameters(), *unet.parameters()], 1.0)
        optimiser.step()
        optimiser.zero_grad()
        average.update()
        log.add(step, loss=loss.item())
        if step % 250 == 249:
            checkpoint.save(step + 1)
            average.swap()
            print(f"unet {step + 1}  {check(text, unet, vae, data, reader)}", flush=True)
            average.swap()
    average.swap()
    text.save_pretrained(work / "text_encoder")
    unet.save_pretrained(work / "unet")


@torch.no_grad()
def generate(
    text: CLIPTextModel,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    ids: Tensor,
    empty: Tensor,
    guidance: float,
    steps: int,
) -> Tensor:
    """Pictures (N, 3, 128, 128) in -1 .. 1 by the sampler that the model card recommends."""
    scheduler = DPMSolverMultistepScheduler(**SCHEDULE, use_karras_sigmas=True, steps_offset=1)
    scheduler.set_timesteps(steps)
    x = torch.randn((len(ids), 4, 16, 16), generator=torch.Generator().manual_seed(0))
    conditions = torch.cat([text(empty).last_hidden_state.expand(len(ids), -1, -1), text(ids).last_hidden_state])
    for t in scheduler.timesteps:
        without, given = unet(torch.cat([x, x]), t, conditions).sample.chunk(2)
        x = scheduler.step(without + guidance * (given - without), t, x).prev_sample
    pictures: Tensor = vae.decode(x / vae.config.scaling_factor).sample
    return pictures.clamp(-1, 1)


def check(text: CLIPTextModel, unet: UNet2DConditionModel, vae: AutoencoderKL, data: Data, reader: nn.Module) -> str:
    """Attribute scores of 48 held-out captions, to watch a training by; ``score.py`` is the real examination."""
    rng = random.Random(1)
    scenes = [random_scene(rng, held_out=True) for _ in range(48)]
    spoken = [caption(scene, rng) for scene in scenes]
    pictures = generate(text, unet, vae, data.ids([words for words, _ in spoken]), data.ids([""]), 5.0, 12)
    with torch.no_grad():
        logits = reader(pictures)
    answers = accuracy_where_said(logits, scenes, [said for _, said in spoken])
    return f"mean {sum(answers.values()) / len(answers):.3f}  " + "  ".join(f"{k} {v:.2f}" for k, v in answers.items())


def accuracy_where_said(logits: Tensor, scenes: list[Scene], said: list[set[str]]) -> dict[str, float]:
    """Share of right answers per attribute, over the captions that mention it."""
    labels = torch.tensor([scene.labels() for scene in scenes])
    scores = {}
    for name in ATTRIBUTES:
        rows = [index for index, names in enumerate(said) if name in names]
        scores[name] = accuracy(logits[rows], labels[rows])[name]
    return scores
