"""A network conditioned on two times: the time t of its input and the time s of its target.

During training, a small network adds features of s to the output of the time embedding's last
layer. A finished student visits few times, each with one s, so the addition is folded exactly into
that layer's weights. The result has the teacher's own architecture, reloads in diffusers and
exports as any other (`TwoTimes.folded`).
"""

from __future__ import annotations

import copy
import difflib
import math

import torch
from torch import Tensor, nn

from edgedistill.diffusion.denoiser import Condition, Denoiser
from edgedistill.networks.adapters import Role

__all__ = ["TwoTimes", "steps_of"]

FREQUENCIES = 4


class TimeConditionedLinear(nn.Module):
    """A linear layer that adds a function of s to its output.

    Attributes:
        s: Target time of each row of the call, (N,); set before each call.
    """

    rates: Tensor

    def __init__(self, linear: nn.Linear, width: int = 128) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("rates", 0.5 * math.pi * torch.arange(1, FREQUENCIES + 1))
        last = nn.Linear(width, linear.out_features)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.embed = nn.Sequential(nn.Linear(2 * FREQUENCIES + 1, width), nn.SiLU(), last)
        self.embed.to(linear.weight)
        self.s = torch.zeros(1)

    def of(self, s: Tensor) -> Tensor:
        """Return the added vectors for s (N,): (N, out)."""
        s = s.to(self.linear.weight).reshape(-1, 1)
        phase = s * self.rates.to(s)
        added: Tensor = self.embed(torch.cat([s, phase.sin(), phase.cos()], dim=-1))
        return added

    def forward(self, h: Tensor) -> Tensor:
        shifted: Tensor = self.linear(h) + self.of(self.s)
        return shifted


class TwoTimes(nn.Module):
    """A network net(x, time, s=s, **cond); by default s is that of the step nearest in time.

    At first it equals the network inside.

    Args:
        net: Network called as net(x, time, **cond).
        path: Path in `net` of the time embedding's last linear layer.
        steps: The student's steps: (network time, s) of each, (steps, 2).
    """

    steps: Tensor

    def __init__(self, net: nn.Module, path: str, steps: Tensor) -> None:
        super().__init__()
        if isinstance(net, Role):
            raise ValueError(
                "train.roles=adapters: a LoRA has no place for what this method adds to the time; "
                "choose train.roles=copies"
            )
        if not path:
            raise ValueError(
                "this teacher's network has no one layer for the time to be told more"
            )
        linears = {name: m for name, m in net.named_modules() if isinstance(m, nn.Linear)}
        if path not in linears:
            near = ", ".join(difflib.get_close_matches(path, linears, 3, 0.3))
            raise ValueError(f"no linear layer {path!r} in {type(net).__name__}; nearest: {near}")
        self.net, self.path = net, path
        net.set_submodule(path, TimeConditionedLinear(linears[path]))
        self.register_buffer("steps", steps.float())

    @property
    def time_layer(self) -> TimeConditionedLinear:
        """The layer that s is added to."""
        layer = self.net.get_submodule(self.path)
        assert isinstance(layer, TimeConditionedLinear)
        return layer

    def forward(self, x: Tensor, time: Tensor, s: Tensor | None = None, **cond: Tensor) -> Tensor:
        if s is None:
            nearest = (time.reshape(-1, 1) - self.steps[:, 0]).abs().argmin(1)
            s = self.steps[nearest, 1]
        self.time_layer.s = s
        result: Tensor = self.net(x, time, **cond)
        return result

    @torch.no_grad()
    def folded(self, x: Tensor, cond: Condition) -> nn.Module:
        """Return a plain network that equals this one at the times of the steps.

        The layer gets the least change of its weights that adds the right vector at each step's
        time. Its input must depend on nothing but the time.

        Args:
            x: x of an example call, one row or more.
            cond: Condition of that call.
        """
        inputs: list[Tensor] = []
        hook = self.time_layer.register_forward_pre_hook(
            lambda _, args: inputs.append(args[0][:1])
        )
        for time, s in self.steps:
            self(x[:1], time.expand(1), s.expand(1), **{k: v[:1] for k, v in cond.items()})
        hook.remove()
        added = torch.cat([self.time_layer.of(s.reshape(1)) for s in self.steps[:, 1]]).double()
        change = torch.linalg.lstsq(
            torch.cat(inputs).double().cpu(), added.cpu(), driver="gelsd"
        ).solution
        net = copy.deepcopy(self.net)
        layer = net.get_submodule(self.path)
        assert isinstance(layer, TimeConditionedLinear)
        linear = layer.linear
        linear.weight += change.T.to(linear.weight)
        net.set_submodule(self.path, linear)
        return net


def steps_of(denoiser: Denoiser, times: Tensor, *, to_end: bool = False) -> Tensor:
    """Return the `TwoTimes.steps` of a student that visits `times` (steps + 1,).

    Args:
        denoiser: The student.
        times: Times that decrease to 0.
        to_end: Whether each step leads to time 0, as samplers with fresh noise need it; by default
            each leads to the next time.
    """
    t = times[:-1].double().cpu()
    s = torch.zeros_like(t) if to_end else times[1:].double().cpu()
    return torch.stack([denoiser.schedule.net_time(t), s], dim=1)
