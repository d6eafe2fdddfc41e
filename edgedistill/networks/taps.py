"""Taps: the outputs of named modules during a call."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["Taps"]


class Taps:
    """A context that keeps the last outputs of some modules of `net`.

    The hooks are on the modules themselves, so `net` may be wrapped afterwards (DDP,
    torch.compile). If a module returns several tensors, the first is kept.

    Args:
        net: Network that holds the modules.
        paths: Paths of the modules.

    Raises:
        ValueError: If `net` has no such module; the nearest is named.
    """

    def __init__(self, net: nn.Module, paths: Sequence[str]) -> None:
        modules = dict(net.named_modules())
        self.paths = list(paths)
        self._kept: dict[str, Tensor] = {}
        self._on = False
        for path in self.paths:
            if not path or path not in modules:
                # A network has hundreds of modules, so only the nearest are named.
                near = difflib.get_close_matches(path, [name for name in modules if name], 3, 0)
                raise ValueError(
                    f"no module {path!r} in {type(net).__name__}; nearest: {', '.join(near)}"
                )
            modules[path].register_forward_hook(self._keeper(path))

    def _keeper(self, path: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._on:
                self._kept[path] = output if isinstance(output, Tensor) else output[0]

        return keep

    def __enter__(self) -> Taps:
        self._kept.clear()
        self._on = True
        return self

    def __exit__(self, *problem: object) -> None:
        self._on = False

    def take(self) -> list[Tensor]:
        """Return the outputs of the call in the context, in the order of the paths; only once.

        Raises:
            RuntimeError: If one of the modules was not called.
        """
        for path in self.paths:
            if path not in self._kept:
                raise RuntimeError(f"the tapped module {path} was not called")
        kept = [self._kept[path] for path in self.paths]
        self._kept.clear()
        return kept
