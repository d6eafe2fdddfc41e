"""K-DMD: DMD2 on Gaussians beside a distilled student, whose x0 is a closed form too."""

import copy
from dataclasses import replace

import pytest
import torch
from scored import DATA, Blocks, batch, located, seed_of, setup_of
from tiny import save

from edgedistill import recipes
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.objectives.combined.k_dmd import KDMD
from edgedistill.objectives.matching.dmd2 import DMD2
from edgedistill.runs.run import Run
from edgedistill.students.folder import load_student
from edgedistill.teachers import load_teacher
from edgedistill.teachers.families.mixture import Mixture

OURS, THEIRS = ([0.3, -0.2], 0.8), ([0.6, -0.5], 0.4)


def method(student, few, fake=None, *, steps=2, **config):
    """The method beside the distilled student `few`, by default with an exact fake score."""
    setup = replace(setup_of(student, fake, steps=steps), knowledge=few)
    return KDMD(KDMD.Config(**{"gan_weight": 0, **config}), setup)


def astray():
    """A fake score that knows other samples, so that matching has something to learn."""
    return located([1.0, 0.5], 0.6)


def dmd2(student, **given):
    objective = DMD2(DMD2.Config(gan_weight=0), setup_of(student, astray(), steps=2))
    return objective.loss("student", batch(**given)).total.item()


def blocks(seed):
    """An exact denoiser whose features are linear in x."""
    torch.manual_seed(seed)
    return Denoiser(Blocks(DATA), Trig(), Prediction.X0)


@pytest.mark.parametrize("index", [0, 1])
def test_where_the_student_is_the_distilled_one_it_is_dmd2(index):
    given = {"count": 256, "shared": seed_of(index, 2)}
    objective = method(located(*OURS), located(*OURS), astray())
    losses = objective.loss("student", batch(**given))
    assert losses.logs["knowledge"] == 0
    assert losses.total.item() == dmd2(located(*OURS), **given)


@pytest.mark.parametrize("index", [0, 1])
def test_elsewhere_knowledge_adds_the_mean_square_where_the_rollout_has_come_to(index):
    given = {"count": 256, "shared": seed_of(index, 2)}
    few = located(*THEIRS)
    objective = method(located(*OURS), few, astray(), knowledge_weight=3.0)
    losses = objective.loss("student", batch(**given))
    x_t = objective.rollout(batch(**given)).x_t
    (ours, gain), (theirs, their_gain) = OURS, THEIRS
    gap = torch.tensor(ours) - torch.tensor(theirs) + (gain - their_gain) * x_t
    wanted = gap.square().mean()
    torch.testing.assert_close(losses.logs["knowledge"], wanted)
    plain = dmd2(located(*OURS), **given)
    assert losses.total.item() == pytest.approx(plain + 3 * wanted.item(), rel=1e-5)
    losses.total.backward()
    assert few.net.mean.grad is None


def test_knowledge_alone_leads_to_the_distilled_student():
    """With a fake score that knows as much as the teacher, there is nothing else to learn."""
    student = located(*OURS)
    objective = method(student, located(*THEIRS))
    optim = torch.optim.Adam(student.parameters(), 0.03)
    for step in range(300):
        optim.zero_grad()
        objective.loss("student", batch(256, seed=step, shared=step)).total.backward()
        optim.step()
    mean, gain = THEIRS
    torch.testing.assert_close(student.net.mean.detach(), torch.tensor(mean), atol=0.02, rtol=0)
    assert student.net.scale.item() == pytest.approx(gain, abs=0.02)


def test_without_weights_it_is_dmd2():
    objective = method(located(*OURS), located(*THEIRS), astray(), knowledge_weight=0)
    losses = objective.loss("student", batch(256))
    assert "knowledge" not in losses.logs
    assert losses.total.item() == dmd2(located(*OURS), count=256)


def test_features_are_compared_relative_to_their_size():
    ours, theirs = blocks(0), blocks(1)
    same = method(ours, copy.deepcopy(ours), features_weight=0.5).loss("student", batch(64))
    assert same.logs["features"] == 0
    objective = method(ours, theirs, features_weight=0.5)
    losses = objective.loss("student", batch(64))
    x_t = objective.rollout(batch(64)).x_t
    h, h_few = (denoiser.net.blocks[1](x_t) for denoiser in (ours, theirs))
    wanted = (h - h_few).square().mean() / h_few.square().mean()
    torch.testing.assert_close(losses.logs["features"], wanted.detach())
    assert losses.total.item() == pytest.approx(same.total.item() + 0.5 * wanted.item(), rel=1e-5)


