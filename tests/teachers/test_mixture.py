"""The closed-form teacher against numerical integration, autograd and its own samples."""

import json
import math
import resource

import pytest
import torch
from tiny import save

from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.solvers import solve, time_grid
from edgedistill.networks.planar import PlanarNet
from edgedistill.students.folder import load_student
from edgedistill.teachers import load_teacher
from edgedistill.teachers.families.mixture import Mixture


@pytest.mark.parametrize(
    "sizes",
    [
        *({"dim": 10**9}, {"width": 10**9}, {"depth": 10**9}, {"frequencies": 10**9}),
        *({"width": 0}, {"width": -1}, {"width": True}, {"width": 2.5}, {"width": "8"}),
        *({"dim": 2**16, "frequencies": 2**12}, {"width": 2**13, "depth": 256}),
        {"extent": 0},
    ],
)
def test_sizes_of_a_network_are_bounded_before_it_is_allocated(
    sizes, mixture, tmp_path, quick_fit
):
    net = mixture.spawn(torch.Generator().manual_seed(0)).net
    folder = save(tmp_path / "student", mixture, net, Prediction.V, steps=2)
    file, info = folder / "net" / "config.json", folder / "student.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | sizes))
    data = json.loads(info.read_text()) | {"schema_version": 1}
    info.write_text(json.dumps({k: v for k, v in data.items() if k != "sha256"}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"net: .*(config\.json: |do not fit)") as caught:
        load_student(folder)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


@pytest.fixture
def mixture(two_modes) -> Mixture:
    return Mixture.load(str(two_modes))


def posterior_by_sum(mixture: Mixture, x_t: torch.Tensor, t: float) -> torch.Tensor:
    """E[x0 | x_t] as a Riemann sum over a fine grid of x0."""
    alpha, sigma = math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)
    axis = torch.linspace(-3, 3, 601, dtype=torch.float64)
    x0 = torch.cartesian_prod(axis, axis)
    prior = sum(
        w / s**2 * (-((x0 - m) ** 2).sum(1) / (2 * s**2)).exp()
        for w, m, s in zip(mixture.weights, mixture.means, mixture.scales, strict=True)
    )
    likelihood = (-((x_t - alpha * x0) ** 2).sum(1) / (2 * sigma**2)).exp()
    weight = prior * likelihood
    return (weight[:, None] * x0).sum(0) / weight.sum()


@pytest.mark.parametrize("t", [0.1, 0.4, 0.8, 0.999])
def test_the_denoiser_is_the_posterior_mean(mixture, t):
    points = torch.tensor([[-0.9, 0.1], [0.0, 0.2], [1.3, -0.5]], dtype=torch.float64)
    ours = mixture.denoiser(points, torch.tensor(t), {})
    expected = torch.stack([posterior_by_sum(mixture, x, t) for x in points])
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_the_score_of_the_density_is_that_of_the_denoiser(mixture, t):
    """(alpha E[x0|x_t] - x_t) / sigma^2 = grad log p_t (Tweedie)."""
    x_t = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_t.requires_grad_(True)
    times = torch.full((7,), t, dtype=torch.float64)
    (score,) = torch.autograd.grad(mixture.denoiser.net.log_density(x_t, times).sum(), x_t)
    alpha, sigma = mixture.denoiser.schedule.at(times, like=x_t)
    tweedie = (alpha * mixture.denoiser(x_t, times, {}) - x_t) / sigma**2
    # The denoiser reads t in float32, and the score divides by sigma^2.
    torch.testing.assert_close(tweedie, score, atol=1e-4, rtol=1e-4)


def test_the_density_integrates_to_one(mixture):
    axis = torch.linspace(-6, 6, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    for t in (0.2, 0.9):
        density = mixture.denoiser.net.log_density(grid, torch.full((len(grid),), t)).exp()
        assert density.sum().item() * (12 / 400) ** 2 == pytest.approx(1, abs=1e-4)


def test_its_samples_and_its_ode_have_its_moments(mixture):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, 2, generator=generator)
    solved = solve(mixture.denoiser, noise, time_grid(mixture.denoiser.schedule, 40), {}, "heun")
    mean = (mixture.weights[:, None] * mixture.means).sum(0).float()
    for samples in (mixture.draw(4000, generator), solved):
        torch.testing.assert_close(samples.mean(0), mean, atol=0.06, rtol=0)
        nearest = torch.cdist(samples.double(), mixture.means).argmin(1)
        share = torch.bincount(nearest, minlength=2) / len(samples)
        torch.testing.assert_close(share.double(), mixture.weights, atol=0.03, rtol=0)


