"""Compiled networks: the numbers, keys and checkpoints of a run are those of one without."""

import copy
import shutil

import pytest
import torch
from safetensors.torch import load_file

from edgedistill import recipes
from edgedistill.diffusion import compiling
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.networks.planar import PlanarNet
from edgedistill.networks.taps import Taps
from edgedistill.runs.run_dir import open_run
from edgedistill.training import checkpoint

STEPS = 3
GAN = ["objective.gan_weight=0.1", "objective.warmup_steps=0", "objective.turns=1"]
PLANAR = ["train.batch_size=8", "objective.pretraining_steps=0", "objective.regression_weight=0"]
"""Of dmd2, so that all of its losses take part in the first steps."""


def trained(folder, name, *words, resume=False):
    """Losses and gradients of every step, the run, and the keys of the state it trained."""
    few = [f"train.steps={STEPS}", "train.log_every=1", "train.checkpoint_every=1", *words]
    recipe = recipes.load(name, few)
    run = open_run(recipe, str(folder), resume, folder.parent, typed=words if resume else None)
    if resume:
        assert run.restore() == STEPS - 1
    rows = []
    run.train(lambda step, figures: rows.append(figures))
    left = ("seconds", "steps_per_second")
    return [{k: v for k, v in row.items() if k not in left} for row in rows], run


def compare(tmp_path, name, *words, least):
    """Train without and with train.compile; at least so many graphs were compiled."""
    from torch._dynamo.utils import counters

    plain, whole = trained(tmp_path / "plain", name, *words)
    torch._dynamo.reset()
    counters.clear()
    fast, made = trained(tmp_path / "fast", name, *words, "train.compile=true")
    assert counters["stats"]["unique_graphs"] >= least
    assert len(fast) == len(plain) == STEPS
    for one, other in zip(fast, plain, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    states = [run.student.state_dict() for run in (whole, made)]
    assert states[0].keys() == states[1].keys()
    for folder in (f"checkpoints/step-{STEPS:08d}", "student"):
        for file in (tmp_path / "plain" / folder).rglob("*.safetensors"):
            other = tmp_path / "fast" / file.relative_to(tmp_path / "plain")
            assert load_file(file).keys() == load_file(other).keys()


@pytest.fixture
def compiler():
    """Inductor in this process alone, with no processes that compile beside it."""
    from torch._inductor import config

    if shutil.which("g++") is None:
        pytest.skip("networks are compiled by g++")
    with config.patch(compile_threads=1):
        yield


@pytest.fixture
def traced(monkeypatch):
    """Networks are traced and differentiated as for inductor, and run without its kernels."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")


@pytest.mark.parametrize(
    ("name", "words", "least"),
    [
        ("mixture-lcm", ["train.batch_size=8"], 2),
        ("mixture-dmd2", [*PLANAR, *GAN], 3),
    ],
)
def test_planar_networks_learn_the_same(
    tmp_path, quick_fit, two_modes, compiler, name, words, least
):
    compare(tmp_path, name, f"teacher.path={two_modes}", *words, least=least)


@pytest.mark.parametrize("name", ["mixture-meanflow", "mixture-ctm", "mixture-pi-flow"])
def test_derivatives_second_times_and_extra_heads_learn_the_same(
    tmp_path, quick_fit, two_modes, traced, name
):
    none = name in ("mixture-meanflow", "mixture-pi-flow")  # all of their calls fall back
    compare(tmp_path, name, f"teacher.path={two_modes}", "train.batch_size=8", least=not none)


def test_adapters_recomputed_in_bf16_learn_the_same(tmp_path, traced):
    words = ["teacher.tiny=true", "train.batch_size=2", "train.checkpointing=true"]
    words += ["train.precision=bf16", "train.base=bf16"]
    words += ["train.roles=adapters", "train.adapter.rank=2"]
    compare(tmp_path, "emoji-lcm", *words, least=2)


def test_a_checkpoint_made_without_is_taken_up(tmp_path, quick_fit, two_modes, traced):
    words = [f"teacher.path={two_modes}", "train.batch_size=8"]
    plain, _ = trained(tmp_path / "plain", "mixture-lcm", *words)
    folder = tmp_path / "plain"
    shutil.rmtree(folder / "student")
    for place in checkpoint.all_of(folder / "checkpoints"):
        if place.name == f"step-{STEPS:08d}":
            shutil.rmtree(place)
    fast, _ = trained(folder, "mixture-lcm", *words, "train.compile=true", resume=True)
    assert [row["student/loss"] for row in fast] == pytest.approx([plain[-1]["student/loss"]])


def planar():
    torch.manual_seed(0)
    denoiser = Denoiser(PlanarNet(width=8, depth=1, frequencies=2), Trig(), Prediction.X0)
    denoiser.compiled = True
    return denoiser


def graphs():
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


@pytest.fixture
def counted(traced):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()


X, T = torch.ones(3, 2), torch.full((3,), 0.5)


def test_taps_of_one_network_are_not_those_of_its_class(counted):
    first, second = planar(), planar()
    taps = Taps(second.net, ["blocks.0"])
    with compiling.compiling():
        expected = first.output(X, T, {})
        with taps:
            found = second.output(X, T, {})
        assert taps.take()[0].shape == (3, 8)
    torch.testing.assert_close(found, expected)
    assert graphs() == 2


def test_copies_are_compiled_at_their_own_first_call(counted):
    denoiser = planar()
    denoiser.output(X, T, {})
    other = copy.deepcopy(denoiser)
    assert denoiser.net._compiled_call_impl is not None
    assert other.net._compiled_call_impl is None
    assert denoiser.state_dict().keys() == planar().state_dict().keys()
    for each in (other, other.with_bound(None), other.with_net(other.net)):
        assert each.compiled
    other.output(X, T, {})
    assert other.net._compiled_call_impl is not None


def test_what_is_called_as_it_is_compiles_nothing(counted):
    denoiser = planar()
    with compiling.as_they_are():
        denoiser.output(X, T, {})
    assert graphs() == 0
    denoiser.output(X, T, {})
    assert graphs() == 1


def test_without_a_compiler_it_says_so(tmp_path, two_modes):
    from torch._inductor import config

    recipe = recipes.load("mixture-lcm", [f"teacher.path={two_modes}", "train.compile=true"])
    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ValueError, match=r"^train.compile=true .* needs a C\+\+ compiler: install"),
    ):
        open_run(recipe, str(tmp_path / "run"), False, tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["emoji-4step-qat", "emoji-decoder", "emoji-decoder-ssdd"])
def test_methods_whose_networks_cannot_be_compiled_are_refused(name):
    with pytest.raises(ValueError, match=r"train.compile: method '.*' .*train.compile=false"):
        recipes.load(name, ["train.compile=true"])
