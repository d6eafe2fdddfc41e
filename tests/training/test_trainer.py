"""The loop: whose turn it is, what an update does, and that a resumed run is the same run."""

import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, DistributedType
from safetensors.torch import load_file
from torch import Tensor, nn

from edgedistill import recipes
from edgedistill.networks.ema import EMA
from edgedistill.objectives.base import Batch, Losses, Objective, Optim, Player, Settings
from edgedistill.runs.run import Run
from edgedistill.training import checkpoint
from edgedistill.training.config import Train
from edgedistill.training.metrics import Metrics, read_metrics
from edgedistill.training.trainer import MAX_BAD_STEPS, Hooks, Interrupted, Trainer

OLD = Path(__file__).parents[1] / "old"
"""Folders as they were written at commit a5ebfff."""

# --- A real objective as small as can be --------------------------------------------------------


class Rows:
    """Rows of a table in order, so that what a batch holds is known."""

    def __init__(self) -> None:
        self.table = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        self.place = 0

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        index = torch.arange(self.place, self.place + count) % len(self.table)
        self.place += count
        return self.table[index], {}


class Double(Objective):
    """Players learn y = 2 x; `spoil` multiplies their loss."""

    name = "double"
    Config = Settings

    def __init__(self, *players: Player) -> None:
        self._players = list(players)
        self.turns: list[str] = []
        self.draws: list[tuple[float, float]] = []
        self.followed: list[str] = []
        self.spoil: Callable[[int], float] = lambda turn: 1.0

    def players(self) -> list[Player]:
        return self._players

    def loss(self, player: str, batch: Batch) -> Losses:
        net = next(p.net for p in self._players if p.name == player)
        factor = self.spoil(len(self.turns))
        self.turns.append(player)
        self.draws.append(
            (
                torch.rand((), generator=batch.generator).item(),
                torch.rand((), generator=batch.shared).item(),
            )
        )
        loss = factor * (net(batch.x0) - 2 * batch.x0).square().mean()
        return Losses(loss, {"twice": 2 * loss.detach()})

    def updated(self, player: str) -> None:
        self.followed.append(player)


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 3)


def trainer_of(folder: Path, objective: Double, progress=None, **config) -> Trainer:
    config = {"steps": 6, "batch_size": 4, "log_every": 1, **config}
    hooks = Hooks(progress or (lambda step, figures: None), lambda net, step: None)
    return Trainer(objective, Rows(), Train(**config), folder, hooks)


def student(lr: float = 0.1, **turns) -> Player:
    return Player("student", linear(), Optim(lr=lr), **turns)


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def test_muon_is_refused_where_matrices_are_cut_up(tmp_path, monkeypatch):
    player = Player("student", linear(), Optim(name="muon"))
    trainer_of(tmp_path, Double(player)).fit()
    kind = property(lambda self: DistributedType.FSDP)
    monkeypatch.setattr(Accelerator, "distributed_type", kind)
    with pytest.raises(ValueError, match=r"student: optim\.name=muon needs whole matrices"):
        trainer_of(tmp_path, Double(player))


# --- Turns --------------------------------------------------------------------------------------


def test_players_take_their_turns_in_order_from_their_first_step(tmp_path):
    helper = Player("helper", linear(), Optim())
    objective = Double(helper, student(every=2, start=2))
    trainer_of(tmp_path, objective).fit()
    h, s = "helper", "student"
    assert objective.turns == [h, h, h, h, s, h, h, s]
    assert objective.followed == objective.turns


def test_a_turn_moves_its_own_player_only(tmp_path, two_modes, quick_fit):
    overrides = ["objective.gan_weight=0.1", "train.batch_size=8", f"teacher.path={two_modes}"]
    run = Run(recipes.load("mixture-dmd2", overrides), tmp_path)
    trainer, nets = run.trainer, {s.player.name: s.player.net for s in run.trainer.trained_players}
    assert set(nets) == {"student", "fake_score"}
    teacher = [b.clone() for b in run.teacher.denoiser.buffers()]
    for trained in trainer.trained_players:
        before = {name: weights(net) for name, net in nets.items()}
        trainer._play(trained)
        for name, net in nets.items():
            moved = [
                not torch.equal(a, b) for a, b in zip(before[name], net.parameters(), strict=True)
            ]
            assert any(moved) == (name == trained.player.name), (
                f"{name} in {trained.player.name}'s turn"
            )
            if name != trained.player.name:
                assert all(p.grad is None or not p.requires_grad for p in net.parameters())
    assert all(map(torch.equal, teacher, run.teacher.denoiser.buffers()))


