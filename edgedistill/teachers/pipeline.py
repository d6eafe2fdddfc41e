"""Base class of diffusers pipeline families: loading, prompts, decoding, saving.

A family is a subclass that names its pipeline, and defines how its network is called, what its
text encoders return, and the schedule and prediction of its scheduler.
"""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
from torch import Tensor, nn

from edgedistill.common.finite import check_finite
from edgedistill.compress.token_stride import restore_stride
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.solvers import TimeGrid
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.networks.scaling import Scaling
from edgedistill.teachers.base import DataSource, ExportGraph, PromptCache, Teacher
from edgedistill.teachers.decoders import Decoder, channels_of, open_decoder
from edgedistill.teachers.flow import shift_asked
from edgedistill.teachers.hub import kept_at
from edgedistill.teachers.latents import shipped_latents
from edgedistill.teachers.licences import copy_texts, merged, rights_of
from edgedistill.teachers.loading import whole_weights
from edgedistill.teachers.loras import fuse, place_of, rights_of_lora
from edgedistill.teachers.network_inputs import check_network
from edgedistill.teachers.pipeline_files import read_pipeline
from edgedistill.teachers.schedulers import bound_of, check_grid, check_start, grid_of, sibling
from edgedistill.teachers.student_schedulers import find_scheduler, takes_timesteps
from edgedistill.teachers.tokenizers import UNBOUNDED, complete

__all__ = ["PipelineTeacher"]

_BATCH = 64
"""Number of prompts in a call of the text encoders."""


