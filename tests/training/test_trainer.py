"""The loop: whose turn it is, and what an update does."""

import math

import pytest
import torch
from accelerate import Accelerator, DistributedType
from torch import nn
from training.doubling import Double, linear, student, trainer_of, weights

from edgedistill import recipes
from edgedistill.networks.ema import EMA
from edgedistill.objectives.base import Optim, Player
from edgedistill.runs.run import Run

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


def test_muon_is_refused_where_matrices_are_cut_up(tmp_path, monkeypatch):
    player = Player("student", linear(), Optim(name="muon"))
    trainer_of(tmp_path, Double(player)).fit()
    kind = property(lambda self: DistributedType.FSDP)
    monkeypatch.setattr(Accelerator, "distributed_type", kind)
    with pytest.raises(ValueError, match=r"student: optim\.name=muon needs whole matrices"):
        trainer_of(tmp_path, Double(player))
