"""Base class of distillation methods: players, and a loss for each.

An objective knows networks and arithmetic. It knows no file, device, optimizer or world size;
all its randomness comes from the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedistill.common.settings import Settings
from edgedistill.diffusion.denoiser import Condition, Denoiser, Guided
from edgedistill.diffusion.few_step import Boundary
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.networks.scaling import Scaling

if TYPE_CHECKING:
    from edgedistill.compress.pruned import Pruned

__all__ = [
    "Batch",
    "Losses",
    "Objective",
    "Optim",
    "Player",
    "RewardOf",
    "Settings",
    "Setup",
    "Wrapper",
    "check_deterministic",
    "table_of_init",
]

RewardOf = Callable[[Tensor, Sequence[str]], Tensor]
"""x0 (N, ...) and their prompts (none where the teacher takes none) -> rewards (N,)."""


Beta: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
"""Share of a moment that stays from step to step."""


class Optim(Settings):
    """The optimizer of one player."""

    name: Literal["adamw", "muon"] = "adamw"
    """muon: the updates of matrices are made orthogonal; all other parameters, by AdamW. The
    learning rate means the same to both."""
    lr: float = Field(1e-4, gt=0, le=10)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    momentum: float = Field(0.95, ge=0, lt=1)
    """Momentum of Muon's matrix updates."""
    weight_decay: float = Field(0.0, ge=0, le=10)
    eps: float = Field(1e-8, gt=0, le=1)


@dataclass(frozen=True)
class Setup:
    """Networks and settings that a run hands to its objective.

    Attributes:
        teacher: The frozen teacher, guided as the recipe says.
        student: The trainable student, which starts as the teacher.
        spawn: Function that makes a further trainable denoiser, which starts as the teacher.
        times: The student's steps (steps + 1,), decreasing to 0, float64.
        sampler: Rule by which a step of the student lands; a key of `few_step.SAMPLERS`.
        optim: The student's optimizer settings.
        tap: Module path of features inside a net.
        example: A batch of x0 (2, ...) and its condition, for shapes.
        init: Step table of the student that `student` starts from, None if it starts as the
            teacher.
        core: Module path inside a net of the diffusers model.
        pruned: The student's core as pruned from the teacher's, None if it is as large.
        autoencoder: The teacher's autoencoder between pictures and x0; None where x0 is the data
            itself.
        scaling: Scaling between x0 and the autoencoder's latents.
        train_steps: Number of the method's steps, for methods in stages.
        time_layer: Module path inside a net of the time embedding's last linear layer.
        reward: The recipe's reward of x0, with its gradient; None if it names none.
        reuse: Rows of the student's step table, from 0, that reuse a deep state.
        reuse_layers: Layers of the last block that run in these rows; None for all of them.
        knowledge: A frozen distilled student of the same steps, from which the method also learns;
            None unless the method names one.
    """

    teacher: Denoiser | Guided
    student: Denoiser
    spawn: Callable[[], Denoiser]
    times: Tensor
    sampler: str
    optim: Optim
    tap: str
    example: tuple[Tensor, Condition]
    init: TorchStepTable | None = None
    core: str = ""
    pruned: Pruned | None = None
    autoencoder: nn.Module | None = None
    scaling: Scaling = field(default_factory=Scaling)
    train_steps: int = 1
    time_layer: str = ""
    reward: RewardOf | None = None
    reuse: tuple[int, ...] = ()
    reuse_layers: int | None = None
    knowledge: Denoiser | None = None


@dataclass(frozen=True)
class Batch:
    """Data and randomness of one update.

    Attributes:
        x0: Clean data (N, ...).
        cond: Condition of x0.
        generator: CPU randomness of this rank.
        shared: CPU randomness that is the same on every rank.
        step: Steps done in the run.
        path: Points of the teacher's ODE at the student's times, (N, steps + 1, ...): noise first,
            x0 last. None unless the method needs paths.
        prompts: The captions of x0's rows; none unless the recipe has a reward and the teacher
            takes them.
        originals: The pictures (N, channels, height, width) in [-1, 1] that were encoded to x0.
            None unless the method asks for them.
    """

    x0: Tensor
    cond: Condition
    generator: torch.Generator
    shared: torch.Generator
    step: int = 0
    path: Tensor | None = None
    prompts: Sequence[str] = ()
    originals: Tensor | None = None

    def noise(self) -> Tensor:
        """Draw standard normal noise with the shape and device of x0."""
        return torch.randn(self.x0.shape, generator=self.generator).to(self.x0)


