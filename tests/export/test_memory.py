"""Weights on disk."""

import gc
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgedistill_export.memory import WeightsOnDisk, reading_frugally, watch_peak, weights_mb


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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is resident")
def test_what_is_read_of_a_mapped_file_is_given_back(tmp_path):
    size = 64 * 2**20
    path = tmp_path / "weights"
    np.arange(size // 8).tofile(path)
    mapped = np.memmap(path, np.int64, "r")
    with reading_frugally(tmp_path, pause=0.01):
        before = resident_file_bytes()
        assert mapped.sum() == (size // 8) * (size // 8 - 1) // 2
        for _ in range(200):
            if resident_file_bytes() - before < size // 2:
                break
            time.sleep(0.01)
        assert resident_file_bytes() - before < size // 2
        assert mapped[-1] == size // 8 - 1
    assert not any(thread.name == "give-back" for thread in threading.enumerate())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is mapped")
def test_pages_that_were_written_to_stay(tmp_path):
    path = tmp_path / "weights"
    np.zeros(2**20, np.uint8).tofile(path)
    mapped = np.memmap(path, np.uint8, "c")
    mapped[:] = 7
    with reading_frugally(tmp_path, pause=0.01):
        time.sleep(0.1)
    assert mapped.min() == 7


def resident_file_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("RssFile")]
    return int(line.split()[1]) * 1024
