"""The examples' training loop: interrupted, paused, and gone on with from a snapshot."""

import json
import os
import signal
import threading

import numpy as np
import pytest
import torch
from common.chunks import fill
from common.snapshots import averaged, keep_classifier, replace, restore, take_classifier
from common.training import Plan, Trainer
from diffusers import DDPMPipeline
from fashion import classifier, teacher
from safetensors.torch import save_file

from edgedistill.teachers import load_teacher

PLAN = Plan(
    samples=12 * 4, batch=4, matrix_rate=0.02, other_rate=0.02, ema_decay=0.9, warmup_steps=3
)


def network():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.SiLU(), torch.nn.Linear(8, 3))


def trained(place, stop_at=None, act=lambda: os.kill(os.getpid(), signal.SIGTERM), plan=PLAN):
    net = network()
    trainer = Trainer(net, plan, place / "state.safetensors")

    def loss(share):
        if trainer.budget.steps == stop_at:
            act()
        x = torch.randn(plan.batch, 3)
        return (net(x) - x.roll(1, 1)).square().mean(), {}

    trainer.run(loss)
    return [p.detach().clone() for p in net.parameters()], trainer


def test_a_stopped_training_ends_as_if_it_had_not_been_stopped(tmp_path):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole, _ = trained(tmp_path / "whole")
    with pytest.raises(SystemExit) as stop:
        trained(tmp_path / "stopped", stop_at=5)
    assert stop.value.code == 0
    again, trainer = trained(tmp_path / "stopped")
    assert trainer.budget.steps == 12
    for one, other in zip(whole, again, strict=True):
        assert torch.equal(one, other)


def test_a_file_named_pause_stops_the_steps_until_it_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "pause_seconds", 0.05)
    pause, seen = tmp_path / "PAUSE", []

    def remove():
        seen.append((tmp_path / "state.safetensors").exists())
        pause.unlink()

    def act():
        pause.touch()
        threading.Timer(0.5, remove).start()

    _, trainer = trained(tmp_path, stop_at=5, act=act)
    assert seen == [True]  # saved before it waited
    assert trainer.budget.steps == 12
    assert trainer.budget.spent < 0.45  # the wait is not counted


def test_an_interrupted_array_is_gone_on_with(tmp_path):
    made = []

    def make(start, stop):
        if len(made) == 2 and not (tmp_path / "again").exists():
            raise KeyboardInterrupt
        made.append((start, stop))
        return np.arange(start, stop)[:, None] * np.ones(2)

    place = tmp_path / "rows.npy"
    with pytest.raises(KeyboardInterrupt):
        fill(place, (7, 2), np.float32, make, chunk=2)
    (tmp_path / "again").touch()
    fill(place, (7, 2), np.float32, make, chunk=2)
    assert made == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert np.load(place)[:, 1].tolist() == list(range(7))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    place = tmp_path_factory.mktemp("checkpoint")
    config = tiny(samples=4 * 3)
    torch.manual_seed(0)
    unet = teacher.build_unet(config)
    trainer = Trainer(unet, config, place / "teacher-state.safetensors")
    trainer.run(lambda _: (unet(torch.randn(4, 1, 8, 8), 0.1, torch.arange(4)).sample.mean(), {}))
    return place, unet


def tiny(**changes):
    sizes = {"channels": (8, 16), "head_channels": 8, "batch": 4, "bf16": False}
    return teacher.Config(**{**sizes, **changes})


def test_a_snapshot_holds_the_average_and_is_gone_on_from(checkpoint, tmp_path):
    place, unet = checkpoint
    teacher.snapshot(place, tmp_path / "snapshot", tiny())
    assert json.loads((tmp_path / "snapshot" / "training.json").read_text()) == {
        "steps": 3,
        "batch": 4,
    }
    config = tiny(batch=2, warmup_steps=10)
    torch.manual_seed(5)
    fresh = teacher.build_unet(config)
    done = restore({"unet": fresh}, tmp_path / "snapshot", config)
    assert done == 6  # as many samples in smaller batches
    for mine, other in zip(fresh.parameters(), unet.parameters(), strict=True):
        assert torch.equal(mine, other.half().float())
    trainer = Trainer(fresh, config, tmp_path / "state.safetensors", done)
    assert trainer.budget.steps == 6
    assert trainer.budget.rate == pytest.approx(0.1, rel=1e-3)  # warms up anew


def test_without_a_snapshot_training_starts_at_zero(tmp_path):
    assert restore({"unet": teacher.build_unet(tiny())}, tmp_path, tiny()) == 0


def test_a_snapshot_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"teacher-state.safetensors is missing: train first"):
        averaged(network(), tmp_path / "teacher-state.safetensors")


def test_the_preconditioning_is_the_schedulers():
    config = tiny()
    unet, scheduler = teacher.build_unet(config), teacher.build_scheduler()
    torch.manual_seed(0)
    x, classes = torch.randn(2, 1, 8, 8), torch.tensor([3, 7])
    for sigma in (0.01, 0.5, 60.0):
        level = torch.tensor(sigma)
        time = scheduler.precondition_noise(level)
        with torch.no_grad():
            out = unet(scheduler.precondition_inputs(x, level), time, classes).sample
            expected = scheduler.precondition_outputs(x, out, level)
            found = teacher.denoise(unet, x, level.expand(2), classes)
        torch.testing.assert_close(found, expected)


def test_an_edm_snapshot_opens_as_a_teacher(tmp_path):
    config = tiny()
    pipeline = DDPMPipeline(unet=teacher.build_unet(config), scheduler=teacher.build_scheduler())
    replace(pipeline, tmp_path / "snapshot", 0, config)
    opened = load_teacher("unet2d", tmp_path / "snapshot")
    assert list(opened.classes) == [str(n) for n in range(10)]


def test_the_judge_of_another_machine_is_this_ones(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    assert not take_classifier(there, here)
    keep_classifier(there, here)
    assert not [*here.iterdir()]
    judge = classifier.Classifier(classifier.Config())
    save_file(judge.state_dict(), here / "classifier.safetensors")
    before = {name: weight.clone() for name, weight in judge.state_dict().items()}
    keep_classifier(here, tmp_path)
    assert take_classifier(there, tmp_path)
    for name, weight in classifier.load(there).state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, before[name].half().float()), name
