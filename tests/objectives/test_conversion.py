"""A student that predicts something else than its teacher, and teachers bounded as targets."""

from dataclasses import replace

import diffusers
import pytest
import torch
from torch import nn

from edgedistill import recipes
from edgedistill.diffusion.denoiser import Bound, Denoiser, Guided
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Discrete, Trig
from edgedistill.objectives.base import Batch, Losses, Objective, Optim, Player, Setup
from edgedistill.objectives.conversion import CLEAR, Conversion, as_target, student_prediction
from edgedistill.objectives.prelude import Prelude
from edgedistill.recipes.checks import choose_prediction


def schedule(betas):
    scheduler = diffusers.DDIMScheduler(beta_schedule=betas, beta_start=1e-4, beta_end=0.02)
    return Discrete(scheduler.alphas_cumprod)


class Noise(nn.Module):
    """The exact eps of data that is `value` everywhere."""

    def __init__(self, schedule, value):
        super().__init__()
        self.schedule, self.value = schedule, value

    def forward(self, x, time, **cond):
        t = (time.double() + 1) / self.schedule.num_timesteps
        alpha, sigma = self.schedule.at(t, like=x)
        return (x - alpha * self.value) / sigma


class Output(nn.Module):
    """What a prediction of the same data is."""

    def __init__(self, schedule, kind, value):
        super().__init__()
        self.schedule, self.kind, self.noise = schedule, kind, Noise(schedule, value)
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, time, **cond):
        t = (time.double() + 1) / self.schedule.num_timesteps
        alpha, sigma = self.schedule.at(t, like=x)
        x0 = torch.full_like(x, self.noise.value)
        return self.kind.combine(x0, self.noise(x, time), alpha, sigma) + self.weight


def batch(value=0.5):
    x0 = torch.full((64, 1, 2, 2), value)
    return Batch(x0, {}, torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))


def lesson(kind, value=0.5, betas="squaredcos_cap_v2"):
    levels = schedule(betas)
    teacher = Denoiser(Noise(levels, 0.5), levels, Prediction.EPS, Bound())
    student = Denoiser(Output(levels, kind, value), levels, kind)
    setup = Setup(
        teacher=teacher, student=student, spawn=lambda: student, times=torch.tensor([1.0, 0.0]),
        sampler="renoise", optim=Optim(lr=1e-3), tap="", example=(torch.zeros(2, 1, 2, 2), {}),
    )  # fmt: skip
    return Conversion(Conversion.Config(), setup)


@pytest.mark.parametrize("kind", [Prediction.V, Prediction.X0])
def test_no_loss_when_the_student_predicts_the_same_data(kind):
    assert lesson(kind).loss("student", batch()).total < 1e-5
    assert lesson(kind, value=0.2).loss("student", batch()).total > 1e-3


@pytest.mark.parametrize(
    ("betas", "first", "kind"),
    [
        ("squaredcos_cap_v2", 1.0, Prediction.V),
        ("linear", 1.0, Prediction.V),
        ("squaredcos_cap_v2", 0.75, Prediction.EPS),
        ("linear", 0.9, Prediction.EPS),
    ],
)
def test_v_is_predicted_where_noise_says_nothing(betas, first, kind):
    teacher = Denoiser(nn.Identity(), schedule(betas), Prediction.EPS)
    assert student_prediction(teacher, torch.tensor(first)) is kind


def test_stable_diffusions_levels_keep_noise():
    levels = Discrete(
        diffusers.DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
        ).alphas_cumprod
    )
    teacher = Denoiser(nn.Identity(), levels, Prediction.EPS)
    assert student_prediction(teacher, torch.tensor(1.0)) is Prediction.EPS


def test_a_v_teachers_student_predicts_v():
    teacher = Denoiser(nn.Identity(), Trig(), Prediction.V)
    assert student_prediction(teacher, torch.tensor(1.0)) is Prediction.V


def test_an_unbounded_noise_teacher_is_bounded_as_a_target_where_noise_says_nothing():
    levels = schedule("squaredcos_cap_v2")
    teacher = Denoiser(Noise(levels, 0.5), levels, Prediction.EPS)
    target = as_target(teacher, Prediction.EPS, 1.0)
    x, cond = 3 * torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0)), {}
    off = Denoiser(Output(levels, Prediction.EPS, 0.5), levels, Prediction.EPS)
    off.net.weight.data += 0.05
    wrong = as_target(off, Prediction.EPS, 1.0)
    assert off(x, torch.tensor(1.0), cond).abs().max() > 100
    assert wrong(x, torch.tensor(1.0), cond).abs().max() <= 1
    t = torch.tensor(0.9)  # where it draws as it does
    torch.testing.assert_close(wrong(x, t, cond), off(x, t, cond))
    guided = as_target(Guided(off, {}, 2.0), Prediction.EPS, 1.0)
    assert isinstance(guided, Guided)
    assert guided.bound == target.bound
    own = teacher.with_bound(Bound(0.7))
    assert as_target(own, Prediction.EPS, 1.0) is own


