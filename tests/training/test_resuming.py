"""A run that was stopped goes on from its checkpoint and metrics, and ends as the same run."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training.doubling import Double, student, trainer_of

from edgedistill import recipes
from edgedistill.runs.run import Run
from edgedistill.training import checkpoint
from edgedistill.training.metrics import Metrics, read_metrics
from edgedistill.training.trainer import Interrupted

OLD = Path(__file__).parents[1] / "old"
"""Folders as they were written at commit a5ebfff."""


def test_an_interrupt_writes_a_checkpoint_at_the_end_of_the_step(tmp_path):
    def press(step, figures):
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="after step 3"):
        trainer_of(tmp_path, Double(student()), press).fit()
    assert signal.getsignal(signal.SIGINT) is before
    newest = checkpoint.latest(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.name == "step-00000003"
    assert {file.suffix for file in newest.iterdir()} == {".json", ".safetensors"}


def test_only_the_newest_checkpoints_stay_and_torn_ones_do_not_count(tmp_path):
    folder = tmp_path / "checkpoints"
    (folder / ".step-00000003-torn").mkdir(parents=True)
    trainer_of(tmp_path, Double(student()), checkpoint_every=1).fit()
    assert [p.name for p in sorted(folder.iterdir())] == ["step-00000005", "step-00000006"]
    (folder / "step-00000009").mkdir()
    (folder / ".step-00000007-torn").mkdir()
    assert checkpoint.latest(folder) == folder / "step-00000006"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("state.json", b'{"schema_version": 9}', r"state\.json: schema_version 9, 2 expected"),
        ("student.safetensors", None, r"student\.safetensors: "),
        ("optim-student.safetensors", None, r"optim-student\.safetensors: "),
        ("optim-student.safetensors", b"torn", r"optim-student\.safetensors: "),
        ("student.safetensors", b"torn", r"student\.safetensors: "),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_its_file(tmp_path, name, content, message):
    trainer_of(tmp_path, Double(student())).fit()
    file = checkpoint.latest(tmp_path / "checkpoints") / name
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, Double(student())).resume()


def test_metrics_of_steps_that_are_done_again_are_dropped(tmp_path):
    metrics = Metrics(tmp_path, 0)
    for step in (2, 4, 6):
        metrics.add("student/loss", float(step))
        metrics.add("student/loss", step + 2.0)
        metrics.flush(step)
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "stud')  # torn by a kill
    assert [line["student/loss"] for line in read_metrics(tmp_path)] == [3.0, 5.0, 7.0]
    metrics = Metrics(tmp_path, 4)
    metrics.flush(6, lr=1.0)
    metrics.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert lines[2] == {"step": 6, "lr": 1.0}


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        b'{"lr": 1.0}',
        b'{"step": "4"}',
        b'{"step": 4, "lr": NaN}',
        b'{"step": 4, "lr": null}',
        b"[4]",
        b"\0\0\0",
        b"[" * 100_000,
    ],
)
def test_a_damaged_line_of_metrics_costs_no_other(tmp_path, line):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 2, "lr": 1.0}\n' + line + b'\n{"step": 6, "lr": 3.0}\n{"st')
    assert [found["step"] for found in read_metrics(tmp_path)] == [2, 6]
    metrics = Metrics(tmp_path, 6)
    metrics.close()
    assert metrics.damaged == 1
    assert file.read_text() == '{"step": 2, "lr": 1.0}\n{"step": 6, "lr": 3.0}\n'


def two_checkpoints(folder: Path) -> Path:
    """A run's newest checkpoint of two."""
    trainer_of(folder, Double(student()), checkpoint_every=3).fit()
    return folder / "checkpoints" / "step-00000006"


@pytest.mark.parametrize(
    "name", ["state.json", "student.safetensors", "ema.safetensors", "optim-student.safetensors"]
)
def test_damage_to_the_newest_checkpoint_is_named_and_the_older_one_is_taken(tmp_path, said, name):
    newest = two_checkpoints(tmp_path)
    whole = (newest / name).read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 3):
        data = bytearray(whole)
        data[place] ^= 1
        (newest / name).write_bytes(data)
        said.clear()
        assert trainer_of(tmp_path, Double(student())).resume() == 3
        assert len(said) == 1
        assert said[0].startswith(f"{newest / name}: ")
        assert said[0].endswith("; step-00000003 is taken up instead")
    trainer = trainer_of(tmp_path, Double(student()), checkpoint_every=2)
    trainer.resume()
    ends = trainer.fit()
    assert [p.name[-1] for p in sorted((tmp_path / "checkpoints").iterdir())] == ["4", "6"]
    again = trainer_of(tmp_path, Double(student()))
    assert again.resume() == 6
    assert torch.equal(ends.weight, again.ema.net.weight)


