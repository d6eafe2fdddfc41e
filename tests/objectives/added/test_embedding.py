"""The embedding loss: discrepancies that are known, and students with exact samples."""

import pytest
import torch
from oracles import Affine, Gaussian

from edgedistill import recipes
from edgedistill.diffusion.boundary import lcm_boundary
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.objectives.added.embedding import Embedded, Embedding, features, mmd
from edgedistill.objectives.base import Batch, Losses, Objective, Optim, Player, Setup
from edgedistill.runs.run import Run

DATA = Gaussian([0.7, -0.4], 0.5, Trig())


class Inner(Objective):
    """A method whose loss is 3, with a player besides the student."""

    name = "inner"

    def __init__(self, student, boundary=None):
        self.student, self.edge = student, boundary

    def players(self):
        return [Player("student", self.student, Optim()), Player("other", self.student, Optim())]

    def loss(self, player, batch):
        return Losses(torch.tensor(3.0), {"inner": torch.tensor(3.0)})

    def boundary(self):
        return self.edge


def method(data=DATA, *, boundary=None, steps=3, **config):
    student = Denoiser(Affine(data.consistency), Trig(), Prediction.X0)
    setup = Setup(
        teacher=DATA.denoiser(),
        student=student,
        spawn=DATA.denoiser,
        times=time_grid(Trig(), steps),
        sampler="renoise",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
    )
    return Embedded(Inner(student, boundary), Embedding(**config), setup)


def batch(count=512, seed=0, shared=None):
    generator = torch.Generator().manual_seed(seed)
    x0 = DATA.draw(count, generator)
    own = torch.Generator().manual_seed(seed if shared is None else shared)
    return Batch(x0, {}, generator, own)


def test_of_two_points_each_it_is_the_products_of_those_that_differ():
    u, v, x, y = torch.randn(4, 5).unbind()
    expected = u @ v + x @ y - 0.5 * (u + v) @ (x + y)
    found = mmd(torch.stack([u, v]), torch.stack([x, y]))
    torch.testing.assert_close(found, expected)


def test_it_is_the_distance_of_the_means_without_bias():
    generator = torch.Generator().manual_seed(0)
    shift = torch.tensor([0.3, -0.2, 0.1])
    for apart in (torch.zeros(3), shift):
        draws = torch.randn(20_000, 2, 3, 3, generator=generator)
        found = torch.stack([mmd(a, b + apart) for a, b in draws])
        error = found.std() / len(draws) ** 0.5
        assert abs(found.mean() - apart.square().sum()) < 4 * error


def test_exact_samples_have_no_loss_on_average_and_others_do():
    means = []
    for data in (DATA, Gaussian([0.7, -0.4], 0.7, Trig())):  # the same mean, another spread
        objective = method(data, width=64)
        found = torch.stack([objective.apart(batch(seed=k)) for k in range(60)]).detach()
        means.append((found.mean(), found.std() / len(found) ** 0.5))
    assert abs(means[0][0]) < 4 * means[0][1]
    assert means[1][0] > 8 * means[1][1]


def test_samples_and_data_are_in_units_of_sigma_data():
    """Both three times as large, with sigma_data = 3, are as far apart as before."""
    drawn = batch()
    larger = Batch(3 * drawn.x0, {}, drawn.generator, torch.Generator().manual_seed(0))
    plain, scaled = method(), method(sigma_data=3.0)
    samples = torch.randn(512, 2, generator=torch.Generator().manual_seed(5))
    plain.sample, scaled.sample = lambda _: samples, lambda _: 3 * samples
    torch.testing.assert_close(scaled.apart(larger), plain.apart(drawn))


def test_it_is_added_to_the_students_loss_alone():
    objective = method(weight=0.5)
    losses = objective.loss("student", batch())
    apart = method().apart(batch())
    torch.testing.assert_close(losses.total, 3 + 0.5 * apart)
    assert set(losses.logs) == {"inner", "embedding"}
    assert objective.loss("other", batch()).total == 3


def test_ranks_share_their_networks_and_turns_do_not():
    x = torch.randn(4, 3, 8, 8)
    shared = [torch.Generator().manual_seed(k) for k in (0, 0, 1)]
    one, same, other = (features(x, 16, generator) for generator in shared)
    assert one.shape == (4, 48)
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    assert torch.allclose(one[:2], features(x[:2], 16, torch.Generator().manual_seed(0)))


def test_a_methods_boundary_is_that_of_its_samples():
    given = {"steps": 1, "width": 64}
    plain = method(**given).apart(batch())
    near = method(boundary=lcm_boundary(10.0), **given).apart(batch())
    torch.testing.assert_close(plain, near, rtol=1e-3, atol=1e-4)
    half = method(boundary=lambda t: (0 * t, 0 * t + 0.5), **given).apart(batch())
    assert abs(half - plain) > 1e-2


def test_tokens_have_no_random_network():
    with pytest.raises(ValueError, match=r"x0 of shape \(7, 3\)"):
        features(torch.zeros(2, 7, 3), 16, torch.Generator())


def test_a_recipe_asks_for_it(tmp_path, two_modes, quick_fit):
    words = [f"teacher.path={two_modes}", "train.steps=2", "train.batch_size=8"]
    chosen = recipes.load("mixture-lcm", [*words, "embedding.weight=2"])
    run = Run(chosen, tmp_path)
    assert run.objective.config.weight == 2
    run.train(lambda step, figures: None)
    assert "student/embedding" in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="embedding: method 'oss' trains no student"):
        Run(recipes.load("mixture-oss", ["embedding.weight=2"]), tmp_path)