def test_randomness_is_the_steps_and_the_players_own(tmp_path):
    first, second = (Double(Player("helper", linear(), Optim()), student()) for _ in range(2))
    trainer_of(tmp_path / "a", first).fit()
    trainer_of(tmp_path / "b", second).fit()
    assert first.draws == second.draws
    own, shared = zip(*first.draws, strict=True)
    assert len({*own, *shared}) == 2 * len(first.draws)  # no two alike
    other = Double(Player("helper", linear(), Optim()), student())
    trainer_of(tmp_path / "c", other, seed=1).fit()
    assert not set(other.draws) & set(first.draws)


# --- An update ----------------------------------------------------------------------------------


def test_two_batches_of_8_accumulate_to_one_of_16(tmp_path):
    gradients, results = [], []
    for choice in ({"batch_size": 16}, {"batch_size": 8, "accumulate": 2}):
        player = student()
        trainer = trainer_of(tmp_path, Double(player), clip=1e6, **choice)
        trainer._play(trainer.trained_players[0])
        gradients.append(player.net.weight.grad.clone())  # Adam would hide a factor
        player = student()
        trainer_of(tmp_path, Double(player), **choice).fit()
        results.append(player.net.weight.detach())
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
    assert not torch.equal(results[0], linear().weight)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, [1, 1, 1, 1]),
        ({"lr_warmup": 3}, [1 / 4, 2 / 4, 3 / 4, 1]),
        ({"lr_schedule": "linear"}, [1, 3 / 4, 2 / 4, 1 / 4]),
        ({"lr_schedule": "cosine"}, [0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]),
        ({"lr_schedule": "linear", "lr_warmup": 1}, [1 / 2, 3 / 4, 2 / 4, 1 / 4]),
    ],
)
def test_learning_rates_follow_their_schedule(tmp_path, choice, expected):
    player, seen = student(lr=0.02), []
    trainer = trainer_of(
        tmp_path,
        Double(player),
        lambda step, figures: seen.append(trainer.trained_players[0].raw.param_groups[0]["lr"]),
        steps=4,
        **choice,
    )
    trainer.fit()
    assert seen == pytest.approx([0.02 * factor for factor in expected])


def test_gradients_above_the_norm_are_scaled_down(tmp_path):
    player = student()
    objective = Double(player)
    objective.spoil = lambda turn: 1e4
    trainer = trainer_of(tmp_path, objective, clip=0.5)
    _, norm = trainer._play(trainer.trained_players[0])
    assert norm > 100
    total = torch.stack([p.grad.norm() for p in player.net.parameters()]).norm()
    assert total.item() == pytest.approx(0.5, rel=1e-3)


def test_ema_by_hand():
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(1.0)
    ema = EMA(net, 0.25)
    net.weight.data.fill_(3.0)
    ema.update(net)  # the early decay 2 / 11 is below 0.25
    assert ema.net.weight.item() == pytest.approx(1 * 2 / 11 + 3 * 9 / 11)
    before = ema.net.weight.item()
    net.weight.data.fill_(-1.0)
    for _ in range(3):
        ema.update(net)
    for decay in (0.25, 0.25, 0.25):  # 3 / 12 and on
        before = decay * before - (1 - decay)
    assert ema.net.weight.item() == pytest.approx(before)
    assert not ema.net.weight.requires_grad
    with pytest.raises(ValueError, match="EMA decay"):
        EMA(net, 1.0)


def test_the_result_is_the_average_of_the_student(tmp_path):
    player, seen = student(), []
    trainer = trainer_of(
        tmp_path,
        Double(Player("helper", linear(), Optim(lr=0.5)), player),
        lambda step, figures: seen.append(player.net.bias.detach().clone()),
        ema=0.3,
    )
    expected = linear().bias.detach()
    found = trainer.fit()
    for n, bias in enumerate(seen, 1):
        expected = torch.lerp(expected, bias, 1 - min(0.3, (1 + n) / (10 + n)))
    torch.testing.assert_close(found.bias, expected)


def test_half_precision_computes_but_keeps_float32_weights(tmp_path):
    player = student()
    trainer_of(tmp_path, Double(player), precision="bf16").fit()
    assert player.net.weight.dtype == torch.float32
    assert bool(player.net.weight.isfinite().all())
    assert not torch.equal(player.net.weight, linear().weight)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it trains on the GPU")
