"""Steps that grow: sizes of a step table, and what is refused of them."""

import pytest
import torch
from torch.nn import functional as F

from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.sizes import resized, shape_at
from edgedistill.diffusion.solvers import time_grid
from edgedistill.diffusion.step_table import Step, TorchStepTable

GROWING = TorchStepTable(
    (Step(900.0, 0.5, 0.25, 2.0, 0.5, size=0.5), Step(100.0, 1.0, 1.0, -1.0, 0.0)), 2.0
)


class Net(torch.nn.Module):
    """f = 0.5 x + t / 100, which remembers what it saw."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, t):
        self.seen.append(tuple(x.shape))
        return 0.5 * x + t.reshape(-1, *[1] * (x.ndim - 1)) / 100


def test_two_rows_by_hand():
    noise = GROWING.draw((3, 2, 8, 4), torch.Generator().manual_seed(0))
    assert [tuple(z.shape) for z in noise] == [(3, 2, 4, 2), (3, 2, 8, 4)]
    net = Net()
    found = GROWING.sample(net, noise, {})
    x = 2 * noise[0]
    x = 0.25 * x + 2 * (0.25 * x + 9)
    x = F.interpolate(x, (8, 4), mode="bicubic", align_corners=False) + 0.5 * noise[1]
    torch.testing.assert_close(found, x - (0.5 * x + 1))
    assert net.seen == [(3, 2, 4, 2), (3, 2, 8, 4)]


def test_frames_and_channels_are_resized_each_by_itself():
    x = torch.randn(2, 3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    found = resized(x, 6, 8)
    assert found.shape == (2, 3, 5, 6, 8)
    plane = F.interpolate(x[1, 2, 3][None, None], (6, 8), mode="bicubic")[0, 0]
    torch.testing.assert_close(found[1, 2, 3], plane)


def test_without_sizes_a_table_is_what_it_was():
    times = time_grid(Trig(), 2)
    table = few_step_table(Trig(), Prediction.V, times)
    assert table == few_step_table(Trig(), Prediction.V, times, sizes=[1, 1])
    assert set(table.to_json()["rows"][0]) == {"t", "scale", "a", "b", "c"}
    assert table.shapes((2,)) == [(2,), (2,)]


def test_sizes_are_in_json_where_they_are_not_1():
    times = time_grid(Trig(), 3)
    table = few_step_table(Trig(), Prediction.V, times, sizes=[0.5, 0.75, 1])
    assert table.shapes((4, 8, 8)) == [(4, 4, 4), (4, 6, 6), (4, 8, 8)]
    assert [row.get("size") for row in table.to_json()["rows"]] == [0.5, 0.75, None]
    assert TorchStepTable.from_json(table.to_json()) == table
    flat = few_step_table(Trig(), Prediction.V, times)
    assert table.at_one_size() == flat


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ([0.5, 0.75], "sizes 0.5, 0.75: each above 0, none below the one before, the last 1"),
        ([1, 0.5], "sizes 1, 0.5: each above 0"),
        ([0, 1], "sizes 0, 1: each above 0"),
        ([float("nan"), 1], "sizes nan, 1: each above 0"),
    ],
)
def test_sizes_that_are_none(sizes, line):
    with pytest.raises(ValueError, match=line):
        few_step_table(Trig(), Prediction.V, time_grid(Trig(), 2), sizes=sizes)


def test_deterministic_steps_do_not_grow():
    with pytest.raises(ValueError, match=r"draws noise.* choose student\.sampler=renoise"):
        few_step_table(Trig(), Prediction.V, time_grid(Trig(), 2), "ddim", sizes=[0.5, 1])
    # Where nothing grows noise may be left out.
    still, noisy = (Step(1.0, 1.0, 0.5, 0.5, c, size=0.5) for c in (0.0, 0.5))
    last = Step(0.5, 1.0, 1.0, 1.0, 0.0)
    assert TorchStepTable((still, noisy, last)).draws == 2
    with pytest.raises(ValueError, match="draws noise"):
        TorchStepTable((noisy, still, last))


def test_what_does_not_come_out_whole():
    assert shape_at((4, 8, 12), 0.75) == (4, 6, 9)
    assert shape_at((4, 9, 9), 1 / 3) == (4, 3, 3)
    with pytest.raises(ValueError, match=r"size 0\.3: 8 x 12 do not come out whole; .* 1/4"):
        shape_at((4, 8, 12), 0.3)
    with pytest.raises(ValueError, match=r"size 0\.5: data of shape \(2,\) has no height"):
        GROWING.shapes((2,))


def test_a_table_without_rows_gives_its_noise():
    """As methods take the steps before the first one."""
    noise = torch.randn(2, 3)
    assert torch.equal(TorchStepTable((), 2.0).sample(torch.nn.Identity(), [noise], {}), 2 * noise)
