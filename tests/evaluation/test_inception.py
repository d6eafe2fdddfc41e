"""Inception's features by torch-fidelity, random weights; a clear line without the package."""

import importlib.util

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgedistill.evaluation.features import open_features
from edgedistill.evaluation.inception import Inception

there = importlib.util.find_spec("torch_fidelity") and importlib.util.find_spec("torchvision")


@pytest.mark.skipif(bool(there), reason="torch-fidelity is installed")
def test_without_the_package_the_extra_is_named():
    with pytest.raises(ValueError, match=r"inception:x needs torch-fidelity.*edgedistill\[metric"):
        open_features(None, "inception:x")


@pytest.mark.skipif(not there, reason="torch-fidelity and torchvision are not installed")
class TestInception:
    @pytest.fixture(scope="class")
    def bare(self):
        from torch_fidelity import FeatureExtractorInceptionV3

        from edgedistill.evaluation.inception import nothing

        class Bare(FeatureExtractorInceptionV3):
            def load_state_dict(self, *args, **kwargs):
                pass

        torch.manual_seed(0)
        return Bare("bare", ["2048"], nothing())

    def test_features_are_torch_fidelitys(self, bare, tmp_path):
        save_file(bare.state_dict(), tmp_path / "weights.safetensors")
        eye = open_features(None, f"inception:{tmp_path / 'weights.safetensors'}")
        pictures = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
        theirs = bare(torch.from_numpy(pictures).permute(0, 3, 1, 2))[0]
        assert theirs.shape == (5, 2048)
        torch.testing.assert_close(eye.images(pictures), theirs)

    def test_other_weights_are_refused(self, tmp_path):
        save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match="does not hold Inception's weights"):
            Inception(str(tmp_path / "other.safetensors"))

    def test_no_file(self, tmp_path):
        with pytest.raises(ValueError, match="no such file"):
            Inception(str(tmp_path / "none.safetensors"))
