"""Memory of a computation that runs without data."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Live", "aliases", "called", "modules"]


class Live(TorchDispatchMode):
    """A mode that counts the bytes of tensors made inside the block while they live.

    Each storage counts once; storages from outside, such as weights, do not count.

    Args:
        device: Type of the device whose tensors are counted.

    Attributes:
        bytes: Bytes alive now.
        peak: Largest number of bytes so far.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is untyped
        self.device = torch.device(device)
        self.bytes = self.peak = 0
        self._sizes: dict[int, int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard costs as much as an operator

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = called(func, args, kwargs or {})
        if not aliases(func):
            for value in (result,) if isinstance(result, Tensor) else tree_leaves(result):
                if isinstance(value, Tensor) and value.device.type == self.device.type:
                    self._made(value.untyped_storage())
        return result

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Count the block's bytes from zero, and none of them outside."""
        before, peak = self.bytes, self.peak
        self.bytes = self.peak = 0
        try:
            yield
        finally:
            # Storages that are still alive are subtracted when they are freed.
            self.bytes, self.peak = self.bytes + before, peak

    def claim(self, size: int) -> None:
        """Count bytes that live only for a moment, on top of those alive now."""
        self.peak = max(self.peak, self.bytes + size)

    def _made(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.bytes += self._sizes[key]
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)


def called(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operator; on the meta device reuse the shapes of an equal earlier call.

    Many operators compute the shape of their result in Python, in hundreds of calls, and a network
    repeats the same few calls.
    """
    sketch = None if aliases(func) else _sketch((*args, *kwargs.items()))
    key = (func, sketch)
    if sketch is not None and key in _results:
        several, likes = _results[key]
        made = [None if like is None else _empty(*like) for like in likes]
        return tuple(made) if several else made[0]
    result = func(*args, **kwargs)
    several = isinstance(result, tuple)
    values = result if several else (result,)
    if sketch is not None and all(value is None or _is_meta(value) for value in values):
        inputs = {id(v.untyped_storage()) for v in tree_leaves((args, kwargs)) if _is_meta(v)}
        if not any(v is not None and id(v.untyped_storage()) in inputs for v in values):
            likes = [None if v is None else (v.shape, v.stride(), v.dtype) for v in values]
            _results[key] = several, likes
    return result


_results: dict[Any, tuple[bool, list[tuple[torch.Size, tuple[int, ...], torch.dtype] | None]]] = {}
"""Results by operator and arguments: whether it returns a tuple, and the layouts of its
tensors."""


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _empty(shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def _sketch(value: Any) -> Any:
    """Return a key of what decides a result's shape; None if it depends on a tensor's values."""
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype) if value.is_meta else None
    if isinstance(value, list | tuple):
        parts = tuple(map(_sketch, value))
        return None if None in parts else parts
    return type(value), value  # 1, 1.0 and True are one key, and three types


@functools.cache
def aliases(func: Any) -> bool:
    """Whether an operator's result shares its inputs' storage: a view or an in-place change."""
    if func is torch.ops.aten._unsafe_view.default:
        return True  # its schema does not declare the alias
    return bool(
        func.is_view or any(value.alias_info is not None for value in func._schema.returns)
    )


def modules(net: nn.Module) -> Iterable[nn.Module]:
    """Collect net.modules() in no fixed order; faster than nested generators of a deep network."""
    found, left = {net: None}, [net]
    while left:
        for child in left.pop()._modules.values():
            if child is not None and child not in found:
                found[child] = None
                left.append(child)
    return found
