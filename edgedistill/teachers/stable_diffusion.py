"""Stable Diffusion 1.x and 2.x: any folder or Hub id in StableDiffusionPipeline's layout."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
)
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from edgedistill import assets
from edgedistill.denoiser import Denoiser
from edgedistill.plugins import unknown
from edgedistill.prediction import Prediction
from edgedistill.sampling import StepTable
from edgedistill.schedule import Discrete
from edgedistill.teachers.base import Graph, PromptCache, Source, Teacher

__all__ = ["StableDiffusion"]

PREDICTIONS = {
    "epsilon": Prediction.EPS,
    "sample": Prediction.X0,
    "v_prediction": Prediction.V,
}
"""diffusers' names."""


class UNet(nn.Module):
    """UNet2DConditionModel called as net(x, t, encoder_hidden_states)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        result: Tensor = self.unet(x, t, encoder_hidden_states, return_dict=False)[0]
        return result


class TextEncoder(nn.Module):
    """input_ids (N, L) -> encoder_hidden_states (N, L, D)."""

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        result: Tensor = self.text_encoder(input_ids).last_hidden_state
        return result


class Decoder(nn.Module):
    """x0 (N, C, h, w) -> pictures (N, 3, H, W) in [-1, 1]; the latent scaling is inside."""

    def __init__(self, vae: Any, scaling_factor: float, shift_factor: float) -> None:
        super().__init__()
        self.vae = vae
        self.scaling_factor, self.shift_factor = scaling_factor, shift_factor

    def forward(self, x0: Tensor) -> Tensor:
        latents = x0 / self.scaling_factor + self.shift_factor
        result: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return result


class StableDiffusion(Teacher):
    """A StableDiffusionPipeline, `emoji` among them."""

    family = "stable_diffusion"
    tap = "unet.mid_block"
    core = "unet"
    usage = """Guidance is in the weights, so guidance_scale is 1:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(FOLDER)