@dataclass(frozen=True)
class Losses:
    """The loss that a player minimises, and figures to log (detached scalars)."""

    total: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)

    def plus(self, name: str, weight: float, term: Tensor, **logs: Tensor) -> Losses:
        """Return these losses with another term added and logged.

        Args:
            name: Name of the term in the log.
            weight: Weight of the term in the total.
            term: Value of the term, a scalar without the weight.
            logs: Further figures to log.
        """
        return Losses(self.total + weight * term, {**self.logs, name: term.detach(), **logs})


@dataclass(frozen=True)
class Player:
    """A network and how it trains.

    Attributes:
        name: Name of the role: student, fake_score, discriminator.
        net: Module with every parameter that this player trains.
        optim: Settings of the player's optimizer.
        every: Number of steps for one update of this player.
        start: First step at which the player may train.
        prelude: Number of first steps of the run in which the player trains at each, too.
    """

    name: str
    net: nn.Module
    optim: Optim
    every: int = 1
    start: int = 0
    prelude: int = 0

    def plays(self, step: int) -> bool:
        """Whether this player trains at `step` (0, 1, ...)."""
        if step < self.prelude:
            return True
        return step >= self.start and (step + 1) % self.every == 0


def check_deterministic(name: str, setup: Setup) -> None:
    """Raise a ValueError if steps of the student draw noise, which method `name` cannot train."""
    if setup.sampler != "ddim" and len(setup.times) > 2:
        raise ValueError(
            f"student.sampler={setup.sampler}: the steps of {name} draw no noise; "
            "choose student.sampler=ddim"
        )


def table_of_init(name: str, setup: Setup) -> TorchStepTable:
    """Return the step table of the student that method `name` starts from.

    Raises:
        ValueError: If there is no such student, or none that the method can train.
    """
    if setup.init is None:
        raise ValueError(f"method {name!r} starts from a student: set student.init=FOLDER")
    if setup.init.grows:
        raise ValueError(f"student.init: method {name!r} trains no student whose steps grow")
    if setup.init.reach:
        raise ValueError(
            f"student.init: method {name!r} trains no student whose steps use earlier ones"
        )
    if setup.init.reuses:
        raise ValueError(
            f"student.init: method {name!r} starts from a student whose steps run all blocks; "
            "name the one without reuse"
        )
    return setup.init


