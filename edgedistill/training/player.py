"""A player in the training loop: its loss as a module, its optimizer, its skipped updates."""

from __future__ import annotations

from accelerate import Accelerator, DistributedType
from torch import nn

from edgedistill.objectives.base import Batch, Losses, Objective, Player
from edgedistill.training import optimizers

__all__ = ["LossModule", "TrainedPlayer"]

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)
"""Ways in which accelerate may shard a network."""


class LossModule(nn.Module):
    """A player's loss as a module, so that DDP sees every use of the player's parameters."""

    def __init__(self, player: Player, objective: Objective) -> None:
        super().__init__()
        self.net = player.net
        self._loss = objective.loss
        self._name = player.name

    def forward(self, batch: Batch) -> Losses:
        return self._loss(self._name, batch)


class TrainedPlayer:
    """A player in the loop: its loss module, optimizer and counters."""

    def __init__(
        self,
        index: int,
        player: Player,
        objective: Objective,
        accelerator: Accelerator,
        moments: str,
    ) -> None:
        self.index, self.player = index, player
        self.params = [p for p in player.net.parameters() if p.requires_grad]
        if player.optim.name == "muon" and accelerator.distributed_type in SHARDED:
            raise ValueError(
                f"{player.name}: optim.name=muon needs whole matrices, which FSDP and DeepSpeed "
                "cut up; choose adamw"
            )
        self.raw = optimizers.make(player.net, player.optim, moments)
        self.loss_module, self.optimizer = accelerator.prepare(
            LossModule(player, objective), self.raw
        )
        self.bad = 0
        """Number of updates skipped in a row, up to now."""
        self.turns = self.skipped = 0

    def count(self, finite: bool) -> None:
        """Record whether an update was finite; one that is not finite is skipped."""
        self.turns, self.skipped = self.turns + 1, self.skipped + (not finite)
        self.bad = 0 if finite else self.bad + 1
