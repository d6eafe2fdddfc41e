"""The Inception network that published FIDs are measured with, from torch-fidelity.

`evaluate.features=inception:FILE` names its weights, those of 2015-12-05 as safetensors, by
torch-fidelity's names of layers. FD in these features is the FID of Heusel et al. 2017, and KID
that of Binkowski et al. 2018.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from edgedistill.recipes.schema import INCEPTION

__all__ = ["Inception"]

BATCH = 32


class Inception:
    """Features (N, 2048) of InceptionV3, resized and pooled as in TensorFlow.

    Args:
        file: A safetensors file of its weights.

    Raises:
        ValueError: If torch-fidelity is not installed, or the file does not hold these weights.
    """

    name = "Inception"
    words = "Features are Inception's 2048 pooled ones: FD is FID."

    def __init__(self, file: str) -> None:
        try:
            from torch_fidelity import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ValueError(
                f"evaluate.features={INCEPTION}{file} needs torch-fidelity: "
                f"pip install 'edgedistill[metrics]' ({error})"
            ) from None
        if not Path(file).is_file():
            raise ValueError(f"{file}: no such file")

        class FromSafetensors(FeatureExtractorInceptionV3):  # type: ignore[misc]  # untyped base
            def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any) -> Any:
                return super().load_state_dict(load_file(file), *args)

        try:
            self.net = FromSafetensors("inception", ["2048"], nothing())
        except Exception as error:
            first = str(error).strip().splitlines()[0]
            raise ValueError(f"{file} does not hold Inception's weights: {first}") from error

    @torch.no_grad()
    def images(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Return features of pictures (N, H, W, 3) bytes."""
        pieces = torch.split(torch.from_numpy(pictures).permute(0, 3, 1, 2), BATCH)
        return torch.cat([self.net(piece)[0] for piece in pieces])


def nothing() -> io.BytesIO:
    """Return a checkpoint without weights: torch-fidelity opens one before it is given ours."""
    file = io.BytesIO()
    torch.save({}, file)
    file.seek(0)
    return file
