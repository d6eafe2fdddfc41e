"""What a distillation method is: players, and a loss for each.

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
from edgedistill.diffusion.step_table import Boundary, TorchStepTable
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
    """What a run hands to its objective.

    Attributes:
        teacher: The frozen teacher, guided as the recipe says.
        student: Trainable, starts as the teacher.
        spawn: Makes a further trainable denoiser that starts as the teacher.
        times: The student's steps (steps + 1,), decreasing to 0, float64.
        sampler: How the student's steps land; a key of `sampling.SAMPLERS`.
        optim: The student's optimizer settings.
        tap: Module path of features inside a net.
        example: One x0 batch (2, ...) and its condition, for shapes.
        init: Step table of the student that `student` starts from, None if it starts as the
            teacher.
        core: Module path inside a net of the diffusers model.
        pruned: How the student's core was made from the teacher's, None if it is as large.
        autoencoder: The teacher's, between pictures and x0; None where x0 is the data itself.
        scaling: Between x0 and its latents.
        train_steps: Steps that the method has, for methods in stages.
        time_layer: Module path inside a net of the time embedding's last linear layer.
        reward: What the recipe's reward says of x0, with its gradient; None if it names none.
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


@dataclass(frozen=True)
class Batch:
    """Data and randomness of one turn.

    Attributes:
        x0: Clean data (N, ...).
        cond: Its condition.
        generator: CPU randomness of this rank.
        shared: CPU randomness that is the same on every rank.
        step: Steps done in the run.
        path: Where the teacher's ODE is at the student's times, (N, steps + 1, ...): noise first,
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
        """Standard normal, shaped and placed as x0."""
        return torch.randn(self.x0.shape, generator=self.generator).to(self.x0)


@dataclass(frozen=True)
class Losses:
    """What a player minimises, and figures to log (detached scalars)."""

    total: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)

    def plus(self, name: str, weight: float, term: Tensor, **logs: Tensor) -> Losses:
        """These losses and another term (a scalar) at its weight, logged by its name.

        Args:
            name: Its name.
            weight: Its weight.
            term: Its value, unweighted.
            logs: Further figures to log.
        """
        return Losses(self.total + weight * term, {**self.logs, name: term.detach(), **logs})


@dataclass(frozen=True)
class Player:
    """A network and how it trains.

    Attributes:
        name: Its role: student, fake_score, discriminator.
        net: Holds every parameter this player moves.
        optim: Its optimizer settings.
        every: It plays on every so many-th step.
        start: Its first step.
        prelude: It also plays on each of the first so many steps.
    """

    name: str
    net: nn.Module
    optim: Optim
    every: int = 1
    start: int = 0
    prelude: int = 0

    def plays(self, step: int) -> bool:
        """Whether it is this player's turn at `step` (0, 1, ...)."""
        if step < self.prelude:
            return True
        return step >= self.start and (step + 1) % self.every == 0


def check_deterministic(name: str, setup: Setup) -> None:
    """ValueError if several steps of the student would draw noise, which `name` does not train."""
    if setup.sampler != "ddim" and len(setup.times) > 2:
        raise ValueError(
            f"student.sampler={setup.sampler}: the steps of {name} draw no noise; "
            "choose student.sampler=ddim"
        )


def table_of_init(name: str, setup: Setup) -> TorchStepTable:
    """Steps of the student that `name` starts from; ValueError without one that it can train."""
    if setup.init is None:
        raise ValueError(f"method {name!r} starts from a student: set student.init=FOLDER")
    if setup.init.grows:
        raise ValueError(f"student.init: method {name!r} trains no student whose steps grow")
    return setup.init


class Objective(ABC):
    """A method. Subclasses sit one to a file with their `Config` inside."""

    name: ClassVar[str]
    product: ClassVar[str] = "student"
    """What the run makes: a student dir, or a decoder that students may name."""
    needs_paths: ClassVar[bool] = False
    """Whether batches bring paths of the teacher, stored before the run (`data.paths`)."""
    needs_reward: ClassVar[bool] = False
    """Whether the recipe's reward is what it learns from, and no loss beside its own."""
    single_step: ClassVar[bool] = False
    """Whether its students take one step, and no more."""
    searches: ClassVar[bool] = False
    """Whether there is anything for `search` to find."""
    own_coefficients: ClassVar[bool] = False
    """Whether its step table is one that no diffusers scheduler walks."""
    restarts: ClassVar[bool] = False
    """Whether it sets the student's weights itself where a stage begins."""
    Config: ClassVar[type[Settings]]
    """Hyperparameters, with the paper's defaults."""

    @classmethod
    def wants_originals(cls, config: Any) -> tuple[str, str] | None:
        """Whether batches bring the pictures that x0 was encoded from; of a `Config`.

        The choice that asks for them, and the one that does without, as KEY=VALUE.
        """
        return None

    @abstractmethod
    def __init__(self, config: Any, setup: Setup) -> None:
        """Build the roles the method needs; `config` is a `Config` of the subclass."""

    @abstractmethod
    def players(self) -> list[Player]:
        """Who trains, in the order of their turns within a step."""

    @abstractmethod
    def loss(self, player: str, batch: Batch) -> Losses:
        """What `player` minimises on this batch."""

    def search(self, batch: Batch) -> None:  # noqa: B027  most methods train all they need
        """Find what needs no training, from the run's first batch; called before `search_step`.

        A resumed run calls it again with the same batch, so that nothing of it is kept.
        """

    def search_step(self) -> int:
        """The step (0, 1, ...) before which the loop calls `search`."""
        return 0

    def started(self, step: int) -> None:  # noqa: B027  most methods train in one stage
        """Change weights where a stage of the method begins.

        The loop calls it once before each step (0, 1, ...), whatever players take turns in it and
        however many batches they have. A run resumed at a step calls it again for that step.
        """

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        """What each role makes of one noised sample of the student: role -> x0 (N, ...).

        To look at; empty where a method has no such roles.
        """
        return {}

    def updated(self, player: str) -> None:  # noqa: B027  most methods follow nobody
        """Called after `player`'s optimizer stepped: targets that follow a player."""

    def followers(self) -> dict[str, nn.Module]:
        """Networks with state that no player trains, such as EMA targets; checkpointed."""
        return {}

    def finished(self, student: Denoiser) -> Denoiser:
        """What is kept of the trained student: itself, unless it had more to learn with."""
        return student

    def table(self) -> TorchStepTable | None:
        """The student's step table, where it is not that of its times."""
        return None

    def boundary(self) -> Boundary | None:
        """The consistency boundary the student was trained with, for its step table."""
        return None


class Wrapper(Objective):
    """A method around another, which it is in all that it does not override.

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
        "restarts",
        "wants_originals",
    )
    """What a method says of its class."""
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
