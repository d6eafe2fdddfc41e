"""The drift field: written out pair by pair, at rest between equals, else towards the data."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from scored import DATA, FAR, Blocks, TimeConditioned, batch, located, method, setup_of, stepped

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.objectives.kernels.drifting import Drifting, Pairs, alike


def points(count, seed, at=(0.0, 0.0), scale=0.5):
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(at) + scale * torch.randn(count, 2, generator=generator)


def everyone(count):
    return torch.ones(count, count, dtype=torch.bool)


def by_pairs(x, data, tau):
    """Algorithm 2, one pair at a time."""
    count = len(x)
    others = [*data, *x]

    def k(i, j):
        return 0.0 if j == count + i else math.exp(-float((x[i] - others[j]).norm()) / tau)

    def share(i, j):
        over_y = k(i, j) / sum(k(i, other) for other in range(2 * count))
        over_x = k(i, j) / sum(k(other, j) for other in range(count))
        return math.sqrt(over_y * over_x)

    field = torch.zeros_like(x)
    for i in range(count):
        for j in range(count):
            for m in range(count):
                pair = share(i, j) * share(i, count + m)
                field[i] += pair * (data[j] - x[m])
    return field


@pytest.mark.parametrize("tau", [0.05, 0.3, 2.0])
def test_the_field_is_that_of_all_pairs(tau):
    x, data = points(7, 0), points(7, 1, (1.0, 0.3))
    found = Pairs.of(x, data, everyone(7)).drift(tau)
    torch.testing.assert_close(found, by_pairs(x, data, tau), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("tau", [0.05, 0.2])
def test_equal_distributions_are_at_rest_on_average_and_others_are_not(tau):
    """At a fixed point among fresh samples, as many of one set as of the other."""
    here = torch.tensor([[0.6, -0.2]])
    mean = {}
    for name, at in (("equal", (0.0, 0.0)), ("other", (0.5, 0.5))):
        found = []
        for seed in range(600):
            x = torch.cat([here, points(63, 2 * seed)])
            found.append(Pairs.of(x, points(64, 2 * seed + 1, at), everyone(64)).drift(tau)[0])
        mean[name] = torch.stack(found)
    error = mean["equal"].std(0) / math.sqrt(600)
    assert (mean["equal"].mean(0).abs() < 4 * error + 2e-3).all()
    assert mean["other"].mean(0).norm() > 5 * mean["equal"].mean(0).norm()


def test_samples_drift_towards_the_data():
    x, data = points(256, 0, (3.0, 0.0)), points(256, 1)
    field = Pairs.of(x, data, everyone(256)).drift(0.2)
    assert ((field * -x).sum(1) > 0).float().mean() > 0.95


def test_equal_points_drift_apart_to_where_the_data_are():
    """All samples in the middle of two modes, as a student begins."""
    data = torch.cat([points(128, 0, (-1.0, 0.0), 0.1), points(128, 1, (1.0, 0.0), 0.1)])
    x = points(256, 2, scale=0.05)
    field = Pairs.of(x, data, everyone(256)).drift(0.2)
    outer = x[:, 0].abs() > 0.05
    assert (field[outer, 0].sign() == x[outer, 0].sign()).float().mean() > 0.9


def test_conditions_are_not_mixed():
    x, data = points(12, 0), points(12, 1, (1.0, 0.3))
    label = torch.arange(12) % 2
    same = alike({"y": label, "e": label[:, None, None] * torch.ones(12, 2, 3)}, 12, x.device)
    found = Pairs.of(x, data, same).drift(0.3)
    for y in (0, 1):
        mine = label == y
        alone = Pairs.of(x[mine], data[mine], everyone(6)).drift(0.3)
        torch.testing.assert_close(found[mine], alone)
    torch.testing.assert_close(
        Pairs.of(x[:6], data[:6], torch.eye(6, dtype=torch.bool)).unit(),
        math.sqrt(2) / (x[:6] - data[:6]).norm(dim=1).mean(),
    )


def test_a_condition_of_one_row_does_not_move():
    given = batch(16)
    given = replace(given, cond={"y": torch.arange(16)})
    student = Denoiser(TimeConditioned(FAR, 0.5), Trig(), Prediction.X0)
    assert method(Drifting, student).loss("student", given).total.item() == 0


def test_the_students_mean_descends_to_the_datas():
    gradient = stepped(method(Drifting, located(FAR, 0.5)), batch(512))
    assert gradient[0] > 0  # descent lowers 1.5 towards 0.7
    assert gradient[1] < 0


def test_descent_finds_the_data():
    student = located(FAR, 1.0)
    objective = method(Drifting, student, steps=1)
    optim = torch.optim.Adam(student.parameters(), 0.03)
    for step in range(200):
        optim.zero_grad()
        torch.autograd.backward(objective.loss("student", batch(256, step)).total)
        optim.step()
    torch.testing.assert_close(student.net.mean.detach(), DATA.mean, rtol=0, atol=0.1)
    assert abs(student.net.scale.item()) == pytest.approx(DATA.scale, abs=0.1)


def test_temperatures_have_no_unit():
    losses = []
    for unit in (1.0, 10.0):
        given = batch(64)
        given = replace(given, x0=unit * given.x0)
        student = located([unit * value for value in FAR], unit * 0.5)
        losses.append(method(Drifting, student).loss("student", given))
    torch.testing.assert_close(losses[0].total, losses[1].total)
    sizes = [[losses[i].logs[f"drift_{tau}"] for tau in (0.02, 0.05, 0.2)] for i in (0, 1)]
    torch.testing.assert_close(*sizes)


def test_each_temperature_drifts_by_one():
    for tau in (0.02, 0.2):
        objective = method(Drifting, located(FAR, 0.5), temperatures=(tau,))
        assert objective.loss("student", batch(64)).total.item() == pytest.approx(1, rel=1e-4)


def test_the_field_may_be_in_the_teachers_features():
    torch.manual_seed(0)
    student = located(FAR, 0.5)
    setup = setup_of(student, Denoiser(Blocks(DATA), Trig(), Prediction.X0))
    objective = Drifting(Drifting.Config(features="teacher"), setup)
    given = batch(256)
    assert objective.features(given.x0, {}).shape == (256, 4)
    objective.loss("student", given).total.backward()
    gradient = student.net.mean.grad
    assert gradient @ (torch.tensor(FAR) - DATA.mean) > 0
    assert all(p.grad is None for p in objective.frozen.parameters())
    with pytest.raises(ValueError, match=r"no module 'blocks\.1' in"):
        Drifting(Drifting.Config(features="teacher"), setup_of(student, located(FAR, 0.5)))


def test_maps_and_tokens_are_averaged_over_places():
    objective = Drifting(
        Drifting.Config(features="teacher"),
        setup_of(located(FAR, 0.5), Denoiser(Blocks(DATA), Trig(), Prediction.X0)),
    )
    maps = torch.randn(3, 5, 2, 2)
    for found in (maps, maps.flatten(2).transpose(1, 2)):
        objective.taps.take = lambda found=found: [found]
        torch.testing.assert_close(objective.features(points(3, 0), {}), maps.mean((2, 3)))


@pytest.mark.parametrize("temperatures", [(), (0.1, 0.0)])
def test_temperatures_that_are_none(temperatures):
    with pytest.raises(ValidationError, match="each above 0"):
        Drifting.Config(temperatures=temperatures)
