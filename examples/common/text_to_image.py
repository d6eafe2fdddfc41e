"""A small Stable Diffusion: U-Net and text encoder, trained together on latents.

`AttnProcessor` (plain matrix products) beats fused attention on sequences of 64 on a CPU, forward
and far more so backward; nothing of it is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from common.training import Plan


@dataclass(frozen=True, kw_only=True)
class Config(Plan):
    """Shapes of the networks."""

    channels: tuple[int, ...] = (80, 112, 144)
    """At 8x8, 4x4 and 2x2; the last level has no attention, as in Stable Diffusion 1.5."""
    layers: int = 1
    heads: int = 4
    norm_groups: int = 16
    latent_channels: int = 16
    latent_size: int = 8
    text_width: int = 128
    text_layers: int = 4
    text_heads: int = 4


def build_schedule() -> DDIMScheduler:
    """Cosine; the signal left at the end is 2e-9, so trailing steps start from pure noise."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # trailing steps ignore it; the pipeline warns about any other value
    )


def build_unet(config: Config) -> UNet2DConditionModel:
    """The U-Net of Stable Diffusion 1.5, small."""
    attending = len(config.channels) - 1
    unet = UNet2DConditionModel(
        sample_size=config.latent_size,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * attending + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attending,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        cross_attention_dim=config.text_width,
        attention_head_dim=config.heads,  # diffusers reads this as the number of heads
        norm_num_groups=config.norm_groups,
    )
    unet.set_attn_processor(AttnProcessor())
    return unet


def build_text_encoder(config: Config, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP's text tower, small; it is trained with the U-Net, not against pictures."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_width,
            intermediate_size=4 * config.text_width,
            projection_dim=config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="eager",
        )
    )


def loss(
    unet: UNet2DConditionModel, x0: torch.Tensor, states: torch.Tensor, alpha_bars: torch.Tensor
) -> torch.Tensor:
    """The mean error of v on latents (N, C, H, W), given a text's states (N, L, D)."""
    t = stratified_times(len(x0), len(alpha_bars))
    alpha = alpha_bars[t].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - alpha_bars[t]).sqrt().view(-1, 1, 1, 1)
    eps = torch.randn_like(x0)
    v = unet(alpha * x0 + sigma * eps, t, states).sample
    return torch.nn.functional.mse_loss(v.float(), alpha * eps - sigma * x0)


def stratified_times(count: int, times: int) -> torch.Tensor:
    """One time from each of `count` equal parts of the schedule, in random order."""
    places = (torch.randperm(count) + torch.rand(count)) / count
    return (places * times).long().clamp(max=times - 1)


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    ids: torch.Tensor,
    empty: torch.Tensor,
    steps: int,
    guidance: float,
    seed: int = 0,
) -> torch.Tensor:
    """Latents for these captions by guided DDIM, the way the pipeline does it but in batches."""
    schedule = build_schedule()
    schedule.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    channels, size = unet.config.in_channels, unet.config.sample_size
    noise = torch.randn(len(ids), channels, size, size, generator=generator)
    batches = []
    for x, tokens in zip(torch.split(noise, 64), torch.split(ids, 64), strict=True):
        known = text_encoder(tokens).last_hidden_state
        unknown = text_encoder(empty[None]).last_hidden_state.expand(len(x), -1, -1)
        states = torch.cat([unknown, known])
        for t in schedule.timesteps:
            without, given = unet(torch.cat([x, x]), t, states).sample.chunk(2)
            x = schedule.step(without + guidance * (given - without), t, x).prev_sample
        batches.append(x)
    return torch.cat(batches)
