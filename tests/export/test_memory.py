"""Weights on disk."""

import gc
import sys

import pytest
import torch
from torch import nn

from edgedistill_export.memory import WeightsOnDisk, watch_peak, weights_mb


def test_values_types_and_shared_weights_stay(tmp_path):
    net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 5), nn.BatchNorm1d(5)).bfloat16()
    net[1].weight = nn.Parameter(net[1].weight.detach().t())  # not contiguous
    net.tied, net.empty = net[0].weight, nn.Parameter(torch.empty(0))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    stored = WeightsOnDisk(net, tmp_path / "w")
    stored.forget()
    (tmp_path / "w").unlink()
    for name, value in net.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert net.tied is net[0].weight


def test_a_module_without_weights_is_no_matter(tmp_path):
    WeightsOnDisk(nn.ReLU(), tmp_path / "w").forget()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_was_read_is_given_back(tmp_path):
    net = nn.Linear(4096, 4096, bias=False)
    stored = WeightsOnDisk(net, tmp_path / "w")

    def held():
        gc.collect()
        with watch_peak() as peak:
            pass
        return peak.mb

    empty = held()
    net(torch.ones(1, 4096))
    full = held()
    stored.forget()
    assert full - empty > 0.9 * weights_mb(net)
    assert held() - empty < 0.1 * weights_mb(net)