def test_a_student_starts_near_the_teacher_and_the_same_for_a_seed(mixture, monkeypatch):
    from edgedistill.teachers.families import mixture as module

    monkeypatch.setattr(module, "FIT_STEPS", 150)
    monkeypatch.setattr(module, "FIT_BATCH", 128)
    first = mixture.spawn(torch.Generator().manual_seed(3))
    torch.manual_seed(9)
    state = torch.get_rng_state()
    second = mixture.spawn(torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert all(p.requires_grad for p in first.parameters())
    x0 = mixture.draw(2000, torch.Generator().manual_seed(1))
    t = torch.full((2000,), 0.5)
    x_t = first.noised(x0, t, torch.randn(x0.shape, generator=torch.Generator().manual_seed(2)))
    gap = (first(x_t, t, {}) - mixture.denoiser(x_t, t, {})).square().mean().sqrt()
    spread = mixture.denoiser(x_t, t, {}).std()
    assert gap < 0.4 * spread


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not a mixture file|expected"),
        ('{"weights": [1], "means": [[0, 0]]}', "no key 'scales'"),
        ('{"weights": [1, 1], "means": [[0, 0]], "scales": [1]}', r"\(2,\), \(1, 2\), \(1,\)"),
        ('{"weights": [], "means": [], "scales": []}', "expected"),
        ('{"weights": [1], "means": [0], "scales": [1]}', "expected"),
        ('{"weights": [1], "means": [["a", 0]], "scales": [1]}', "not a mixture file"),
        ('{"weights": [1], "means": [[NaN, 0]], "scales": [1]}', "NaN is no number"),
        ('{"weights": [-1, 2], "means": [[0], [1]], "scales": [1, 1]}', "must be positive"),
        ('{"weights": [1], "means": [[0]], "scales": [0]}', "must be positive"),
        ('{"weights": 1, "means": [[0]], "scales": [0]}', "expected"),
        ('{"weights": [1], "means": [[]], "scales": [1]}', "expected"),
        ('{"weights": [1], "means": [[1e30, 0]], "scales": [1]}', r"at most 1e\+06"),
        ('{"weights": [1], "means": [[0, 0]], "scales": [1e7]}', r"at most 1e\+06"),
        (b"\xff\xfe", "UTF-16 text"),
        ("[" * 10**5, "nested deeper"),
        ('{"weights": [1], "weights": [2], "means": [[0]], "scales": [1]}', "key 'weights' twice"),
        ('{"weights": [1e308, 1e308], "means": [[0], [1]], "scales": [1, 1]}', r"at most 1e\+06"),
        ('{"weights": [1e-300, 1], "means": [[0], [1]], "scales": [1, 1]}', "at least 1e-12"),
        (
            '{"weights": [' + "9" * 400 + '], "means": [[0]], "scales": [1]}',
            r"no integer below 2\^64",
        ),
        (
            '{"weights": [' + "9" * 5000 + '], "means": [[0]], "scales": [1]}',
            r"no integer below 2\^64",
        ),
        ('{"weights": {"a": 1}, "means": [[0]], "scales": [1]}', "weights"),
        ('{"weights": [1e999], "means": [[0]], "scales": [1]}', "1e999 is no finite number"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path, content, message):
    file = tmp_path / "wrong.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"wrong\.json: .*({message})") as caught:
        Mixture.load(str(file))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["rign", "no/such.json", "nothing.json", "/no/such/folder"])
def test_a_missing_file_is_named(name):
    with pytest.raises(ValueError, match=name):
        load_teacher("mixture", name)
    with pytest.raises(ValueError, match=r"did you mean 'ring'.*choose from .*ring"):
        load_teacher("mixture", "rign")


@pytest.mark.parametrize("name", ["ring", "grid", "clusters"])
def test_shipped_mixtures_load(name):
    mixture = Mixture.load(name)
    assert mixture.name == name
    assert mixture.weights.sum().item() == pytest.approx(1)


def test_a_student_folder_gives_back_net_and_mixture(mixture, tmp_path):
    net = PlanarNet(width=16, depth=2)
    nn_out = net(torch.ones(3, 2), torch.full((3,), 0.5))
    folder = save(tmp_path / "student", mixture, net, mixture.spawn().prediction, steps=3)
    student = load_student(folder)
    assert student.info.family == "mixture"
    torch.testing.assert_close(student.net(torch.ones(3, 2), torch.full((3,), 0.5)), nn_out)
    assert torch.equal(student.teacher.means, mixture.means)
    assert not any(p.requires_grad for p in student.net.parameters())


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "mixture.json").unlink(), r"mixture\.json"),
        (lambda f: (f / "net" / "config.json").unlink(), "net"),
        (lambda f: (f / "net" / "diffusion_pytorch_model.safetensors").unlink(), "net"),
        (
            lambda f: (f / "net" / "diffusion_pytorch_model.safetensors").write_bytes(b"torn"),
            "net",
        ),
    ],
)
def test_a_broken_student_folder_names_the_file(mixture, tmp_path, break_it, message):
    net = PlanarNet(width=16, depth=2)
    folder = save(tmp_path / "student", mixture, net, mixture.spawn().prediction, steps=3)
    break_it(folder)
    with pytest.raises(ValueError, match=message):
        load_student(folder)


def test_prompts_are_refused(mixture):
    assert mixture.encode(["a"]) == {}
    with pytest.raises(ValueError, match="take no prompts"):
        mixture.tokenize(["a"])


def test_dimensions_other_than_two_work(tmp_path):
    file = tmp_path / "line.json"
    file.write_text(json.dumps({"weights": [1, 1], "means": [[-1], [1]], "scales": [0.1, 0.1]}))
    mixture = Mixture.load(str(file))
    assert mixture.sample_shape == (1,)
    assert mixture.spawn().net(torch.zeros(4, 1), torch.full((4,), 0.5)).shape == (4, 1)


def test_there_is_nothing_to_guide_by(two_modes):
    teacher = Mixture.load(str(two_modes))
    assert teacher.guided(1) is teacher.denoiser
    with pytest.raises(ValueError, match=r"guidance=4: .* takes no condition to guide by"):
        teacher.guided(4)
