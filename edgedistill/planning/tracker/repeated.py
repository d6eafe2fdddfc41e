"""Reuse of equal calls, of whole networks and of their repeated blocks, so each is run once.

The results of a call, and the tensors it keeps for the backward pass, follow from the network's
structure and the shapes of its inputs. So the first call of a kind is run and measured separately;
later ones claim the memory it needed and make the tensors it left, without running.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from typing import Any
from weakref import ref

import torch
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from edgedistill.planning.tracker.accelerator import Accelerator, differentiable_twice
from edgedistill.planning.tracker.live import Live, modules

__all__ = ["Known", "repeated"]

Maker = Callable[[], Any]


@dataclass(frozen=True)
class Needs:
    """Memory needs of one call.

    Attributes:
        forward: Bytes at its worst moment, including its results.
        makers: Functions that make its results, each with whether it has a gradient.
        spec: Nesting of the results.
        kept: Bytes left for the backward pass.
        saved: Indices of the inputs that the backward pass reads.
        backward: Bytes at the backward pass's worst moment, beyond those alive when it begins.
        casts: Bytes of weights in low precision, which stay until the update's end.
    """

    forward: int
    makers: tuple[tuple[Maker, bool], ...]
    spec: Any
    kept: int = 0
    saved: tuple[bool, ...] = ()
    backward: int = 0
    casts: int = 0


Known = dict[Any, Needs]
"""Needs of calls by structure and input shapes."""


PLAIN = {bool, int, float, str}
"""Types of module attributes that can change what the module computes."""


@contextmanager
def repeated(
    nets: Iterable[nn.Module], live: Live, accelerator: Accelerator, known: Known
) -> Iterator[None]:
    """Skip known calls of the diffusers models in `nets` and of the blocks they repeat.

    A model skips calls without gradients, a block all calls but those that are differentiated
    twice. Modules with hooks are always called.

    Args:
        nets: Networks that hold the models.
        live: Counter of the bytes.
        accelerator: Mode that keeps cast weights.
        known: Needs of calls made before; new ones are added.
    """
    skipped: list[_SkippedCall] = []
    for model in {m: None for net in nets for m in modules(net) if isinstance(m, ModelMixin)}:
        inside, kinds = modules(model), model._repeated_blocks or ()
        hooked = {part for part in inside if part._forward_hooks}
        for part in inside:
            block = type(part).__name__ in kinds
            if (block or part is model) and hooked.isdisjoint(modules(part) if hooked else ()):
                skipped.append(_SkippedCall(part, live, accelerator, known, gradients=block))
    for call in skipped:
        call.net.forward = call
    try:
        yield
    finally:
        for call in skipped:
            del call.net.forward


class _SkippedCall:
    """Replacement of a network's forward."""

    def __init__(
        self,
        net: nn.Module,
        live: Live,
        accelerator: Accelerator,
        known: Known,
        *,
        gradients: bool,
    ) -> None:
        self.net: Any = net
        self.forward = net.forward
        self.live, self.accelerator, self.known = live, accelerator, known
        self.gradients = gradients

    @functools.cached_property
    def structure(self) -> int:
        """Hash that is equal for networks with the same computation."""
        return hash(tuple(_structure(self.net)))

    @functools.cached_property
    def trained(self) -> list[nn.Parameter]:
        found = dict.fromkeys(p for m in modules(self.net) for p in m._parameters.values())
        return [p for p in found if p is not None and p.requires_grad]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        tensors = [v for v in leaves if isinstance(v, Tensor)]
        graph = torch.is_grad_enabled()
        graph = graph and (bool(self.trained) or any(v.requires_grad for v in tensors))
        if graph and (not self.gradients or differentiable_twice()):
            return self.forward(*args, **kwargs)
        moved = graph and (len(self.trained), *(v.requires_grad for v in tensors))
        key = (self.structure, moved, *map(_look, leaves))
        if key not in self.known:
            measure = self._with_backward if graph else self._alone
            self.known[key] = measure(leaves, spec)
        needs = self.known[key]
        if graph:
            anchor = torch.empty(0, device="meta", requires_grad=True)
            results = _Repeated.apply(self, needs, anchor, *tensors)  # type: ignore[no-untyped-call]  # torch's is untyped
        else:
            self.live.claim(needs.forward)
            results = [make() for make, _ in needs.makers]
        return tree_unflatten(results, needs.spec)

    def _alone(self, leaves: list[Any], spec: Any) -> Needs:
        """Measure a call without gradients."""
        with self.live.apart():
            results, spec = tree_flatten(self._call(leaves, spec))
            return Needs(self.live.peak, _makers(results), spec)

    def _with_backward(self, leaves: list[Any], spec: Any) -> Needs:
        live, casts = self.live, self.accelerator.casts
        before, grads = set(casts), [p.grad for p in self.trained]
        # If this call is checkpointed, its own tensors do not belong to the checkpoint.
        with live.apart(), saved_tensors_hooks(_same, _same):
            inputs = [_fresh(value) for value in leaves]
            stores = [ref(v.untyped_storage()) for v in inputs if isinstance(v, Tensor)]
            live.peak = begin = live.bytes
            results, spec = tree_flatten(self._call(inputs, spec))
            forward, makers = live.peak - begin, _makers(results)
            cast = [casts.pop(key) for key in set(casts) - before]
            size = _bytes(cast)
            kept = live.bytes - begin - size - _bytes(results)
            inputs.clear()
            saved = tuple(store() is not None for store in stores)
            moved = [v for v in results if isinstance(v, Tensor) and v.requires_grad]
            ahead = [torch.empty_like(v) for v in moved]
            live.peak = start = live.bytes
            torch.autograd.backward(moved, ahead)
            backward = live.peak - start
        for param, grad in zip(self.trained, grads, strict=True):
            param.grad = grad
        return Needs(forward, makers, spec, kept, saved, backward, size)

    def _call(self, leaves: list[Any], spec: Any) -> Any:
        args, kwargs = tree_unflatten(leaves, spec)
        return self.forward(*args, **kwargs)