@pytest.mark.parametrize("there", [True, False])
def test_slow_bf16_is_told(tmp_path, monkeypatch, said, there):
    flags = {"avx2": True, "avx512_bf16": there, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    trainer_of(tmp_path, Double(student()), precision="bf16")
    assert any("fp32 is 10 times as fast" in line for line in said) is not there


@pytest.mark.skipif(torch.cuda.is_available(), reason="this device has fp16")
def test_fp16_is_refused_where_there_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"train.precision=fp16: a CPU has none; choose bf16"):
        trainer_of(tmp_path, Double(student()), precision="fp16")


# --- Not a number -------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_update_that_is_not_finite_is_left_out(tmp_path, bad):
    nets = []
    for spoiled in ((), (2,)):
        player = student()
        objective, history = Double(player), []
        objective.spoil = lambda turn, spoiled=spoiled: bad if turn in spoiled else 1.0
        trainer = trainer_of(
            tmp_path / str(len(spoiled)),
            objective,
            lambda step, figures, h=history, p=player: h.append(weights(p.net)[0]),
            steps=4,
        )
        nets.append(trainer.fit())
        assert all(bool(w.isfinite().all()) for w in history)
    assert torch.equal(history[1], history[2])
    assert not torch.equal(history[2], history[3])
    assert all(bool(p.isfinite().all()) for p in nets[1].parameters())
    assert objective.followed == ["student"] * 3


def test_too_many_in_a_row_stop_the_run_and_leave_the_weights_finite(tmp_path):
    player = student()
    objective = Double(player)
    objective.spoil = lambda turn: math.nan if turn >= 2 else 1.0
    trainer = trainer_of(tmp_path, objective, steps=100)
    with pytest.raises(FloatingPointError, match=r"student: .* not finite 11 updates in a row"):
        trainer.fit()
    assert len(objective.turns) == 2 + MAX_BAD_STEPS + 1
    for net in (player.net, trainer.ema.net):
        assert all(bool(p.isfinite().all()) for p in net.parameters())


def test_skipped_updates_are_told_at_the_end(tmp_path, said):
    objective = Double(student())
    objective.spoil = lambda turn: math.nan if turn in (1, 4, 5) else 1.0
    trainer_of(tmp_path, objective).fit()
    line = "student: loss or gradient not finite: 3 of 6 updates skipped, the last 2 among them"
    assert said == [line]


def test_a_run_without_a_finite_update_fails_however_short(tmp_path):
    objective = Double(student())
    objective.spoil = lambda turn: math.nan
    with pytest.raises(FloatingPointError, match=r"student: .* finite in all of its 3 updates"):
        trainer_of(tmp_path, objective, steps=3).fit()


def test_skipped_updates_are_counted_over_an_interruption(tmp_path, said):
    for steps in (2, 4):
        objective = Double(student())
        objective.spoil = lambda turn, steps=steps: math.nan if steps == 2 and turn else 1.0
        trainer = trainer_of(tmp_path, objective, steps=steps)
        trainer.resume()
        trainer.fit()
    assert said[-1] == "student: loss or gradient not finite: 1 of 4 updates skipped"


@pytest.mark.parametrize("place", ["weight", "moment", "ema"])
def test_what_is_not_finite_is_in_no_checkpoint(tmp_path, place):
    """What the last update breaks shows in no loss."""
    player = student()

    def spoil(step, figures):
        if step == 3 and place == "moment":
            trainer.trained_players[0].raw.state[player.net.weight]["exp_avg_sq"][0, 0] = math.inf
        if step == 3 and place == "ema":
            trainer.ema.net.bias.data[0] = math.nan
        if step == 3 and place == "weight":
            player.net.weight.data[0] = math.inf

    trainer = trainer_of(tmp_path, Double(player), spoil, steps=3)
    named = {
        "weight": "student: weight",
        "moment": "student: 0.exp_avg_sq of its optimizer",
    }
    expected = named.get(place, "ema: bias")
    with pytest.raises(FloatingPointError, match=rf"^{expected} is not finite after step 3"):
        trainer.fit()
    assert not list(tmp_path.glob("checkpoints/*"))


def test_data_that_are_not_finite_are_named(tmp_path):
    trainer = trainer_of(tmp_path, Double(student()))
    trainer.source.table[9, 1] = math.nan
    with pytest.raises(FloatingPointError, match="data: row 1 of a batch at step 2 is not fin"):
        trainer.fit()


def test_figures_that_are_not_finite_are_in_no_line(tmp_path):
    metrics = Metrics(tmp_path, 0)
    for value in (1.0, math.nan, 3.0, math.inf):
        metrics.add("student/loss", value)
        metrics.add("helper/loss", math.nan)
    assert metrics.flush(4) == {"step": 4, "student/loss": 2.0}
    metrics.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 4, "student/loss": 2.0}


# --- Stopping and going on ----------------------------------------------------------------------


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
