"""A real objective as small as can be: players learn y = 2 x, from rows of a table."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from edgedistill.objectives.base import Batch, Losses, Objective, Optim, Player, Settings
from edgedistill.training.config import Train
from edgedistill.training.trainer import Hooks, Trainer


class Rows:
    """Rows of a table in order, so that what a batch holds is known."""

    def __init__(self) -> None:
        self.table = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        self.place = 0

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        index = torch.arange(self.place, self.place + count) % len(self.table)
        self.place += count
        return self.table[index], {}


class Double(Objective):
    """Players learn y = 2 x; `spoil` multiplies their loss."""

    name = "double"
    Config = Settings

    def __init__(self, *players: Player) -> None:
        self._players = list(players)
        self.turns: list[str] = []
        self.draws: list[tuple[float, float]] = []
        self.followed: list[str] = []
        self.spoil: Callable[[int], float] = lambda turn: 1.0

    def players(self) -> list[Player]:
        return self._players

    def loss(self, player: str, batch: Batch) -> Losses:
        net = next(p.net for p in self._players if p.name == player)
        factor = self.spoil(len(self.turns))
        self.turns.append(player)
        self.draws.append(
            (
                torch.rand((), generator=batch.generator).item(),
                torch.rand((), generator=batch.shared).item(),
            )
        )
        loss = factor * (net(batch.x0) - 2 * batch.x0).square().mean()
        return Losses(loss, {"twice": 2 * loss.detach()})

    def updated(self, player: str) -> None:
        self.followed.append(player)


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 3)


def trainer_of(folder: Path, objective: Double, progress=None, **config) -> Trainer:
    config = {"steps": 6, "batch_size": 4, "log_every": 1, **config}
    hooks = Hooks(progress or (lambda step, figures: None), lambda net, step: None)
    return Trainer(objective, Rows(), Train(**config), folder, hooks)


def student(lr: float = 0.1, **turns) -> Player:
    return Player("student", linear(), Optim(lr=lr), **turns)


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]
