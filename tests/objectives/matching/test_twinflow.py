"""TwinFlow: twins that agree are at rest."""

import torch
from scored import DATA, batch

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.networks.planar import PlanarNet
from edgedistill.objectives.base import Optim, Setup
from edgedistill.objectives.matching.twinflow import TwinFlow


def twins(steps: int = 2, **config) -> TwinFlow:
    torch.manual_seed(0)
    setup = Setup(
        teacher=DATA.denoiser(),
        student=Denoiser(PlanarNet(width=32, depth=2), Trig(), Prediction.V),
        spawn=lambda: DATA.denoiser(),
        times=time_grid(Trig(), steps),
        sampler="renoise",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
        time_layer="embed_time.2",
    )
    return TwinFlow(TwinFlow.Config(**config), setup)


def test_the_twins_learn_to_tell_samples_from_data():
    """A few steps of their losses alone; the student's own part is left where it is."""
    objective = twins(steps=1, regression_weight=0.0, matching_weight=1e-9)
    optim = torch.optim.Adam(objective.student.parameters(), 3e-3)
    for step in range(150):
        optim.zero_grad()
        torch.autograd.backward(objective.loss("student", batch(256, step)).total)
        optim.step()
    t = torch.full((2000,), 0.6).double()
    given = batch(2000, 999)
    with torch.no_grad():
        x0 = objective.rollout(given).x0
        x_t = objective.student.noised(x0, t, given.noise())
        fake, real = (objective.predicted(x_t, t, sign, {}) for sign in (-1, 1))
    true = DATA.posterior(x_t, t)
    assert (real - true).square().mean() < 0.3 * (fake - true).square().mean()
    assert (fake - x0).square().mean() < (real - x0).square().mean()


def test_twins_that_agree_do_not_move_the_student():
    """They start alike, whatever they are told."""
    objective = twins(regression_weight=0.0)
    given = batch(64)
    assert objective.loss("student", given).logs["matching"] < 1e-6


def test_the_finished_twin_is_the_student_alone():
    objective = twins()
    last = objective.student.net.time_layer.embed[-1]
    torch.nn.init.normal_(last.weight, std=0.1)
    kept = objective.finished(objective.student)
    x = torch.randn(16, 2)
    for t in objective.times[:-1]:
        torch.testing.assert_close(
            kept(x, t, {}), objective.student(x, t, {}), atol=1e-4, rtol=1e-4
        )
    assert isinstance(kept.net, PlanarNet)