class _Repeated(torch.autograd.Function):
    """Autograd function of a known call."""

    @staticmethod
    def forward(
        ctx: Any, call: _SkippedCall, needs: Needs, anchor: Tensor, *inputs: Tensor
    ) -> Any:
        call.live.claim(needs.forward)
        call.accelerator.casts.setdefault(id(call), _room(needs.casts))
        ctx.save_for_backward(_room(needs.kept), *compress(inputs, needs.saved))
        ctx.call, ctx.needs = call, needs
        ctx.makers = [_maker(value) if value.requires_grad else None for value in inputs]
        results = tuple(make() for make, _ in needs.makers)
        still = (v for v, (_, moved) in zip(results, needs.makers, strict=True) if not moved)
        ctx.mark_non_differentiable(*(v for v in still if isinstance(v, Tensor)))
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _kept = ctx.saved_tensors  # under checkpointing they are recomputed here
        ctx.call.live.claim(ctx.needs.backward)
        # The peak is known; the last kept tensor is freed before the first of these is made.
        with ctx.call.live.apart():
            for param in ctx.call.trained:
                if param.grad is None:
                    param.grad = torch.empty_like(param)
            return (None, None, None, *(make and make() for make in ctx.makers))


def _structure(net: nn.Module) -> Iterator[Any]:
    """Yield what decides how a network computes, except the values of its weights."""
    for part in modules(net):
        yield type(part)
        own = vars(part)
        yield from [(name, value) for name, value in own.items() if type(value) in PLAIN]
        tensors = (*own.values(), *part._parameters.values(), *part._buffers.values())
        yield from [(value.shape, value.dtype) for value in tensors if isinstance(value, Tensor)]


def _look(value: Any) -> Any:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else (type(value), value)


def _fresh(value: Any) -> Any:
    """Make a tensor like this one; not a leaf, so that no gradient node keeps it alive."""
    if not isinstance(value, Tensor):
        return value
    if value.requires_grad:
        seed = torch.empty(1, dtype=value.dtype, device=value.device, requires_grad=True)
        return seed.expand(value.shape).clone()
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _makers(results: list[Any]) -> tuple[tuple[Maker, bool], ...]:
    return tuple((_maker(v), isinstance(v, Tensor) and v.requires_grad) for v in results)


def _maker(value: Any) -> Maker:
    """Return a function that makes a value like this one, without keeping the value alive."""
    if not isinstance(value, Tensor):
        return lambda: value
    return functools.partial(torch.empty, value.shape, dtype=value.dtype, device=value.device)


def _room(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device="meta")


def _bytes(values: Iterable[Any]) -> int:
    storages = {id(s): s for s in (v.untyped_storage() for v in tree_leaves(list(values)))}
    return sum(storage.nbytes() for storage in storages.values())


def _same(value: Tensor) -> Tensor:
    return value
