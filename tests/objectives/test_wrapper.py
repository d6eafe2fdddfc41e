"""A wrapped method is the method: its flags, its hooks, and its search."""

import inspect
from typing import Any

import pytest
import torch
from oracles import Gaussian
from torch import nn

from edgedistill.compress.plan import Plan
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.networks.planar import PlanarNet
from edgedistill.objectives.base import Batch, Losses, Objective, Optim, Player, Setup, Wrapper
from edgedistill.objectives.compression.elastic import Elastic
from edgedistill.objectives.compression.shrink import SizeFirst
from edgedistill.objectives.prelude import Prelude
from edgedistill.objectives.solvers.oss import OSS
from edgedistill.training.config import Train
from edgedistill.training.trainer import Hooks, Trainer

DATA = Gaussian([0.7, -0.4], 0.1, Trig())
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "loss": ("student", "a batch"),
    "predictions": ("a batch",),
    "search": ("a batch",),
    "started": (7,),
    "updated": ("student",),
    "wants_knowledge": ("a config",),
    "wants_originals": ("a config",),
    "finished": ("a student",),
}
"""What each hook is called with; the others take nothing."""


class Answering:
    """Answers every flag and every hook with its own name and what it was called with."""

    def __getattribute__(self, name: str) -> Any:
        if not callable(getattr(Objective, name, None)):
            return name, "flag"
        return lambda *arguments: (name, arguments)


def public() -> list[str]:
    """Every public attribute of `Objective`, and the annotations that have no value."""
    names = {*dir(Objective), *inspect.get_annotations(Objective)}
    return sorted(n for n in names if not n.startswith("_") and n != "Config")


@pytest.mark.parametrize("name", public())
def test_a_wrapper_delegates_all_that_an_objective_defines(name):
    found = getattr(Wrapper(Answering()), name)
    if not callable(getattr(Objective, name, None)):
        assert found == (name, "flag")
        return
    arguments = ARGUMENTS.get(name, ())
    wanted = (name, arguments)
    if name in ("updated", "search", "started"):  # they return nothing, and must arrive
        arrived = []
        wrapper = Wrapper(Answering())
        wrapper.method = type("Noting", (), {name: lambda self, *given: arrived.append(given)})()
        getattr(wrapper, name)(*arguments)
        assert arrived == [arguments]
    else:
        assert found(*arguments) == wanted


@pytest.mark.parametrize("kind", [Wrapper, Prelude, SizeFirst, Elastic])
def test_a_wrapped_methods_flags_are_its_own(kind):
    class Odd(OSS):
        product = "decoder"
        needs_paths = needs_reward = single_step = own_coefficients = restarts = True

        @classmethod
        def wants_originals(cls, config):
            return "a=1", "a=2"

    method, setup = Odd(OSS.Config(search_steps=10), setup_of(2)), setup_of(2)
    others = {Prelude: (method, 3), SizeFirst: (method, 3, None), Elastic: (setup, {})}
    wrapped = kind(method, *others.get(kind, ()))
    for flag in Wrapper.FLAGS[:-1]:
        assert getattr(wrapped, flag) == getattr(method, flag), flag
    assert wrapped.wants_originals(None) == ("a=1", "a=2")


def setup_of(steps: int) -> Setup:
    exact = DATA.denoiser()
    return Setup(
        teacher=exact,
        student=exact,
        spawn=lambda: exact,
        times=time_grid(Trig(), steps),
        sampler="ddim",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
        train_steps=6,
    )


class Points:
    """Rows to draw a batch from."""

    def draw(self, count, generator):
        return torch.randn(count, 2, generator=generator), {}


class Lesson(Objective):
    """Moves the student's one weight, and notes when it and the search have had their turns."""

    name = "lesson"

    def __init__(self, student: Denoiser) -> None:
        self.student, self.turns = student, []

    def players(self):
        return [Player("student", self.student, Optim(lr=0.1))]

    def loss(self, player, batch):
        self.turns.append(batch.step)
        return Losses((self.student.net.weight - 3).square().sum())


class Moved(nn.Module):
    """The exact denoiser plus a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, t):
        return DATA.posterior(x, t) + 0 * self.weight


class Watched(OSS):
    """Notes what the student's weight was when the search came."""

    def search(self, batch):
        self.weights = [*getattr(self, "weights", []), self.student.net.weight.item()]
        super().search(batch)


def trained(folder, first: int, steps: int = 6) -> tuple[Trainer, Watched, Lesson]:
    given = setup_of(2)
    student = given.student.with_net(Moved())
    setup = Setup(**{**vars(given), "student": student, "train_steps": steps})
    method = Watched(OSS.Config(search_steps=10), setup)
    lesson = Lesson(student)
    whole = SizeFirst(method, lesson, first, None)
    hooks = Hooks(lambda step, figures: None, lambda net, step: None)
    train = Train(steps=steps, batch_size=64, checkpoint_every=4)
    trainer = Trainer(whole, Points(), train, folder, hooks)
    trainer.resume()
    trainer.fit()
    return trainer, method, lesson


@pytest.mark.parametrize("first", [0, 3, 6])
def test_a_wrapped_search_is_made_once_after_what_comes_first(first, tmp_path):
    trainer, method, lesson = trained(tmp_path, first)
    assert lesson.turns == list(range(first))
    (weight,) = method.weights
    assert weight == method.student.net.weight.item()  # the lesson was over
    assert (weight > 0) == (first > 0)
    assert not torch.equal(method.times, time_grid(Trig(), 2))
    alone = OSS(OSS.Config(search_steps=10), setup_of(2))
    alone.search(trainer._batch(0, 0, 0))
    assert trainer.objective.table() == alone.table()


def test_a_resumed_run_searches_again_to_the_same_table(tmp_path):
    first, _, _ = trained(tmp_path, 2)
    again, method, lesson = trained(tmp_path, 2)
    assert lesson.turns == []
    assert len(method.weights) == 1
    assert again.objective.table() == first.objective.table()


def test_a_search_within_depths_is_made(tmp_path):
    given = setup_of(2)
    method = OSS(OSS.Config(search_steps=10), given)
    whole = Elastic(method, given, {})
    assert whole.searches
    generator = torch.Generator().manual_seed(0)
    batch = Batch(torch.zeros(64, 2), {}, generator, generator)
    whole.search(batch)
    assert whole.table() == method.table()
    assert not torch.equal(method.times, time_grid(Trig(), 2))


def test_depths_are_told_of_each_step_once():
    begun = []

    class Begun(Lesson):
        def started(self, step):
            begun.append((self, step))

    net = PlanarNet(width=8, depth=1)
    given = setup_of(1)
    given = Setup(**{**vars(given), "student": given.student.with_net(net)})
    method = Begun(given.student)
    plans = {"small": Plan(dict(net.config), {}), "least": Plan(dict(net.config), {})}
    Elastic(method, given, plans).started(5)
    assert begun == [(method, 5)]