def test_features_that_are_missing_or_of_another_shape_are_refused():
    other = blocks(0)
    other.net.blocks[1] = torch.nn.Linear(2, 3)
    for few, message in ((located(*THEIRS), "no module"), (other, "choose 0")):
        with pytest.raises(ValueError, match=rf"^objective\.features_weight: .*{message}"):
            method(blocks(0), few, features_weight=1)
        method(blocks(0), few)


def test_without_a_distilled_student_there_is_nothing_to_know():
    with pytest.raises(ValueError, match=r"'k-dmd' learns from a distilled student: set obj"):
        method(located(*OURS), None)


# --- Runs ----------------------------------------------------------------------------------------


@pytest.fixture
def words(two_modes, quick_fit):
    """What makes a run of the recipe short."""
    return [f"teacher.path={two_modes}", "train.steps=2", "train.batch_size=8"]


def folder(place, mixture, steps=4, prediction=Prediction.V, **given):
    teacher = Mixture.load(str(mixture))
    return save(place, teacher, teacher.spawn().net, prediction, steps, **given)


def test_a_recipe_learns_from_a_folder(words, two_modes, tmp_path):
    few = folder(tmp_path / "few", two_modes)
    told = [*words, f"objective.knowledge={few}", "objective.features_weight=0.1"]
    told += ["objective.turns=1", "objective.warmup_steps=0"]
    run = Run(recipes.load("mixture-k-dmd", told), tmp_path / "run")
    x, t = torch.randn(8, 2), torch.full((8,), 0.5)
    found = run.objective.knowledge
    torch.testing.assert_close(found.net(x, t), load_student(few).net(x, t))
    assert not any(p.requires_grad for p in found.parameters())
    before = copy.deepcopy(found.net.state_dict())
    student = load_student(run.train(lambda step, figures: None))
    assert student.table == run.table
    assert all(torch.equal(before[name], p) for name, p in found.net.state_dict().items())
    names = {path.name for path in (tmp_path / "run" / "checkpoints").rglob("*")}
    assert not [name for name in names if "knowledge" in name]


@pytest.mark.parametrize(
    ("given", "told", "message"),
    [
        ({}, ["objective.knowledge=null"], "'k-dmd' learns from a distilled student"),
        ({}, ["objective.knowledge=nowhere"], "^objective.knowledge: no student .*'nowhere'"),
        ({"steps": 2}, [], "its number of steps is 2, and this student's 4"),
        ({"spacing": "leading"}, [], "its times are"),
        ({"sampler": "ddim"}, [], "its steps land in another way"),
        ({"prediction": Prediction.X0}, [], "its prediction is x0, and this student's v"),
    ],
)
def test_a_folder_that_does_not_fit_is_a_line(given, told, message, words, two_modes, tmp_path):
    few = folder(tmp_path / "few", two_modes, **given)
    recipe = recipes.load("mixture-k-dmd", [*words, f"objective.knowledge={few}", *told])
    with pytest.raises(ValueError, match=message) as caught:
        Run(recipe, tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_of_another_family_or_shape_is_a_line(words, tiny_sd, tmp_path):
    teacher = load_teacher("stable_diffusion", str(tiny_sd))
    few = save(tmp_path / "few", teacher, teacher.net, Prediction.EPS, 4)
    recipe = recipes.load("mixture-k-dmd", [*words, f"objective.knowledge={few}"])
    with pytest.raises(ValueError, match=r"its family is stable_diffusion, .* student's mixture"):
        Run(recipe, tmp_path / "run")
    solid = tmp_path / "solid.json"
    solid.write_text('{"weights": [1], "means": [[0, 0, 1]], "scales": [0.2]}')
    few = folder(tmp_path / "solid", solid)
    recipe = recipes.load("mixture-k-dmd", [*words, f"objective.knowledge={few}"])
    with pytest.raises(ValueError, match=r"its shape of x0 is \[3\], and this student's \[2\]"):
        Run(recipe, tmp_path / "run")