def test_a_targets_row_below_the_level_alone_is_bounded():
    levels = schedule("linear")
    bound = Bound(1.0, below=CLEAR)
    denoiser = Denoiser(Same(), levels, Prediction.X0, bound)
    x = torch.full((2, 1), 5.0)
    found = denoiser(x, torch.tensor([1.0, 0.1]), {})
    assert found.tolist() == [[1.0], [5.0]]


class Same(nn.Module):
    def forward(self, x, time):
        return x


class Constant(Objective):
    name = "constant"

    def __init__(self, value, net):
        self.value, self.net, self.seen = value, net, []
        self.begun = []

    def players(self):
        return [
            Player("student", self.net, Optim(lr=1e-3)),
            Player("other", self.net, Optim(lr=1e-3), start=2),
        ]

    def started(self, step):
        self.begun.append(step)

    def loss(self, player, batch):
        self.seen.append(batch.step)
        return Losses(torch.tensor(self.value))


def test_a_method_begins_after_its_prelude():
    net = nn.Linear(1, 1)
    method, first = Constant(1.0, net), Constant(2.0, net)
    whole = Prelude(method, first, 3)
    losses = [whole.loss("student", replace(batch(), step=step)).total for step in range(5)]
    assert losses == [2, 2, 2, 1, 1]
    assert method.seen == [0, 1]
    for step in range(5):
        whole.started(step)
    assert (first.begun, method.begun) == ([0, 1, 2], [0, 1])
    student, other = whole.players()
    assert (student.start, student.prelude, other.start) == (3, 3, 5)


def chosen(*words, prediction=Prediction.EPS):
    recipe = recipes.load("mixture-lcm", list(words))
    teacher = Denoiser(nn.Identity(), schedule("squaredcos_cap_v2"), prediction)
    return choose_prediction(recipe, teacher, torch.tensor(1.0))


def test_the_recipe_may_say_what_is_predicted():
    assert chosen() is Prediction.V
    assert chosen("student.prediction=x0") is Prediction.X0
    assert chosen("student.prediction=eps") is Prediction.EPS
    assert chosen("train.roles=adapters") is Prediction.EPS
    assert chosen("objective.name=oss") is Prediction.EPS
    assert chosen("compress.budget=0.5") is Prediction.EPS
    strided = ("teacher.family=stable_diffusion", "compress.attention_stride=2")
    assert chosen(*strided) is Prediction.V
    assert chosen(*strided, "compress.first=5") is Prediction.EPS


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["train.roles=adapters"], "adapters share"),
        (["objective.name=oss"], "method 'oss' trains no weights"),
        (["compress.budget=0.5"], "a smaller student"),
        (["compress.joint=1"], "a smaller student"),
        (["student.init=there"], "student.init names"),
    ],
)
def test_what_cannot_learn_another_prediction_says_so(words, reason):
    with pytest.raises(ValueError, match=f"student.prediction=v: {reason}"):
        chosen("student.prediction=v", *words)


def test_a_v_teachers_student_cannot_predict_noise():
    with pytest.raises(ValueError, match=r"student.prediction=eps: the teacher is a v-predictor"):
        chosen("student.prediction=eps", prediction=Prediction.V)


def test_a_teacher_of_noise_that_starts_without_signal_is_refused():
    """Its x0 was clipped, and the student learned the noise's sign."""
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True)
    levels = Discrete(torch.cat([scheduler.alphas_cumprod[:-1], torch.zeros(1)]))
    recipe = recipes.load("emoji-4step")
    for kind, first in ((Prediction.EPS, 0.98), (Prediction.V, 1.0)):
        teacher = Denoiser(nn.Identity(), levels, kind)
        assert choose_prediction(recipe, teacher, torch.tensor(first)) is Prediction.V
    teacher = Denoiser(nn.Identity(), levels, Prediction.EPS)
    with pytest.raises(ValueError, match=r"no signal .*student\.spacing=leading, or set resc"):
        choose_prediction(recipe, teacher, torch.tensor(1.0))
