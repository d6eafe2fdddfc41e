"""Guidance scales that a student is conditioned on during training."""

from __future__ import annotations

import torch
from torch import Tensor

from edgedistill.diffusion.denoiser import Condition, Denoiser, Guided
from edgedistill.diffusion.tensors import expand_like
from edgedistill.diffusion.times import stratified
from edgedistill.networks.two_times import TwoTimes
from edgedistill.objectives.base import Batch, Setup

__all__ = ["Scales"]


class Scales:
    """Guidance scales that a student is conditioned on; it ends with the teacher's.

    The student's network gets a second time input, which is used for the scale.

    Args:
        name: Name of the method, for errors.
        setup: Setup, whose student's network is replaced.
        low: Smallest scale.
        high: Largest scale.

    Raises:
        ValueError: If the teacher has no guidance, or a scale that is not between the two.
    """

    def __init__(self, name: str, setup: Setup, low: float, high: float) -> None:
        teacher = setup.teacher
        if not isinstance(teacher, Guided) or teacher.scale == 1:
            raise ValueError(
                f"method {name!r} needs a teacher with a null condition and a scale to keep; "
                "choose teacher.guidance above 1"
            )
        if not low <= teacher.scale <= high:
            raise ValueError(
                f"teacher.guidance={teacher.scale:g}: the scale to keep is not among those "
                f"trained, {low:g} to {high:g}"
            )
        self.teacher, self.low, self.high, self.example = teacher, low, high, setup.example
        times = setup.student.schedule.net_time(setup.times[:-1].double().cpu())
        kept = torch.full_like(times, self.normalized(torch.tensor(teacher.scale)).item())
        steps = torch.stack([times, kept], dim=1)
        net = TwoTimes(setup.student.net, setup.time_layer, steps)
        setup.student.net = net.to(setup.example[0].device)

    def normalized(self, scale: Tensor) -> Tensor:
        """Return a scale as the network reads it, in [0, 1]."""
        return (scale - self.low) / (self.high - self.low)

    def tell(self, cond: Condition, scale: Tensor) -> Condition:
        """Add the scales (N,) to a condition."""
        return {**cond, "s": self.normalized(scale)}

    def draw(self, batch: Batch) -> Tensor:
        """Draw a scale for each row, stratified, (N,)."""
        scale = stratified(len(batch.x0), batch.generator, self.low, self.high)
        return scale.to(batch.x0.device)

    def guided(self, x_t: Tensor, t: Tensor, cond: Condition, scale: Tensor) -> Tensor:
        """Return the teacher's x0 at each row's scale, (N, ...)."""
        null, wanted = self.teacher.both(x_t, t, cond)
        weight = expand_like(scale, x_t).to(x_t)
        return self.teacher.clip_x0(torch.lerp(null, wanted, weight), t)

    def kept(self, student: Denoiser) -> Denoiser:
        """Return the student at the teacher's scale, with its original network architecture."""
        net = student.net
        assert isinstance(net, TwoTimes)
        return student.with_net(net.folded(*self.example))
