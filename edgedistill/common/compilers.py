"""Whether this machine has what torch.compile needs."""

from __future__ import annotations

__all__ = ["check_compiler"]


def check_compiler(setting: str, device: str) -> None:
    """Raise a ValueError if torch.compile could not compile for a device here.

    Args:
        setting: The setting that needs it, as KEY=VALUE.
        device: Type of the device: cpu, cuda or another, which is not checked.
    """
    if device == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ValueError(
                f"{setting} is compiled and needs triton, for a GPU that it supports: "
                "pip install triton"
            )
    if device == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise ValueError(
                f"{setting} is compiled and needs a C++ compiler: install g++, or name one in CXX"
            ) from error
