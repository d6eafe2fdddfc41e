"""What tests of score matching share: Gaussian students, and batches of their data."""

from dataclasses import replace

import torch
from oracles import Affine, Gaussian
from torch import Tensor, nn

from edgedistill.diffusion.denoiser import Denoiser, Guided
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import one_step_x0, time_grid
from edgedistill.objectives.base import Batch, Objective, Optim, Setup

DATA = Gaussian([0.7, -0.4], 0.5, Trig())
FAR = [1.5, -1.0]


class Located(nn.Module):
    """A step to mean + scale x, both trainable."""

    def __init__(self, mean: list[float], scale: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.mean + self.scale * x


def located(mean: list[float], scale: float) -> Denoiser:
    return Denoiser(Located(mean, scale), Trig(), Prediction.X0)


def setup_of(student, fake=None, *, steps=1, sampler="renoise", teacher=None) -> Setup:
    return Setup(
        teacher=teacher or DATA.denoiser(),
        student=student,
        spawn=lambda: fake or DATA.denoiser(),
        times=time_grid(Trig(), steps),
        sampler=sampler,
        optim=Optim(),
        tap="blocks.1",
        example=(torch.zeros(2, 2), {}),
        train_steps=100,
    )


def method(kind, student, fake=None, *, steps=1, sampler="renoise", teacher=None, **config):
    setup = setup_of(student, fake, steps=steps, sampler=sampler, teacher=teacher)
    return kind(kind.Config(**config), setup)


def batch(count: int = 4096, seed: int = 0, shared: int = 0, step: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x0 = DATA.draw(count, generator)
    return Batch(x0, {}, generator, torch.Generator().manual_seed(shared), step)


def stepped(objective: Objective, given: Batch) -> Tensor:
    """Gradient of the student's turn in its mean."""
    torch.autograd.backward(objective.loss("student", given).total)
    return objective.student.net.mean.grad


def seed_of(index: int, steps: int) -> int:
    """A shared seed for which the rollout is asked at this step."""
    return next(
        seed
        for seed in range(200)
        if torch.randint(steps, (), generator=torch.Generator().manual_seed(seed)) == index
    )


def exact_steps(gain: float = 1.0) -> Denoiser:
    """A student of two deterministic steps, at 1 and 0.5, on the exact path."""

    def x0(x, t):
        t = t.double()
        s = torch.where(t > 0.5, 0.5, 0.0).to(t)
        return one_step_x0(Trig(), x, DATA.flow(x.double(), t, s), t, s).to(x)

    return Denoiser(Affine(x0, gain), Trig(), Prediction.X0)


class Conditioned(nn.Module):
    """The exact denoiser, moved by what `y` says."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return DATA.posterior(x, t) + y


def guided(scale: float) -> Guided:
    return Guided(Denoiser(Conditioned(), Trig(), Prediction.X0), {"y": torch.zeros(1, 1)}, scale)


class TimeConditioned(Located):
    """Takes a condition, and minds nothing of it."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, t)


def told(given: Batch) -> Batch:
    return replace(given, cond={"y": torch.full((len(given.x0), 1), 0.3)})


class Blocks(nn.Module):
    """An exact denoiser with a module to tap."""

    def __init__(self, law: Gaussian) -> None:
        super().__init__()
        self.law, self.blocks = law, nn.ModuleList([nn.Identity(), nn.Linear(2, 4)])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.blocks[1](x)
        return self.law.posterior(x, t)


def pathed(count: int = 256, steps: int = 1, step: int = 0, shared: int = 0) -> Batch:
    """A batch with the exact paths of the teacher at the student's times."""
    given = batch(count, shared=shared, step=step)
    times, noise = time_grid(Trig(), steps), given.noise().double()
    points = [DATA.flow(noise, times[:1], t[None]) for t in times]
    path = torch.stack(points, dim=1).float()
    return replace(given, x0=path[:, -1], path=path)


class Shown:
    """A tap that notes the condition of the call that its features come from."""

    def __init__(self, net: nn.Module, shown: list[Tensor]) -> None:
        self.shown = shown
        net.register_forward_hook(self.note, with_kwargs=True)

    def note(self, net, args, kwargs, output) -> None:
        self.last = kwargs["y"], output

    def take(self) -> Tensor:
        self.shown.append(self.last[0])
        return self.last[1].mean(1, keepdim=True)


def judging(objective) -> list[Tensor]:
    """Give it a discriminator; the conditions under which that will judge, as they come."""
    shown: list[Tensor] = []
    objective.config = objective.config.model_copy(update={"gan_weight": 0.1})
    fake_score = objective.fake_score
    fake_score.tap = Shown(fake_score.denoiser.net, shown)
    fake_score.head = nn.Identity()
    return shown
