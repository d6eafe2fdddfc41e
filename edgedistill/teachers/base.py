"""Interface of a family of teachers for the distiller, the evaluator and the exporter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from edgedistill.common.files import read_json
from edgedistill.diffusion.denoiser import Condition, Denoiser, Guided, cat
from edgedistill.diffusion.solvers import TimeGrid, time_grid
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.networks.scaling import Scaling
from edgedistill.teachers.licences import Rights

__all__ = ["DataSource", "ExportGraph", "PromptCache", "Teacher"]

TRAINED, EDM, FLOWS = "over trained timesteps", "over EDM's noise levels", "of flow matching"
"""Kinds of schedulers, as messages name them."""


class DataSource(Protocol):
    """Interface of a run's clean data."""

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw x0 (count, ...) and its condition, on the CPU, decided by the generator alone."""

    def prompts(self, count: int, generator: torch.Generator) -> list[str]:
        """Return captions of what `draw` gives for a generator in the same state; or []."""

    def originals(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Return pictures in [-1, 1] that were encoded to what `draw` gives for this generator.

        The shape is (count, channels, height, width); None where the pictures are not known.
        """


@dataclass(frozen=True)
class ExportGraph:
    """A network to compile.

    Attributes:
        module: Module that is called with the inputs in order.
        inputs: Example tensors by name, a batch of two.
        outputs: Names of its outputs.
        step: Heights and widths of the input x and of all outputs are free, as multiples of these
            numbers (height, width); None where they are fixed.
        times: All values that the input t will have; empty if they are not known.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    step: tuple[int, int] | None = None
    times: tuple[float, ...] = ()


class Teacher(ABC):
    """A loaded teacher of one family; the class also reads students, which have the same format.

    Attributes:
        name: Readable name.
        path: Place it was loaded from.
        denoiser: The frozen network with its schedule and prediction, unguided.
        net: The network a loaded folder holds; in a student dir the few-step one.
        sample_shape: Shape of one x0 (latent or plane point), without the batch.
        rights: Licences of the weights.
        notes: Lines on files of the teacher that are not read, and on parts of its pipeline that
            students lack.
        usage: Code to use a student folder, for its card; {steps} is filled in.
        tap: Module path inside the net whose output serves as features, "" if none.
        time_layer: Module path inside the net of the time embedding's last linear layer, "" if
            none.
        core: Module path inside the net of the diffusers model that can be made smaller.
        autoencoder: Autoencoder between pictures and x0; None where x0 is the data itself.
        scaling: Scaling between x0 and that autoencoder's latents, or the pictures.
        tokenizers: Text encoder inputs by the tokenizer's folder, in the encoder's order.
        prompts: Known prompts, to show and to trace with; empty if it takes none.
        loads_lora: Whether its diffusers pipeline has `load_lora_weights`.
        masks: Name of the mask that follows a tokenizer's ids, for tokenizers that have one.
    """

    family: ClassVar[str]
    tap: ClassVar[str] = ""
    time_layer: ClassVar[str] = ""
    core: ClassVar[str] = ""
    x0_limit: ClassVar[float] = 5.0
    """The largest absolute value of clean data; latents are scaled to about unit variance."""
    has_null: ClassVar[bool] = True
    """Whether the family has networks with a null condition, from which guidance leads away."""
    kinds: ClassVar[tuple[str, ...]] = (TRAINED,)
    """Kinds of diffusers schedulers that the family's pipelines may have."""
    any_table: ClassVar[bool] = True
    """Whether a student of the family may have any step table."""
    reuses: ClassVar[bool] = False
    """Whether the family's networks have a deep state that steps can reuse."""
    strides: ClassVar[bool] = False
    """Whether self-attention of the family's networks can have a stride
    (`compress.token_stride`)."""
    usage: str = "Sample it with `edgedistill generate FOLDER`."
    name: str
    path: str
    denoiser: Denoiser
    net: nn.Module
    sample_shape: tuple[int, ...]
    rights: Rights = Rights()
    notes: list[str] = []  # noqa: RUF012  an instance has its own
    autoencoder: nn.Module | None = None
    scaling: Scaling = Scaling()
    loads_lora: bool = False
    tokenizers: dict[str, str] = {}  # noqa: RUF012  an instance may have fewer
    masks: dict[str, str] = {}  # noqa: RUF012  an instance may have more
    prompts: tuple[str, ...] = (
        *("red apple", "a cat with heart eyes", "rocket", "birthday cake", "blue car"),
        *("green tree in the rain", "smiling face with sunglasses", "yellow star"),
    )

    @classmethod
    @abstractmethod
    def load(cls, path: str, config: str | None = None) -> Teacher:
        """Load a teacher.

        Args:
            path: A folder, file, asset name or Hub id.
            config: Folder or Hub id of the configurations that a single file of weights lacks.

        Raises:
            ValueError: If something is missing; says what.
        """

    @classmethod
    def load_fused(
        cls, path: str, config: str | None, loras: Sequence[tuple[str, float]]
    ) -> Teacher:
        """Load a teacher with LoRAs in its weights.

        Args:
            path: As in `load`.
            config: As in `load`.
            loras: File and factor of each LoRA.

        Raises:
            ValueError: As in `load`, or if a LoRA does not fit, or the family takes none.
        """
        raise ValueError(f"teacher.lora={loras[0][0]}: {cls.family} teachers take no LoRA")

    @property
    def licences(self) -> list[str]:
        """The Hub's names of the licences of the weights."""
        return list(self.rights.licences)

    def terms(self) -> dict[str, Any]:
        """Return student.json's entries on a teacher's terms and on what its students lack."""
        lacks = {"notes": list(self.notes)} if self.notes else {}
        return {"licences": self.licences, **self.rights.details, **lacks}

    @abstractmethod
    def to(self, device: torch.device) -> Teacher:
        """Move every network to a device."""

    def set_memory_options(self, *, checkpointing: bool, offload: bool) -> None:
        """Reduce memory during training; call this before `to` and `spawn`.

        Args:
            checkpointing: Recompute activations of the network's blocks for their gradients.
            offload: Keep the components other than the network off the device between uses.

        Raises:
            ValueError: If the family does not support this.
        """
        for name, wanted in (("checkpointing", checkpointing), ("offload", offload)):
            if wanted:
                raise ValueError(f"train.{name}: {self.family} teachers have nothing to spare")

    @abstractmethod
    def spawn(self, generator: torch.Generator | None = None) -> Denoiser:
        """Make a trainable denoiser that starts as the teacher, for the student and fake_score.

        Args:
            generator: Randomness of the fit, for teachers that are no network; None skips the fit,
                for weights that will be overwritten.
        """

    def preview_prompts(self) -> list[str]:
        """Return prompts shown during training: the teacher's grid, at most 64, or known ones."""
        file = Path(self.path) / "prompts.json"
        if file.is_file():
            return list(read_json(file).get("grid") or ())[:64]
        return list(self.prompts)

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Encode prompts to a condition of N rows; {} for unconditional teachers."""

    @abstractmethod
    def decode(self, x0: Tensor) -> Tensor:
        """Decode x0 to pictures (N, 3, H, W) in [-1, 1], or to points in the plane.

        The result has its gradient in x0.
        """

    def use_decoder(self, folder: str) -> None:
        """Decode with the autoencoder in `folder` from now on; ValueError if it does not fit."""
        raise ValueError(f"{self.family} teachers have no decoder to replace with {folder!r}")

    @abstractmethod
    def source(self) -> DataSource | None:
        """Return clean data that comes with the teacher; None if there is none."""

    def grid(self, steps: int) -> TimeGrid:
        """Return the times at which the teacher's own sampler calls the network, and lands.

        Raises:
            ValueError: If `steps` is below 1, or the sampler's steps are not understood.
        """
        schedule = self.denoiser.schedule
        return TimeGrid.of(schedule, time_grid(schedule, steps))

    def check(self, table: TorchStepTable) -> None:  # noqa: B027  most families have nothing to refuse
        """Raise a ValueError if a student with this table could not be saved."""

    def usage_with(self, table: TorchStepTable) -> str:
        """Return `usage` for a student with this table."""
        return self.usage.format(steps=len(table.rows))

    @abstractmethod
    def save(self, folder: Path, net: nn.Module, table: TorchStepTable) -> None:
        """Write a loadable folder with `net` in place of the teacher's network."""

    @abstractmethod
    def graphs(self) -> dict[str, ExportGraph]:
        """Return the networks to compile: text_encoder, denoiser, decoder, as far as there are."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the latent's {"shape", "scaling_factor", "shift_factor"} for student.json."""

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the text encoder's inputs: ids (N, L), padded and cut to its length; masks."""
        raise ValueError(f"{self.family} teachers take no prompts, got {list(prompts)!r}")

    def tokenizer(self, name: str) -> Any:
        """Return the transformers tokenizer called `name`, a key of `tokenizers`."""
        raise ValueError(f"{self.family} teachers have no {name}")

    def length(self, tokenizer: str) -> int:
        """Return the number of tokens that one of `tokenizers` makes of every prompt."""
        raise ValueError(f"{self.family} teachers have no {tokenizer}")

    def null(self) -> dict[str, Tensor]:
        """Return the null condition of guidance, one row."""
        return self.encode([""])

    @classmethod
    def check_guidance(cls, scale: float, name: str) -> None:
        """Raise a ValueError if no teacher of the family can be guided; `name` is a teacher's."""
        if scale != 1 and not cls.has_null:
            raise ValueError(
                f"teacher.guidance={scale:g}: {name!r} has no null condition to guide away "
                "from; choose teacher.guidance=1"
            )

    @classmethod
    def check_scheduler(cls, scheduler: Any, path: str) -> None:
        """Raise a ValueError for a scheduler that no teacher of the family may have.

        Args:
            scheduler: The scheduler.
            path: The teacher's path, for the message.
        """
        from edgedistill.teachers.schedulers import check_kind  # which imports diffusers

        check_kind(scheduler, path, cls.kinds)

    def guided(self, scale: float) -> Denoiser | Guided:
        """Return the denoiser with guidance; a scale of 1 is none.

        Raises:
            ValueError: If guidance is requested from a teacher without conditions.
        """
        if scale == 1:
            return self.denoiser
        null = self.null()
        if not null:
            raise ValueError(
                f"teacher.guidance={scale:g}: {self.name!r} takes no condition to guide by; "
                "choose teacher.guidance=1"
            )
        return Guided(self.denoiser, null, scale)


class PromptCache:
    """A bounded cache of encoded prompts, one CPU row each."""

    def __init__(self, limit: int = 4096) -> None:
        self.limit = limit
        self._rows: dict[str, dict[str, Tensor]] = {}

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """Return prompts that are not cached, each once, in order."""
        return [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._rows]

    def put(self, prompts: Sequence[str], cond: Condition) -> None:
        """Cache one row a prompt, and drop the oldest beyond the limit."""
        for i, prompt in enumerate(prompts):
            self._rows[prompt] = {k: v[i : i + 1].cpu() for k, v in cond.items()}

    def get(self, prompts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """Return the condition of `prompts`, all of which must be cached."""
        cond = cat(*(self._rows[prompt] for prompt in prompts))
        while len(self._rows) > self.limit:
            del self._rows[next(iter(self._rows))]
        return {name: value.to(device) for name, value in cond.items()}
