"""Roles (student, fake_score, ...) that share one frozen base network, each with its own LoRA.

LoRA: Hu et al. 2021 (arXiv 2106.09685): the layer is W x + (alpha / rank) B A x, with B = 0 at the
start. Student and fake_score as adapters of the teacher follow DMD2's LoRA runs (Yin et al. 2024,
arXiv 2405.14867).

A role has its own module objects around the base's tensors. No role is ever switched on or off, so
calls, gradients, hooks and gradient checkpointing of one role cannot affect another's.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedistill.common.plugins import unknown
from edgedistill.common.settings import Settings
from edgedistill.networks.bf16 import to_fp32

__all__ = ["LAYERS", "Adapter", "Role", "adapt", "find_layers"]

LAYERS = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("ff.net.0.proj", "ff.net.2", "ffn.net.0.proj", "ffn.net.2"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
    *("proj_in", "proj_out", "time_emb_proj"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff_context.net.0.proj", "ff_context.net.2", "proj_mlp"),
    *("ff.conv_inverted", "ff.conv_point"),
)
"""Attention, feed-forward, convolution and projection layers by diffusers' names, including the
text stream of joint transformers."""

NAME = "default"  # peft's own name for the one adapter a role has


class Adapter(Settings):
    """The `train.adapter` section of a recipe: the LoRA each role has with `train.roles=adapters`.

    Unused where roles are copies.
    """

    rank: int = Field(64, gt=0, le=4096)
    """Rank of the LoRA. 64 (DMD2's LoRA) suits networks as wide as SD 1.5 and up; a network of
    width 100 saves little memory with it, and more with 8."""
    alpha: float | None = Field(None, gt=0)
    """Scale of the LoRA: the update is multiplied by alpha / rank; None means alpha = rank."""
    layers: tuple[str, ...] = Field(LAYERS, min_length=1)
    """Ends of the paths of the Linear and Conv2d modules that get a LoRA. The network need have
    only some of the default ones."""


class Role(nn.Module):
    """A network made of a shared base and an adapter of its own.

    Its parameters and state are the adapter's alone. `copy.deepcopy` gives a role with an adapter
    of equal weights on the same base. Module paths are the base's, except that an adapted layer is
    peft's. The base must already be on its device; `to` moves the adapter only.

    Args:
        base: The frozen network, which is not changed.
        net: Adapted modules like the base's, around the same tensors (see `adapt`).
    """

    base: nn.Module
    _net: nn.Module

    def __init__(self, base: nn.Module, net: nn.Module) -> None:
        super().__init__()
        # Bypass nn.Module, which would register them and so own the base's weights.
        self.__dict__["base"], self.__dict__["_net"] = base, net
        for name, child in net.named_children():
            self.add_module(name, child)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._net(*args, **kwargs)

    def train(self, mode: bool = True) -> Role:
        self._net.train(mode)
        return super().train(mode)

    def __deepcopy__(self, memo: dict[int, Any]) -> Role:
        return Role(self.base, _twin(self._net, self.base, memo))

    def adapted(self) -> Iterator[tuple[str, Any]]:
        """Yield (path in the base, peft's layer) of each adapted layer."""
        from peft.tuners.lora import LoraLayer

        return ((path, m) for path, m in self._net.named_modules() if isinstance(m, LoraLayer))

    @torch.no_grad()
    def fused(self) -> nn.Module:
        """Return a new float32 network like the base, with the adapter added to its weights."""
        net = to_fp32(copy.deepcopy(self.base))
        for path, layer in self.adapted():
            net.get_submodule(path).get_parameter("weight").add_(layer.get_delta_weight(NAME))
        return net

    @torch.no_grad()
    def lora(self) -> dict[str, Tensor]:
        """Return the adapter as diffusers reads it: PATH.lora_A.weight and PATH.lora_B.weight.

        alpha / rank is multiplied into B, so that readers without alpha get the right update.
        """
        tensors = {}
        for path, layer in self.adapted():
            down, up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
            tensors[f"{path}.lora_A.weight"] = down.detach().cpu().contiguous()
            tensors[f"{path}.lora_B.weight"] = (up * layer.scaling[NAME]).cpu().contiguous()
        return tensors


def adapt(base: nn.Module, adapter: Adapter, seed: int) -> Role:
    """Make a role on `base`, which it freezes; at first the role equals the base.

    Args:
        base: A network, on its device.
        adapter: Rank, scale and layers.
        seed: Seed of the matrices A.

    Raises:
        ValueError: If a layer is missing or of a kind that cannot have a LoRA.
    """
    from peft import LoraConfig, inject_adapter_in_model

    base.requires_grad_(False)
    net = _twin(base, base, {})
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.rank if adapter.alpha is None else adapter.alpha,
        target_modules=find_layers(base, adapter.layers),
    )
    with torch.random.fork_rng(devices=[]):
        # peft draws A from the global generator.
        torch.manual_seed(seed)
        inject_adapter_in_model(config, net, NAME)
        _disown(net, base)
        # Draw A again in float32, since peft gives it the precision of the base.
        role = Role(base, net.float())
        for _, layer in role.adapted():
            layer.reset_lora_parameters(NAME, True)
    return role


def find_layers(net: nn.Module, ends: Sequence[str]) -> list[str]:
    """Return the `ends` that match the path of some Linear or Conv2d in `net`.

    Raises:
        ValueError: If none matches, or one that is not in `LAYERS` does not.
    """
    paths = [p for p, m in net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    found = [end for end in ends if any(f".{path}".endswith(f".{end}") for path in paths)]
    missing = [end for end in ends if end not in found and (not found or end not in LAYERS)]
    if missing:
        raise unknown(f"layer of {type(net).__name__}", missing[0], {_end(path) for path in paths})
    return found


def _end(path: str) -> str:
    """Return the last name in a path with its index, such as to_out.0."""
    match = re.search(r"[^.]+(\.\d+)*$", path)
    assert match
    return match.group()


def _twin(net: nn.Module, base: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy the modules of `net` around the same tensors as `base`."""
    memo.update((id(tensor), tensor) for tensor in _tensors(base))
    return copy.deepcopy(net, memo)


def _disown(net: nn.Module, base: nn.Module) -> None:
    """Turn the tensors of `base` in `net` into plain attributes, not parameters or buffers."""
    shared = {id(tensor) for tensor in _tensors(base)}
    for module in net.modules():
        for owned in (module._parameters, module._buffers):
            for name in [name for name, tensor in owned.items() if id(tensor) in shared]:
                module.__dict__[name] = owned.pop(name)


def _tensors(net: nn.Module) -> Iterable[Tensor]:
    return (*net.parameters(), *net.buffers())
