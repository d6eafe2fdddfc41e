"""Rows that reuse the deep state of the row before, on a real U-Net."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.networks import unet_reuse
from edgedistill.teachers.families.unet2d import UNet2DNet
from edgedistill.tiny import unet2d

PLAIN = few_step_table(Trig(), Prediction.V, time_grid(Trig(), 5), "renoise")


@pytest.fixture(scope="module")
def net() -> UNet2DNet:
    torch.manual_seed(0)
    return UNet2DNet(unet2d.pipeline().unet.eval(), -1.0)


@torch.no_grad()
def test_a_row_reuses_what_the_row_before_made_or_reused(net):
    """Rows 1 and 2 take the state of row 0, row 4 that of row 3."""
    table = PLAIN.reusing([1, 2, 4])
    noise = table.draw((2, 3, 8, 8), torch.Generator().manual_seed(0))
    x, fresh, states = table.init_scale * noise[0], iter(noise[1:]), {}
    for index, row in enumerate(table.rows):
        time = torch.full((2,), row.t)
        source = {1: 0, 2: 0, 4: 3}.get(index)
        if source is None:
            f, states[index] = unet_reuse.full(net.unet, row.scale * x, time)
        else:
            f = unet_reuse.shallow(net.unet, row.scale * x, time, states[source])
        x = row.a * x - row.b * f + (row.c * next(fresh) if row.c else 0)
    found = table.sample(net, noise, {})
    torch.testing.assert_close(found, x)
    assert not torch.allclose(found, PLAIN.sample(net, noise, {}), atol=1e-3)


def test_a_table_without_reuse_is_written_as_before():
    data = PLAIN.to_json()
    assert all(row.keys() == {"t", "scale", "a", "b", "c"} for row in data["rows"])
    assert PLAIN.reusing([2]).reusing([]) == PLAIN
    assert not PLAIN.reuses


def test_reuse_survives_json():
    table = PLAIN.reusing([1, 4])
    data = table.to_json()
    assert [row.get("reuse") for row in data["rows"]] == [None, True, None, None, True]
    assert TorchStepTable.from_json(data) == table
    assert table.reuses


def test_the_cut_survives_json_and_reaches_the_network(net):
    table = PLAIN.reusing([1, 4], layers=1)
    data = table.to_json()
    assert data["reuse_layers"] == 1
    assert TorchStepTable.from_json(data) == table
    noise = table.draw((2, 3, 8, 8), torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, block = (made.sample(net, noise, {}) for made in (table, PLAIN.reusing([1, 4])))
        whole = PLAIN.reusing([1, 4], layers=net.outer_layers).sample(net, noise, {})
    assert not torch.allclose(found, block, atol=1e-4)
    torch.testing.assert_close(whole, block)
    for wrong in (0, -1, 1.0, True, "1"):
        with pytest.raises(ValueError, match=r"step_table: .*reuse_layers: .* whole number abov"):
            TorchStepTable.from_json(data | {"reuse_layers": wrong})


def test_what_steps_do_beyond_others_is_said():
    reusing = PLAIN.reusing([1])
    assert reusing.beyond(PLAIN) == ["reuse deep blocks"]
    assert PLAIN.beyond(reusing) == reusing.beyond(PLAIN.reusing([4])) == []


def test_tables_that_cannot_be_are_refused():
    first = replace(PLAIN.rows[0], reuse=True)
    with pytest.raises(ValueError, match="row 0 reuses a deep state, and no row before it has"):
        TorchStepTable((first, *PLAIN.rows[1:]))
    small = replace(PLAIN.rows[0], size=0.5)
    with pytest.raises(ValueError, match="row 1 reuses a deep state"):
        TorchStepTable((small, replace(PLAIN.rows[1], reuse=True), *PLAIN.rows[2:]))
    for wrong in (0, 5, -1):
        with pytest.raises(ValueError, match=rf"row {wrong} is not one of 5 with a row before it"):
            PLAIN.reusing([wrong])
    data = PLAIN.to_json()
    data["rows"][1]["reuse"] = 1
    with pytest.raises(ValueError, match=r"step_table: .*reuse: 1, true or false expected"):
        TorchStepTable.from_json(data)


def test_a_network_without_a_deep_state_is_named():
    noise = PLAIN.draw((2, 3), torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"Linear has no deep state .* only U-Nets have"):
        PLAIN.reusing([1]).sample(nn.Linear(3, 3), noise, {})