class PipelineTeacher(Teacher):
    """A teacher from a folder or Hub id in the layout of a diffusers pipeline.

    Attributes:
        pipelines: Names of the diffusers classes it reads, the plainest first.
        conditions: Names of the text encoder's outputs, as the network takes them.
        unused: Components that are not loaded.
        options: Arguments of the pipeline's class besides its components.
        fused: Files and factors of LoRAs that are fused into its weights.
        pipeline: The pipeline itself.
    """

    pipelines: ClassVar[tuple[str, ...]]
    core = "unet"
    tokenizers: dict[str, str] = {"tokenizer": "input_ids"}  # noqa: RUF012
    conditions: ClassVar[tuple[str, ...]] = ("encoder_hidden_states",)
    unused: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[dict[str, Any]] = {}
    any_table = False
    usage = """Guidance is in the weights, so guidance_scale is 1:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(FOLDER)
image = pipe(PROMPT, num_inference_steps={steps}, guidance_scale=1.0).images[0]
```"""

    def __init__(self, name: str, path: str, pipeline: Any) -> None:
        self.name, self.path, self.pipeline = name, path, pipeline
        for part, module in pipeline.components.items():
            if isinstance(module, nn.Module):
                module.eval().requires_grad_(False)
                check_finite(f"{path}/{part}", module.state_dict())
        complete(pipeline, self.tokenizers, path)
        self._check()
        if self.is_student:
            restore_stride(getattr(pipeline, self.core), kept_at(path) / "student.json")
        schedule, prediction = self.parametrization()
        # A student's own table needs no bound, and its scheduler has none.
        bound = None if self.is_student else bound_of(pipeline.scheduler)
        net = self.as_denoiser(getattr(pipeline, self.core))
        self.denoiser = Denoiser(net, schedule, prediction, bound)
        self.net = self.denoiser.net
        self.sample_shape = self.shape()
        self.autoencoder = getattr(pipeline, "vae", None)
        self.decoder = self.decoder_of(self.autoencoder)
        self.scaling = self.decoder.scaling
        self.text_encoder = self.encoder()
        self.loads_lora = hasattr(pipeline, "load_lora_weights")
        self.rights, self.notes = rights_of(path), []
        self.fused: list[tuple[Path, float]] = []
        self._cache, self.offload = PromptCache(), False

    def _check(self) -> None:
        """Raise a ValueError for a network or an autoencoder that would be used wrongly."""
        vae, core = getattr(self.pipeline, "vae", None), getattr(self.pipeline, self.core)
        own = None if vae is None else channels_of(vae, self.path)
        check_network(self.family, core, self.shape()[0], own, self.path)

    @abstractmethod
    def parametrization(self) -> tuple[Schedule, Prediction]:
        """Return schedule and prediction of the pipeline's scheduler; ValueError if unknown."""

    @abstractmethod
    def as_denoiser(self, core: nn.Module) -> nn.Module:
        """Wrap `core` (an attribute named `self.core`) as net(x, t, **conditions)."""

    @classmethod
    def scaling_of(cls, config: Any) -> Scaling:
        """Return the pipeline's scaling between x0 and an autoencoder's latents by its config."""
        return Scaling(config.scaling_factor)

    def decoder_of(self, autoencoder: Any) -> Any:
        """Return the decoder from x0 to pictures, with its `scaling`.

        Args:
            autoencoder: The pipeline's autoencoder or another; None where it has none.
        """
        return Decoder(autoencoder, self.scaling_of(autoencoder.config))

    @abstractmethod
    def encoder(self) -> nn.Module | None:
        """Return the text encoder from token tensors, as `tokenize` orders them, to `conditions`.

        The result is None for a network without conditions.
        """

    @abstractmethod
    def schedulers(self, table: TorchStepTable) -> Iterator[Any]:
        """Yield diffusers schedulers that may walk a table, the plainest first."""

    def asks(self, x0: Tensor, prompt: str) -> dict[str, Any] | None:
        """Return arguments of its own pipeline's call to draw x0 (1, ...) for a prompt, guided.

        The result is None where the family's pipelines do not support such a network.
        """
        height, width = (side * self.pipeline.vae_scale_factor for side in x0.shape[-2:])
        return {
            "prompt": [prompt],
            "guidance_scale": 2.0,
            "latents": x0,
            "height": height,
            "width": width,
            "max_sequence_length": self.text_length,
        }

    def set_steps(self, scheduler: Any, steps: int) -> None:
        """Set a scheduler's number of steps as the pipeline does."""
        scheduler.set_timesteps(steps)

    @property
    def is_student(self) -> bool:
        """Whether the folder is a student's, whose scheduler is made for its steps alone."""
        return (kept_at(self.path) / "student.json").is_file()

    def set_own_steps(self, scheduler: Any, steps: int) -> None:
        """Set the steps of a teacher's scheduler, or of its sibling, as the pipeline does."""
        scheduler.set_timesteps(steps, **shift_asked(scheduler, self.denoiser.schedule))

    def grid(self, steps: int) -> TimeGrid:
        if self.is_student:
            return super().grid(steps)
        scheduler = sibling(self.pipeline.scheduler)
        self.set_own_steps(scheduler, steps)
        grid = grid_of(scheduler, self.denoiser.schedule)
        check_start(grid, self.denoiser, self.path)
        check_grid(scheduler, grid, self.denoiser, self.path)
        return grid

    def shape(self) -> tuple[int, ...]:
        """Return the shape of one latent."""
        config = getattr(self.pipeline, self.core).config
        size = config.sample_size
        if size is None:
            raise ValueError(
                f"{self.path}: its {self.core}'s config.json has no sample_size, the height and "
                "width of a latent; write it there"
            )
        height, width = (size, size) if isinstance(size, int) else size
        return (config.in_channels, height, width)

    @classmethod
    def load(cls, path: str, config: str | None = None) -> PipelineTeacher:
        return read_pipeline(cls, path, config).teacher(cls)

    @classmethod
    def load_fused(
        cls, path: str, config: str | None, loras: Sequence[tuple[str, float]]
    ) -> PipelineTeacher:
        read = read_pipeline(cls, path, config)
        if not hasattr(read.pipeline, "load_lora_weights"):
            super().load_fused(path, config, loras)
        for file, scale in loras:
            fuse(read.pipeline, file, scale)
        teacher = read.teacher(cls)
        teacher.fused = [(place_of(file), scale) for file, scale in loras]
        teacher.rights = merged([teacher.rights, *(rights_of_lora(file) for file, _ in loras)])
        return teacher

    @classmethod
    def open(cls, name: str, index: dict[str, Any], where: str) -> Any:
        """Open diffusers' pipeline of class `name` at `where`, a folder or Hub id, in float32."""
        # Diffusers must be told which components are left out, unless they are optional in its
        # class.
        absent = [part for part, found in index.items() if found == [None, None]]
        unused = dict.fromkeys((*cls.unused, *absent))
        with whole_weights(where):
            return getattr(diffusers, name).from_pretrained(
                where, dtype=torch.float32, use_safetensors=True, **unused, **cls.options
            )

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return next(self.net.parameters()).device

    def to(self, device: torch.device) -> PipelineTeacher:
        self.net.to(device)
        if not self.offload:
            self.pipeline.to(device)
        return self

    def set_memory_options(self, *, checkpointing: bool, offload: bool) -> None:
        self.offload = offload
        if checkpointing:
            core: Any = self.net.get_submodule(self.core)
            core.enable_gradient_checkpointing()

    @contextmanager
    def _present(self, module: nn.Module) -> Iterator[None]:
        """Move a module to the device while it is used."""
        module.to(self.device)
        try:
            yield
        finally:
            if self.offload:
                module.to("cpu")

    def spawn(self, generator: torch.Generator | None = None) -> Denoiser:
        net = copy.deepcopy(self.denoiser.net).requires_grad_(True)
        return self.denoiser.with_net(net)

    def tokenizer(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def longest(self, tokenizer: str) -> int | None:
        """Return the pipeline's default length of a prompt; None for the tokenizer's own."""
        return None

    def length(self, tokenizer: str) -> int:
        length, most = int(self.tokenizer(tokenizer).model_max_length), self.longest(tokenizer)
        if most is not None:
            return min(length, most)
        if length >= UNBOUNDED:
            raise ValueError(
                f'{self.path}/{tokenizer}/tokenizer_config.json: no "model_max_length", and its '
                "text encoder says none; name one"
            )
        return length

    @property
    def text_length(self) -> int:  # which pipelines call max_sequence_length
        return self.length(list(self.tokenizers)[-1])

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        inputs = {}
        for component, name in self.tokenizers.items():
            encoded = self.tokenizer(component)(
                list(prompts),
                padding="max_length",
                truncation=True,
                max_length=self.length(component),
                return_tensors="pt",
            )
            inputs[name] = encoded.input_ids
            if component in self.masks:
                inputs[self.masks[component]] = encoded.attention_mask
        return inputs

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        if self.text_encoder is None:
            return {}
        missing = self._cache.missing(prompts)
        for start in range(0, len(missing), _BATCH):
            piece = missing[start : start + _BATCH]
            inputs = self.tokenize(piece).values()
            with self._present(self.text_encoder):
                found = self.text_encoder(*(tensor.to(self.device) for tensor in inputs))
            tensors = found if isinstance(found, tuple) else (found,)
            cond = {
                name: tensor.float() if tensor.is_floating_point() else tensor
                for name, tensor in zip(self.conditions, tensors, strict=True)
            }
            self._cache.put(piece, cond)
        return self._cache.get(prompts, self.device)

    def decode(self, x0: Tensor) -> Tensor:
        with self._present(self.decoder):
            return torch.cat([self.decoder(piece) for piece in torch.split(x0, 32)])

    def use_decoder(self, folder: str) -> None:
        if self.autoencoder is None:
            super().use_decoder(folder)
        channels = self.sample_shape[0]
        vae = open_decoder(folder, channels, self.name).to(self.device)
        decoder = self.decoder_of(vae).to(self.device)
        sides = [min(side, 8) for side in self.sample_shape[1:]]
        x0 = torch.zeros(1, channels, *sides, device=self.device)
        with torch.no_grad():
            theirs, own = decoder(x0).shape[2:], self.decode(x0).shape[2:]
        if theirs != own:
            small, drawn, teachers = ("x".join(map(str, each)) for each in (sides, theirs, own))
            raise ValueError(
                f"decoder {folder!r} makes {drawn} of latents of {small}, {self.name}'s own "
                f"{teachers}"
            )
        self.pipeline.register_modules(vae=vae)
        self.decoder = decoder

    def source(self) -> DataSource | None:
        return shipped_latents(Path(self.path), self)

    def save(self, folder: Path, net: nn.Module, table: TorchStepTable) -> None:
        parts = dict(self.pipeline.components)
        parts[self.core] = net.get_submodule(self.core)
        parts["scheduler"] = self.scheduler(table)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline = type(self.pipeline)(**parts, **self.options)
        pipeline.save_pretrained(folder, safe_serialization=True)
        copy_texts(self.path, folder)

    def check(self, table: TorchStepTable) -> None:
        self.scheduler(table)

    def scheduler(self, table: TorchStepTable) -> Any:
        """Return the diffusers scheduler that walks the table, at one size and without reuse.

        Raises:
            ValueError: If no scheduler does.
        """
        return self._walker(table)[0]

    def usage_with(self, table: TorchStepTable) -> str:
        text, steps = self.usage, "num_inference_steps={steps}"
        if "max_sequence_length" in signature(type(self.pipeline).__call__).parameters:
            length = f"max_sequence_length={self.text_length}"
            text = text if length in text else text.replace(steps, f"{steps}, {length}")
        timesteps = self._walker(table)[1] if steps in text else None
        if timesteps is not None:
            text = text.replace(steps, f"timesteps={timesteps}")
        return text.format(steps=len(table.rows))

    def _walker(self, table: TorchStepTable) -> tuple[Any, list[int] | None]:
        """Return the scheduler, and the timesteps it must be given if a number is not enough."""
        own, table = self.pipeline.scheduler, table.at_one_size().reusing(())
        candidates = [*self.schedulers(table), type(own).from_config(own.config)]
        by_timesteps = takes_timesteps(type(self.pipeline).__call__)
        return find_scheduler(candidates, table, self.set_steps, by_timesteps)

    def graphs(self) -> dict[str, ExportGraph]:
        prompts, x = self.prompts[:2], torch.zeros(2, *self.sample_shape)
        times = self.denoiser.schedule.net_time(torch.tensor([1.0, 0.5]).double()).float()
        denoiser = {"x": x, "t": times, **self.encode(prompts)}
        graphs = {
            "denoiser": ExportGraph(self.denoiser.net, denoiser, ("f",)),
            "decoder": ExportGraph(self.decoder, {"x0": x}, ("image",)),
        }
        if self.text_encoder is None:
            return graphs
        ids = self.tokenize(prompts)
        return {"text_encoder": ExportGraph(self.text_encoder, ids, self.conditions), **graphs}

    def describe(self) -> dict[str, Any]:
        return {"shape": list(self.sample_shape), **self.decoder.scaling.describe()}
