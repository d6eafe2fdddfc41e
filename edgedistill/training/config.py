"""The `train` section of a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from edgedistill.common.plugins import unknown
from edgedistill.common.settings import Settings, renamed
from edgedistill.networks.adapters import Adapter
from edgedistill.objectives.base import Optim
from edgedistill.training.trackers import TRACKERS

__all__ = ["LR_SCHEDULES", "Train"]

LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}
"""Learning rate schedules: fraction of the run done -> factor on the learning rate."""


class Train(Settings):
    """The `train` section of a recipe."""

    old_keys = renamed(lr_warmup="lr_warmup_steps")

    steps: int = Field(gt=0)
    """Number of training steps."""
    batch_size: int = Field(gt=0, le=2**16)
    """Number of samples of a batch, in each process."""
    optim: Optim = Optim()
    """The student's optimizer; other players bring theirs in the objective's section."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of every learning rate: constant, or falling to 0 linearly or as a cosine."""
    lr_warmup_steps: int = Field(0, ge=0)
    """Number of first steps in which every learning rate rises linearly to its value."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the computation, by autocast; trained weights stay float32."""
    accumulate: int = Field(1, gt=0, le=2**16)
    """Number of batches whose gradients are summed for one update."""
    clip: float = Field(1.0, gt=0)
    """Gradient norm above which gradients are scaled down."""
    ema: float = Field(0.999, ge=0, lt=1)
    """Decay of the average of the student's weights, which is what is saved."""
    moments: Literal["fp32", "8bit"] = "fp32"
    """Format of the two moments of every player's AdamW. 8bit: in blocks of 256 values with a
    scale each (Dettmers et al. 2021, arXiv 2110.02861), by torchao."""
    roles: Literal["copies", "adapters"] = "copies"
    """Networks of the roles: a copy for each, or one frozen base with a LoRA for each."""
    adapter: Adapter = Adapter()
    base: Literal["fp32", "bf16"] = "fp32"
    """Precision of the teacher's frozen weights, including those that adapters share. bf16 takes
    half the memory and, with precision=bf16, changes no number of a step."""
    checkpointing: bool = False
    """Gradient checkpointing: a block's activations are recomputed for its gradient."""
    compile: bool = False
    """Compilation of the trained networks and of the teacher's by torch.compile: the first
    steps take minutes, and numbers differ by rounding."""
    offload: bool = False
    """Whether components other than the network wait in main memory between uses."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of data, noise and new weights."""
    log_every: int = Field(50, gt=0)
    """Steps between lines of metrics.jsonl."""
    trackers: tuple[str, ...] = ()
    """Trackers that get the figures of metrics.jsonl too: aim, clearml, comet_ml, dvclive, mlflow,
    swanlab, tensorboard, trackio or wandb, as accelerate's `log_with`. Each must be installed."""
    sample_every: int = Field(0, ge=0)
    """Steps between sample grids; 0 draws one at the end only."""
    checkpoint_every: int = Field(1000, gt=0)
    """Steps between checkpoints; one is written at the end too."""

    @field_validator("trackers", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("trackers")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in TRACKERS:
                raise unknown("tracker", name, TRACKERS)
        return tuple(dict.fromkeys(names))

    @model_validator(mode="after")
    def _same_numbers(self) -> Train:
        if self.base == "bf16" and self.precision != "bf16":
            raise ValueError(
                f"train.base=bf16 would round weights that train.precision={self.precision} does "
                "not; choose train.precision=bf16, or train.base=fp32"
            )
        return self
