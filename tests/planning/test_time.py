"""Time and energy of a run: operations counted as they are, and speeds that are stated."""

import inspect

import pytest
import torch
from torch import nn

from edgedistill import recipes
from edgedistill.commands import complete, train
from edgedistill.planning.costs import costs
from edgedistill.planning.flops import counted
from edgedistill.planning.memory import Launch
from edgedistill.planning.report import time_table
from edgedistill.planning.time import (
    GPUS,
    LAUNCH,
    UTILISATION,
    Duration,
    duration,
    find_gpu,
    step_cost,
)
from edgedistill.verbs import speed
from edgedistill.verbs.training import plan

WORDS = ["train.batch_size=2", "train.steps=100"]


def recipe(*words):
    return recipes.load("emoji-lcm", [*WORDS, *words])


@pytest.fixture(scope="module")
def one():
    return step_cost(recipe())


def test_a_backward_pass_is_two_forward_passes():
    net = nn.Linear(8, 4, bias=False, device="meta")
    x = torch.empty(3, 8, device="meta", requires_grad=True)
    assert counted(lambda: net(x)) == (2 * 3 * 8 * 4, 1)  # the weight's transpose is a view
    assert counted(lambda: net(x).sum().backward())[0] == 3 * (2 * 3 * 8 * 4)


def test_a_step_is_its_passes_through_the_networks(one):
    """LCM: the student forward and backward (3 passes), its average and the teacher (1 each)."""
    call = costs(recipe(), Launch()).flops["student_call"] * 2
    calls = one.flops / call
    assert 5 <= calls <= 7  # guidance asks the teacher twice


def test_operations_grow_with_the_batch_and_accumulation(one):
    larger = step_cost(recipe("train.batch_size=4"))
    assert larger.flops == pytest.approx(2 * one.flops, rel=0.01)
    assert larger.operators == pytest.approx(one.operators, rel=0.01)
    for word, factor in (("train.accumulate=3", 3), ("train.checkpointing=true", 4 / 3)):
        found = step_cost(recipe(word))
        assert found.flops == pytest.approx(factor * one.flops)
        assert found.operators == pytest.approx(factor * one.operators)


def test_hours_and_energy_on_a_gpu():
    made = recipe("train.precision=bf16", "train.batch_size=4096")
    found = duration(costs(made, Launch()), made, "a100", 0.5, processes=2)
    assert found.device == "2 x A100"
    assert found.source == "50% of 312 TFLOP/s (bf16), an estimate"
    assert found.steps_per_second == pytest.approx(0.5 * 312e12 / step_cost(made).flops)
    assert found.training_hours == pytest.approx(100 / found.steps_per_second / 3600)
    assert found.kwh == pytest.approx(800 * found.hours / 1000)


def test_a_small_network_is_bound_by_its_operators(one):
    found = duration(costs(recipe(), Launch()), recipe(), "H100")
    assert 1000 < one.operators < 20_000
    assert found.steps_per_second == pytest.approx(1 / (one.operators * LAUNCH))
    assert f"{one.operators:,.0f} operators, 10 us each" in found.source


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("h100", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("Tesla T4", "T4"),
        ("NVIDIA L40S", "L40S"),
    ],
)
def test_a_gpu_is_found_by_the_name_of_its_driver(name, key):
    assert find_gpu(name) == (key, GPUS[key])


def test_what_is_no_gpu_or_no_share_is_refused():
    with pytest.raises(ValueError, match=r"unknown GPU 'H10' \(did you mean 'H100'\?\)"):
        find_gpu("H10")
    with pytest.raises(ValueError, match="--utilisation 2"):
        duration(costs(recipe(), Launch()), recipe(), "H100", 2.0)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
@pytest.mark.parametrize("gpu", [None, "H100"])
def test_a_share_out_of_range_is_refused_whether_it_is_used_or_not(share, gpu):
    with pytest.raises(ValueError, match=r"--utilisation .*a share above 0"):
        train.plan(["recipe=emoji-4step"], gpu=gpu, utilisation=share)
    with pytest.raises(ValueError, match=r"--utilisation .*a share above 0"):
        plan("emoji-4step", gpu=gpu, utilisation=share)


def test_the_names_in_help_are_those_of_the_table():
    assert tuple(GPUS) == complete.GPUS
    assert inspect.signature(train.plan).parameters["utilisation"].default == UTILISATION


def test_the_table_says_seconds_for_slow_steps():
    slow = Duration("cpu", "5 steps measured here", 0.04, 20.0, 0.0)
    cells = [list(column.cells) for column in time_table(slow).columns]
    assert dict(zip(*cells, strict=True)) == {
        "device": "cpu",
        "speed": "5 steps measured here",
        "steps": "25.0 s/it",
        "training": "20.0 h",
    }


def test_steps_are_measured_here_and_nothing_stays(two_modes, quick_fit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [f"teacher.path={two_modes}", "train.steps=100000", "train.batch_size=8"]
    made = recipes.load("mixture-lcm", words)
    found = speed.measure(made, seconds=0.5)
    assert found.steps_per_second > 1
    assert found.training_hours == pytest.approx(100_000 / found.steps_per_second / 3600)
    assert found.device.startswith("cpu, ") == (not torch.cuda.is_available())
    assert list(tmp_path.iterdir()) == []


def test_the_first_steps_are_left_out_of_the_rate():
    assert speed._rate([0.0, 10.0, 20.0, 21.0, 22.0, 23.0]) == pytest.approx(1.0)
    assert speed._rate([0.0, 2.0]) == pytest.approx(0.5)