class Objective(ABC):
    """A method. Subclasses sit one to a file with their `Config` inside."""

    name: ClassVar[str]
    product: ClassVar[str] = "student"
    """Product of a run: a student dir, or a decoder that students may name."""
    needs_paths: ClassVar[bool] = False
    """Whether batches bring paths of the teacher, stored before the run (`data.paths`)."""
    needs_reward: ClassVar[bool] = False
    """Whether the method learns from the recipe's reward, which then adds no loss to its own."""
    single_step: ClassVar[bool] = False
    """Whether the method's students take one step, and no more."""
    searches: ClassVar[bool] = False
    """Whether there is anything for `search` to find."""
    own_coefficients: ClassVar[bool] = False
    """Whether the method's step table is one that no diffusers scheduler walks."""
    compiles: ClassVar[bool] = True
    """Whether torch.compile can compile the networks that the method calls."""
    reuses: ClassVar[bool] = False
    """Whether steps of the method's students reuse deep blocks (`student.reuse`)."""
    learns_from_start: ClassVar[bool] = False
    """Whether the method learns from, or is tied to, the student at the start of the run."""
    restarts: ClassVar[bool] = False
    """Whether the method sets the student's weights itself where a stage begins."""
    Config: ClassVar[type[Settings]]
    """Hyperparameters, with the paper's defaults."""

    @classmethod
    def wants_originals(cls, config: Any) -> tuple[str, str] | None:
        """Return the choice of a `Config` that asks for pictures that x0 was encoded from.

        None if it asks for none; else that choice, and the one that does without, as KEY=VALUE.
        """
        return None

    @classmethod
    def wants_knowledge(cls, config: Any) -> str | None:
        """Return the folder of the distilled student that a `Config` names to learn from.

        None if it names none.
        """
        return None

    @abstractmethod
    def __init__(self, config: Any, setup: Setup) -> None:
        """Build the roles the method needs; `config` is a `Config` of the subclass."""

    @abstractmethod
    def players(self) -> list[Player]:
        """Return the players, in the order in which they train within a step."""

    @abstractmethod
    def loss(self, player: str, batch: Batch) -> Losses:
        """Compute the loss of `player` on this batch."""

    def search(self, batch: Batch) -> None:  # noqa: B027  most methods train all they need
        """Find what needs no training, from the run's first batch; called before `search_step`.

        A resumed run calls it again with the same batch, so that nothing of it is kept.
        """

    def search_step(self) -> int:
        """Return the step (0, 1, ...) before which the loop calls `search`."""
        return 0

    def started(self, step: int) -> None:  # noqa: B027  most methods train in one stage
        """Change weights where a stage of the method begins.

        The loop calls it once before each step (0, 1, ...), whatever players take turns in it and
        however many batches they have. A run resumed at a step calls it again for that step.
        """

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        """Return the x0 (N, ...) that each role predicts from one noised sample of the student.

        They are shown in sample grids; empty where a method has no such roles.
        """
        return {}

    def updated(self, player: str) -> None:  # noqa: B027  most methods follow nobody
        """Update what follows a player, such as EMA targets, after `player`'s optimizer step."""

    def followers(self) -> dict[str, nn.Module]:
        """Return networks that no player trains but checkpoints hold, such as EMA targets."""
        return {}

    def finished(self, student: Denoiser) -> Denoiser:
        """Return the student to save: the trained one, without what only training needs."""
        return student

    def table(self) -> TorchStepTable | None:
        """Return the student's step table, where it is not that of its times."""
        return None

    def boundary(self) -> Boundary | None:
        """Return the consistency boundary that the student was trained with, if any."""
        return None

    def step_times(self) -> list[Tensor]:
        """Return the times (steps + 1,) of each number of steps that the one student is for.

        Empty means its own steps alone.
        """
        return []


class Wrapper(Objective):
    """A method around another, to which all that is not overridden is delegated.

    Whatever `Objective` defines is delegated by name: a hook left out here would be taken from
    `Objective`, and the method's own would never be called.
    """

    FLAGS = (
        "name",
        "product",
        "needs_paths",
        "needs_reward",
        "single_step",
        "searches",
        "own_coefficients",
        "compiles",
        "reuses",
        "learns_from_start",
        "restarts",
        "wants_knowledge",
        "wants_originals",
    )
    """Class attributes that are taken from the method inside."""
    name = "wrapper"
    Config = Settings

    def __init__(self, method: Objective) -> None:
        self.method = method
        for flag in self.FLAGS:
            setattr(self, flag, getattr(method, flag))

    def players(self) -> list[Player]:
        return self.method.players()

    def loss(self, player: str, batch: Batch) -> Losses:
        return self.method.loss(player, batch)

    def search(self, batch: Batch) -> None:
        self.method.search(batch)

    def search_step(self) -> int:
        return self.method.search_step()

    def started(self, step: int) -> None:
        self.method.started(step)

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        return self.method.predictions(batch)

    def updated(self, player: str) -> None:
        self.method.updated(player)

    def followers(self) -> dict[str, nn.Module]:
        return self.method.followers()

    def finished(self, student: Denoiser) -> Denoiser:
        return self.method.finished(student)

    def table(self) -> TorchStepTable | None:
        return self.method.table()

    def boundary(self) -> Boundary | None:
        return self.method.boundary()

    def step_times(self) -> list[Tensor]:
        return self.method.step_times()
