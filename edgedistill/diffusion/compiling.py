"""Networks that torch.compile compiles in place, and where they run as they are.

`nn.Module.compile` keeps the network object, its weights and the keys of its state. Copies of a
network start uncompiled, and a `Denoiser` compiles each at its first call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["BACKEND", "as_they_are", "compile_once", "compiling"]

BACKEND = "inductor"
"""Backend of torch.compile."""

VARIANTS = 64
"""Largest number of compiled forms of a network's class; further ones run as they are. A form is
made for each set of trained weights, with and without gradient, and for two batch sizes: the first
as it is, all others together."""


def compile_once(net: nn.Module) -> None:
    """Have torch.compile compile `net` at its next call, unless it is compiled already."""
    if net._compiled_call_impl is None:
        net.compile(backend=BACKEND)


def as_they_are() -> AbstractContextManager[Any]:
    """Return a context in which compiled networks run as if they were not compiled.

    It is for few calls, or calls with batches of another size, which would only be compiled anew.
    """
    # A function in torch's annotations, and a context manager in fact.
    stance: Any = torch.compiler.set_stance
    context: AbstractContextManager[Any] = stance("force_eager")
    return context


@contextmanager
def compiling() -> Iterator[None]:
    """Set torch.compile for networks of a training run; every call of them is to be inside."""
    from torch._dynamo import config

    with config.patch(
        # Networks of one class share compiled code; only some of them have the hooks of taps.
        skip_nnmodule_hook_guards=False,
        recompile_limit=VARIANTS,
        # DDP wraps the loss, not a network, so there are no buckets to divide a graph by.
        optimize_ddp=False,
    ):
        yield
