"""Another's weights put into a pipeline: a whole network, or a LoRA fused into it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["fold_guidance", "fuse_lora", "guidance_embedding", "plain_unet", "put_weights"]

_ADAPTER = "adopted"
_PROJECTION = "time_embedding.cond_proj.weight"
_WEIGHT, _BIAS = "time_embedding.linear_1.weight", "time_embedding.linear_1.bias"


def guidance_embedding(scale: float, width: int) -> Tensor:
    """What an LCM reads for guidance `scale`: sines and cosines of 1000 (scale - 1), (width,).

    In float32, as diffusers' pipelines compute timestep_cond from their guidance_scale: the phase
    goes to thousands, so its rounding is seen in the picture.
    """
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
    phase = torch.tensor(scale - 1, dtype=torch.float32) * 1000.0 * rates
    return torch.cat([phase.sin(), phase.cos(), torch.zeros(width % 2)])


def fold_guidance(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Weights of a U-Net that reads its guidance scale -> of a plain one, at one scale.

    The embedding enters as linear_1(time + cond_proj(w)), so a constant w is exactly a change of
    linear_1's bias.
    """
    folded = dict(state)
    projection = folded.pop(_PROJECTION).double()
    constant = projection @ guidance_embedding(scale, projection.shape[1]).double()
    bias = folded[_BIAS]
    folded[_BIAS] = (bias.double() + folded[_WEIGHT].double() @ constant).to(bias.dtype)
    return folded


def plain_unet(unet: Any, scale: float) -> Any:
    """`unet` with its guidance scale folded in: the same class without time_cond_proj_dim."""
    config = {**unet.config, "time_cond_proj_dim": None}
    plain = type(unet).from_config(config).to(unet.dtype)
    plain.load_state_dict(fold_guidance(unet.state_dict(), scale))
    return plain


def put_weights(core: Any, file: Path, scale: float) -> None:
    """Load a whole network into `core`, a guidance scale folded in where it reads one.

    Raises:
        ValueError: If names or shapes differ; names the first.
    """
    # In float32 before anything is added to it: most are published in fp16.
    state = {name: tensor.float() for name, tensor in load_file(file).items()}
    if _PROJECTION in state:
        state = fold_guidance(state, scale)
    wanted = core.state_dict()
    odd = sorted(wanted.keys() ^ state.keys())
    if odd:
        where = "lacks" if odd[0] in wanted else "has, and its base has not,"
        raise ValueError(f"{file} {where} {odd[0]}; {len(odd)} names do not fit its base")
    for name, tensor in wanted.items():
        if tensor.shape != state[name].shape:
            raise ValueError(
                f"{file} does not fit its base: {name} is {list(state[name].shape)}, "
                f"{list(tensor.shape)} there"
            )
    core.load_state_dict(state)


def fuse_lora(pipeline: Any, file: Path, layers: int, scale: float) -> None:
    """Fuse a LoRA (kohya's, diffusers' or peft's names) into the pipeline's networks.

    Args:
        pipeline: The teacher's.
        file: The LoRA.
        layers: How many layers it has; diffusers ignores those it finds no place for.
        scale: Factor on all of it.

    Raises:
        ValueError: If it does not fit, in part or at all.
    """
    try:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=_ADAPTER)
    except (ValueError, RuntimeError, LookupError, AttributeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{file} does not fit its base: {' '.join(lines[:2])[:300]}") from error
    found = sum(
        isinstance(module, BaseTunerLayer) and _ADAPTER in module.lora_A
        for network in pipeline.components.values()
        if isinstance(network, nn.Module)
        for module in network.modules()
    )
    if found < layers:
        raise ValueError(f"{file} does not fit its base: {layers - found} of its {layers} layers")
    pipeline.fuse_lora(lora_scale=scale, adapter_names=[_ADAPTER])
    pipeline.unload_lora_weights()
