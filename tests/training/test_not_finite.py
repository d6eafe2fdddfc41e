"""Losses, weights and data that are not finite: what is skipped, what stops, what is written."""

import json
import math

import pytest
import torch
from training.doubling import Double, student, trainer_of, weights

from edgedistill.training.metrics import Metrics
from edgedistill.training.trainer import MAX_BAD_STEPS


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