image = pipe(PROMPT, num_inference_steps={steps}, guidance_scale=1.0).images[0]
```"""

    def __init__(self, name: str, path: str, pipeline: StableDiffusionPipeline) -> None:
        self.name, self.path = name, path
        self.pipeline = pipeline
        for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            module.eval().requires_grad_(False)
        scheduler = pipeline.scheduler.config
        # DDIM's class computes the table of any SD scheduler, zero-SNR rescaling included.
        schedule = Discrete(DDIMScheduler.from_config(scheduler).alphas_cumprod)
        if scheduler.prediction_type not in PREDICTIONS:
            raise ValueError(
                f"{path}: {unknown('prediction_type', scheduler.prediction_type, PREDICTIONS)}"
            )
        prediction = PREDICTIONS[scheduler.prediction_type]
        self.denoiser = Denoiser(UNet(pipeline.unet), schedule, prediction)
        self.net = self.denoiser.net
        config = pipeline.unet.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.sample_shape = (config.in_channels, height, width)
        self.autoencoder = pipeline.vae
        self.decoder = _decoder(pipeline.vae)
        self.text_encoder = TextEncoder(pipeline.text_encoder)
        self.licences = _licences(Path(path))
        self._cache = PromptCache()

    @classmethod
    def load(cls, path: str) -> StableDiffusion:
        shipped = assets.ROOT / path
        folder = shipped if "/" not in path and shipped.is_dir() else Path(path)
        if not (folder / "model_index.json").is_file():
            if folder.is_dir():
                raise ValueError(f"{folder}: no model_index.json; not a diffusers pipeline folder")
            if path.count("/") != 1 or path.startswith((".", "/")):
                raise ValueError(f"no teacher at {path!r}: no such folder, asset or Hub id")
        where = str(folder) if folder.is_dir() else path
        # A download shows its own bars; loading takes a second and needs none.
        diffusers_logging.disable_progress_bar()
        diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)  # errors come as exceptions
        transformers_logging.disable_progress_bar()
        try:
            pipeline = StableDiffusionPipeline.from_pretrained(
                where,
                dtype=torch.float32,
                safety_checker=None,
                requires_safety_checker=False,
                use_safetensors=True,
            )
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            if not folder.is_dir():
                raise ValueError(
                    f"no folder at {path!r}, and no such model could be had from the Hub"
                ) from error
            first = str(error).strip().splitlines()[0]
            raise ValueError(f"cannot load {path!r}: {first}") from error
        return cls(Path(path).name, where, pipeline)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.pipeline.unet.parameters()).device  # type: ignore[no-any-return]

    def to(self, device: torch.device) -> StableDiffusion:
        self.pipeline.to(device)
        return self

    def spawn(self, generator: torch.Generator | None = None) -> Denoiser:
        net = copy.deepcopy(self.denoiser.net).requires_grad_(True)
        return self.denoiser.with_net(net)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (N, L), padded and cut to the model's length."""
        tokenizer = self.pipeline.tokenizer
        ids: Tensor = tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids
        return ids

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        missing = self._cache.missing(prompts)
        for start in range(0, len(missing), 64):
            piece = missing[start : start + 64]
            states = self.text_encoder(self.tokenize(piece).to(self.device))
            self._cache.put(piece, {"encoder_hidden_states": states.float()})
        return self._cache.get(prompts, self.device)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        return torch.cat([self.decoder(piece) for piece in torch.split(x0, 32)])

    def use_decoder(self, folder: str) -> None:
        if not Path(folder).is_dir() and (folder.count("/") != 1 or folder[0] in "./"):
            raise ValueError(f"no decoder folder at {folder!r}")
        diffusers_logging.set_verbosity_error()
        try:
            vae = AutoencoderTiny.from_pretrained(folder, use_safetensors=True)
        except (OSError, ValueError, SafetensorError) as error:
            first = str(error).strip().splitlines()[0]
            raise ValueError(f"cannot load decoder {folder!r}: {first}") from error
        channels = vae.config.latent_channels
        if channels != self.sample_shape[0]:
            raise ValueError(
                f"decoder {folder!r} is for latents of {channels} channels, "
                f"{self.name} has {self.sample_shape[0]}"
            )
        vae.eval().requires_grad_(False).to(self.device)
        self.pipeline.register_modules(vae=vae)
        self.decoder = _decoder(vae)

    def source(self) -> Source | None:
        folder = Path(self.path)
        latents, prompts = folder / "data.safetensors", folder / "prompts.json"
        if not (latents.is_file() and prompts.is_file()):
            return None
        captions = json.loads(prompts.read_text(encoding="utf-8"))["train"]
        return Latents(load_file(latents)["latents"].float(), captions, self)

    def save(self, folder: Path, net: nn.Module, table: StepTable) -> None:
        assert isinstance(net, UNet)
        parts = dict(self.pipeline.components)
        parts["unet"], parts["scheduler"] = net.unet, self._scheduler(table)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
        pipeline.save_pretrained(folder, safe_serialization=True)

    def check(self, table: StepTable) -> None:
        self._scheduler(table)

    def _scheduler(self, table: StepTable) -> Any:
        """The diffusers scheduler that walks the table when asked for its number of steps."""
        config = self.pipeline.scheduler.config
        for kind, choices in _schedulers(table, config.num_train_timesteps):
            scheduler = kind.from_config(config, clip_sample=False, thresholding=False, **choices)
            if _walks(scheduler, table):
                return scheduler
        steps = [round(row.t) for row in table.rows]
        raise ValueError(
            f"no diffusers scheduler walks the timesteps {steps} with these noises; "
            "choose student.spacing=trailing"
        )

    def graphs(self) -> dict[str, Graph]:
        ids = self.tokenize(["a", "b"])
        states = self.encode(["a", "b"])["encoder_hidden_states"]
        x = torch.zeros(2, *self.sample_shape)
        t = torch.tensor([999.0, 499.0])
        denoiser = {"x": x, "t": t, "encoder_hidden_states": states}
        return {
            "text_encoder": Graph(
                self.text_encoder, {"input_ids": ids}, ("encoder_hidden_states",)
            ),
            "denoiser": Graph(self.denoiser.net, denoiser, ("f",)),
            "decoder": Graph(self.decoder, {"x0": x}, ("image",)),
        }

    def describe(self) -> dict[str, Any]:
        return {
            "shape": list(self.sample_shape),
            "scaling_factor": self.decoder.scaling_factor,
            "shift_factor": self.decoder.shift_factor,
        }


def _decoder(vae: Any) -> Decoder:
    """An AutoencoderKL or AutoencoderTiny; the latter's config knows no shift."""
    config = vae.config
    return Decoder(vae, config.scaling_factor, getattr(config, "shift_factor", None) or 0.0)


def _schedulers(table: StepTable, n: int) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Kinds of scheduler that may walk a table over n timesteps, and settings, plainest first."""
    if any(row.c for row in table.rows):
        yield LCMScheduler, {"original_inference_steps": n}
        return
    trailing = {"timestep_spacing": "trailing"}
    yield DDIMScheduler, {"set_alpha_to_one": True, **trailing}
    # DDIM's class steps by 1000 // steps whatever the next timestep is; this one goes there.
    order_one = {"solver_order": 1, "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"}
    yield DPMSolverMultistepScheduler, {**order_one, **trailing}


class _Probe(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x.tanh()


def _walks(scheduler: Any, table: StepTable) -> bool:
    """Whether scheduler and table take the same noise to the same place."""
    scheduler.set_timesteps(len(table.rows))
    if [round(row.t) for row in table.rows] != scheduler.timesteps.tolist():
        return False
    ours = table.sample(_Probe(), table.draw((64,), torch.Generator().manual_seed(0)), {})
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        f = _Probe()(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(f, t, x, generator=generator).prev_sample
    return bool((x - ours).abs().max() <= 1e-4 * ours.abs().max().clamp(min=1))


class Latents:
    """Clean latents with a caption each."""

    def __init__(self, latents: Tensor, captions: Sequence[str], teacher: Teacher) -> None:
        if len(latents) != len(captions):
            raise ValueError(f"{len(latents)} latents but {len(captions)} captions")
        self.latents, self.captions, self.teacher = latents, list(captions), teacher

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """`count` latents with their captions encoded, drawn with replacement."""
        index = torch.randint(len(self.latents), (count,), generator=generator)
        cond = self.teacher.encode([self.captions[i] for i in index.tolist()])
        return self.latents[index], cond


def _licences(folder: Path) -> list[str]:
    card = folder / "README.md"
    if not card.is_file():
        return []
    licence = ModelCard.load(card).data.get("license") or []
    return [licence] if isinstance(licence, str) else list(licence)
