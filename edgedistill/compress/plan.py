"""A smaller network as plain data: its diffusers config and the sources of its weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgedistill.compress.token_stride import copy_stride

__all__ = ["Channels", "Plan", "build", "config_of", "count", "is_under", "share", "source"]


@dataclass(frozen=True)
class Channels:
    """The channels kept of an axis of length `size`, in their new order."""

    size: int
    keep: list[int]


@dataclass(frozen=True)
class Plan:
    """A plan of a smaller network of the same class.

    Attributes:
        config: The new network's config; what `save_pretrained` writes with it reloads in plain
            diffusers.
        sources: Module path in the new network -> module path in the old. The longest prefix of a
            path decides; a path under no prefix comes from the same path.
        channels: Named choices of channels, empty where only whole modules go.
        cuts: Parameter path in the new network -> for each dimension the names in `channels` that
            cut it, in order along a concatenation; an empty list keeps the dimension.
    """

    config: dict[str, Any]
    sources: dict[str, str]
    channels: dict[str, Channels] = field(default_factory=dict)
    cuts: dict[str, list[list[str]]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return {"config", "sources"}, and "channels" and "cuts" where there are any."""
        data = asdict(self)
        return {key: data[key] for key in data if key in ("config", "sources") or data[key]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Read `to_json`'s output; ValueError names an entry that is missing or mistyped."""
        for key in ("config", "sources"):
            if not isinstance(data.get(key), dict):
                raise ValueError(f"plan: {key!r} is missing or no mapping")
        try:
            channels = {name: Channels(**cut) for name, cut in data.get("channels", {}).items()}
        except TypeError as error:
            raise ValueError(f"plan: 'channels' needs size and keep: {error}") from None
        return cls(
            dict(data["config"]), dict(data["sources"]), channels, dict(data.get("cuts", {}))
        )


def config_of(net: nn.Module) -> dict[str, Any]:
    """Return the config that `net` was made from, as JSON would hold it.

    Raises:
        ValueError: If `net` is no diffusers model.
    """
    config = vars(net).get("_internal_dict")
    if config is None:
        raise ValueError(
            f"{type(net).__name__} has no config; compression needs a diffusers model"
        )
    return {key: _plain(config[key]) for key in config if not key.startswith("_")}


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def is_under(path: str, roots: Collection[str]) -> bool:
    """Whether the module or parameter at `path` is one of `roots` or inside one."""
    while path:
        if path in roots:
            return True
        path = path.rpartition(".")[0]
    return False


def source(sources: Mapping[str, str], path: str) -> str:
    """Return the path in the old network of `path` in the new: the longest prefix decides."""
    prefix, rest = path, ""
    while prefix and prefix not in sources:
        prefix, _, last = prefix.rpartition(".")
        rest = f".{last}{rest}"
    return sources[prefix] + rest if prefix else path


def build(plan: Plan, net: nn.Module) -> nn.Module:
    """Build the smaller network, with weights copied from `net`.

    Dtype, device and training mode are `net`'s; on the meta device nothing is allocated.

    Raises:
        ValueError: If a weight has no source of its shape in `net`; both paths are named.
    """
    new = _skeleton(plan, net)
    for path, old in _matched(plan, net, new):
        if isinstance(old, nn.Parameter):
            _put(new, path, nn.Parameter(old.detach().clone()))
        else:
            _put(new, path, old.clone())
    return new.train(net.training)


def share(plan: Plan, net: nn.Module) -> nn.Module:
    """Build the smaller network on `net`'s own parameters, so training it trains `net`.

    Raises:
        ValueError: As `build`, and if the plan chooses channels, which cannot be shared.
    """
    if plan.cuts:
        raise ValueError("a plan that chooses channels shares no parameters; use build")
    new = _skeleton(plan, net)
    for path, old in _matched(plan, net, new):
        _put(new, path, old)
    return new.train(net.training)


def count(plan: Plan, net: nn.Module) -> int:
    """Count the parameters of the smaller network without allocating it."""
    return sum(parameter.numel() for parameter in _skeleton(plan, net).parameters())


def _skeleton(plan: Plan, net: nn.Module) -> nn.Module:
    kind: Any = type(net)
    with torch.device("meta"):
        new: nn.Module = kind.from_config(plan.config)
    copy_stride(net, new)
    return new


def _matched(plan: Plan, net: nn.Module, new: nn.Module) -> list[tuple[str, Tensor]]:
    """Return (path in the new network, its weight) for every tensor."""
    olds = _tensors(net)
    pairs = []
    for path, tensor in _tensors(new).items():
        origin = source(plan.sources, path)
        if origin not in olds:
            raise ValueError(f"{path} has no source: the network has no {origin}")
        old = olds[origin]
        if path in plan.cuts:
            old = _cut(plan, path, old)
        if old.shape != tensor.shape:
            raise ValueError(
                f"{path} of shape {tuple(tensor.shape)} cannot come from "
                f"{origin} of shape {tuple(old.shape)}"
            )
        pairs.append((path, old))
    return pairs


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    """Return parameters, buffers and other tensors, such as Qwen-Image's rotary tables."""
    tensors: dict[str, Tensor] = dict(net.named_parameters(remove_duplicate=False))
    tensors |= dict(net.named_buffers(remove_duplicate=False))
    for path, module in net.named_modules():
        plain = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
        tensors |= {f"{path}.{name}" if path else name: plain[name] for name in plain}
    return tensors


def _cut(plan: Plan, path: str, old: Tensor) -> Tensor:
    cut: Tensor = old
    for dim, names in enumerate(plan.cuts[path]):
        if not names:
            continue
        offset, index = 0, list[int]()
        for name in names:
            index += [offset + i for i in plan.channels[name].keep]
            offset += plan.channels[name].size
        if offset != old.shape[dim]:
            raise ValueError(
                f"{path}: channels {'+'.join(names)} are of {offset}, "
                f"dimension {dim} has {old.shape[dim]}"
            )
        cut = cut.index_select(dim, torch.tensor(index, device=old.device))
    return nn.Parameter(cut.detach()) if isinstance(old, nn.Parameter) else cut


def _put(net: nn.Module, path: str, tensor: Tensor) -> None:
    owner, _, name = path.rpartition(".")
    setattr(net.get_submodule(owner), name, tensor)
