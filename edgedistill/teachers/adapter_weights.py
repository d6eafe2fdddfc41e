"""Put foreign weights into a pipeline: a whole network, or a LoRA that is fused."""

from __future__ import annotations

import math
import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from edgedistill.common.finite import check_finite
from edgedistill.teachers.adapter_files import (
    CONFIG,
    Layer,
    energy,
    magnify,
    read_layers,
    write_plain,
)
from edgedistill.teachers.loading import whole_weights

__all__ = ["fold_guidance", "fuse_lora", "guidance_embedding", "plain_unet", "put_weights"]

_ADAPTER = "adopted"
_HARMLESS = "No LoRA keys associated to "
"""Start of diffusers' message about networks that an adapter does not change."""
_LOST = re.compile(r"(missing|unexpected|unused)\b.*\bkeys?\b", re.I | re.S)
"""Pattern of peft's warnings about weights that were not used."""
_PROJECTION = "time_embedding.cond_proj.weight"
_WEIGHT, _BIAS = "time_embedding.linear_1.weight", "time_embedding.linear_1.bias"


def guidance_embedding(scale: float, width: int) -> Tensor:
    """Return an LCM's embedding of guidance `scale`: sines and cosines of 1000 (scale - 1).

    The result is (width,), in float32, as diffusers' pipelines compute timestep_cond from their
    guidance_scale: the phase reaches thousands, so its rounding shows in the picture.
    """
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
    phase = torch.tensor(scale - 1, dtype=torch.float32) * 1000.0 * rates
    return torch.cat([phase.sin(), phase.cos(), torch.zeros(width % 2)])


def fold_guidance(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Turn weights of a U-Net that reads its guidance scale into a plain one's at one scale.

    The embedding enters as linear_1(time + cond_proj(w)), so a constant w amounts exactly to a
    change of linear_1's bias.
    """
    folded = dict(state)
    projection = folded.pop(_PROJECTION).double()
    constant = projection @ guidance_embedding(scale, projection.shape[1]).double()
    bias = folded[_BIAS]
    folded[_BIAS] = (bias.double() + folded[_WEIGHT].double() @ constant).to(bias.dtype)
    return folded


def plain_unet(unet: Any, scale: float) -> Any:
    """Return `unet` with its guidance scale folded in, without time_cond_proj_dim."""
    config = {**unet.config, "time_cond_proj_dim": None}
    plain = type(unet).from_config(config).to(unet.dtype)
    plain.load_state_dict(fold_guidance(unet.state_dict(), scale))
    return plain


def put_weights(core: Any, file: Path, scale: float) -> None:
    """Load a whole network into `core`, with a guidance scale folded in where it reads one.

    Raises:
        ValueError: If names or shapes differ; names the first.
    """
    # Convert to float32 before anything is added: most are published in fp16.
    state = {name: tensor.float() for name, tensor in load_file(file).items()}
    check_finite(str(file), state)
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


def fuse_lora(pipeline: Any, file: Path, scale: float) -> None:
    """Fuse a LoRA or DoRA (kohya's, diffusers' or peft's names) into the pipeline's networks.

    Args:
        pipeline: The teacher's pipeline.
        file: The adapter.
        scale: Factor on the whole adapter.

    Raises:
        ValueError: If a part of it does not fit, or the networks do not receive what the file
            holds.
    """
    layers = read_layers(file)
    dora = {name: layer for name, layer in layers.items() if layer.magnitude is not None}
    if dora and scale != 1:
        raise ValueError(
            f"{file}: DoRA magnitudes ({next(iter(dora))}) are for a scale of 1; these students "
            f"are fused at {scale:g}"
        )
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.safetensors"
        write_plain(file, layers, plain)
        _load(pipeline, plain, str(file))
    found = _found(pipeline)
    _check_arrived(file, layers, found)
    places = {name: _place(file, name, layer, found) for name, layer in dora.items()}
    pipeline.fuse_lora(lora_scale=scale, adapter_names=[_ADAPTER])
    pipeline.unload_lora_weights()
    for name, (network, path) in places.items():
        weight, magnitude = network.get_parameter(f"{path}.weight"), dora[name].magnitude
        assert magnitude is not None
        try:
            weight.data = magnify(weight.data, magnitude)
        except ValueError as error:
            raise ValueError(f"{file} does not fit its base: {name}: {error}") from None


def _load(pipeline: Any, file: Path, said: str) -> None:
    """Let diffusers load an adapter; its warnings and peft's become errors."""
    try:
        with whole_weights(said) as heard, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            pipeline.load_lora_weights(
                str(file.parent), weight_name=file.name, adapter_name=_ADAPTER
            )
    except (ValueError, RuntimeError, LookupError, AttributeError, TypeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{said} does not fit its base: {' '.join(lines[:2])[:300]}") from error
    lost = [line for line in heard if not line.startswith(_HARMLESS)]
    lost += [str(each.message) for each in warned if _LOST.search(str(each.message))]
    if lost:
        raise ValueError(f"{said} does not fit its base: {' '.join(lost[0].split())[:300]}")


Found = list[tuple[nn.Module, str, Any]]


def _found(pipeline: Any) -> Found:
    """Return layers that have an adapter: the network, the layer's path in it, the layer."""
    return [
        (network, path, module)
        for network in pipeline.components.values()
        if isinstance(network, nn.Module)
        for path, module in network.named_modules()
        if isinstance(module, BaseTunerLayer) and _ADAPTER in module.lora_A
    ]


def _check_arrived(file: Path, layers: Mapping[str, Layer], found: Found) -> None:
    """Raise a ValueError if the networks' adapters differ from the file's layers and values.

    This compares energies: the energy of a layer that is split is the sum of its parts'.
    """
    with safe_open(file, "pt") as opened:
        configured = CONFIG in (opened.metadata() or {})
    wanted = {
        name: energy(layer.down, layer.up, 1.0 if configured else layer.scale)
        for name, layer in layers.items()
    }
    got = [
        energy(
            module.lora_A[_ADAPTER].weight,
            module.lora_B[_ADAPTER].weight,
            1.0 if configured else module.scaling[_ADAPTER],
        )
        for _, _, module in found
    ]
    total, arrived = sum(wanted.values()), sum(got)
    if len(found) >= len(layers) and math.isclose(total, arrived, rel_tol=1e-4, abs_tol=1e-30):
        return
    lost = list(wanted)
    for value in got:
        near = (name for name in lost if math.isclose(wanted[name], value, rel_tol=1e-4))
        if (name := next(near, None)) is not None:
            lost.remove(name)
    first = f", {lost[0]} first" if lost else ""
    raise ValueError(
        f"{file} does not fit its base: {len(lost)} of its {len(layers)} layers would not do "
        f"there what they say{first}"
    )


def _place(file: Path, name: str, layer: Layer, found: Found) -> tuple[nn.Module, str]:
    """Return the network and path that a layer of the file was loaded into."""
    up = (layer.scale * layer.up).float()
    places = [
        (network, path)
        for network, path, module in found
        if torch.equal(module.lora_B[_ADAPTER].weight.detach().float().cpu(), up)
    ]
    if len(places) != 1:
        raise ValueError(f"{file}: magnitudes of {name} have {len(places)} layers to go to, not 1")
    return places[0]