def test_a_run_that_is_taken_up_removes_what_a_killed_one_left_beside_its_checkpoints(tmp_path):
    """The newest checkpoint may be whole, so that no later one is written beside the remains."""
    left = two_checkpoints(tmp_path).with_name(".step-00000006-abcdefgh.part")
    left.mkdir()
    (left / "new").mkdir()
    trainer = trainer_of(tmp_path, Double(student()), checkpoint_every=3)
    assert trainer.resume() == 6
    assert not left.exists()


def test_two_files_of_a_checkpoint_that_were_swapped_are_seen(tmp_path):
    newest = two_checkpoints(tmp_path)
    shutil.copy(newest / "student.safetensors", newest / "ema.safetensors")
    assert trainer_of(tmp_path, Double(student())).resume() == 3
    shutil.rmtree(newest.parent / "step-00000003")
    with pytest.raises(ValueError, match=r"06/ema\.safetensors: damaged or changed"):
        trainer_of(tmp_path, Double(student())).resume()


def test_a_checkpoint_of_the_first_schema_is_taken_up(tmp_path, capsys):
    shutil.copytree(OLD / "checkpoints", tmp_path / "checkpoints")
    player = student()
    trainer = trainer_of(tmp_path, Double(player))
    assert trainer.resume() == 2
    assert "state.json: schema 1 has no hashes" in " ".join(capsys.readouterr().err.split())
    stored = load_file(OLD / "checkpoints" / "step-00000002" / "student.safetensors")
    assert torch.equal(player.net.weight, stored["weight"])
    assert trainer.trained_players[0].raw.state_dict()["state"][0]["step"] == 2
    trainer.fit()
    state = json.loads((tmp_path / "checkpoints/step-00000006/state.json").read_text())
    assert (state["schema_version"], len(state["sha256"])) == (2, 4)


@pytest.mark.parametrize(
    "change", [{"step": 7}, {"step": "2"}, {"bad": None}, {"ema_updates": []}]
)
def test_a_state_of_the_first_schema_is_checked_for_sense(tmp_path, change):
    shutil.copytree(OLD / "checkpoints", tmp_path / "checkpoints")
    file = tmp_path / "checkpoints" / "step-00000002" / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=rf"state\.json: {next(iter(change))}: "):
        trainer_of(tmp_path, Double(student())).resume()


class PulledError(Exception):
    """The plug was pulled."""


CHOICES = {
    "mixture-lcm": ["train.batch_size=8", "train.lr_schedule=cosine"],
    "mixture-dmd2": [
        "train.batch_size=8",
        "objective.gan_weight=0.1",
        "objective.turns=2",
        "objective.warmup=1",
        "train.accumulate=2",
    ],
}


def new_run(recipe: str, folder: Path, teacher: Path) -> Run:
    folder.mkdir(exist_ok=True)
    choices = ["train.steps=10", "train.checkpoint_every=3", "train.log_every=2"]
    overrides = [*CHOICES[recipe], *choices, f"teacher.path={teacher}"]
    return Run(recipes.load(recipe, overrides), folder)


def pull_at(step: int):
    def progress(done, figures):
        if done == step:
            raise PulledError

    return progress


@pytest.mark.parametrize("recipe", sorted(CHOICES))
def test_a_resumed_run_is_bit_identical(recipe, tmp_path, two_modes, quick_fit):
    whole = new_run(recipe, tmp_path / "whole", two_modes).train(lambda done, figures: None)
    broken = new_run(recipe, tmp_path / "broken", two_modes)
    with pytest.raises(PulledError):
        broken.train(pull_at(8))
    again = new_run(recipe, tmp_path / "broken", two_modes)
    assert again.restore() == 6
    with pytest.raises(PulledError):
        again.train(pull_at(7))
    last = new_run(recipe, tmp_path / "broken", two_modes)
    assert last.restore() == 6
    resumed = last.train(lambda done, figures: None)
    for name in ("student", "fake_score", "target", "ema", "optim-student", "optim-fake_score"):
        files = [
            tmp_path / run / "checkpoints" / "step-00000010" / f"{name}.safetensors"
            for run in ("whole", "broken")
        ]
        if files[0].exists():
            ours, theirs = load_file(files[0]), load_file(files[1])
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    file = Path("net") / "diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(whole / file), load_file(resumed / file)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    steps = [line["step"] for line in read_metrics(tmp_path / "broken")]
    assert steps == [2, 4, 6, 8, 10]
