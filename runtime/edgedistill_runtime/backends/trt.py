"""TensorRT: a folder of engines, of which the one for the present GPU runs."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill_runtime.manifest import Graph

__all__ = [
    "LIBRARIES",
    "MODEL",
    "TensorRTSession",
    "engine_file",
    "error_log",
    "find_engine",
    "gpu_capability",
    "load_cuda",
    "load_library",
]

LIBRARIES = {"rtx": "tensorrt_rtx", "trt": "tensorrt"}
"""Modules of TensorRT for RTX and TensorRT, by their names in a manifest's notes; both have the
same interface."""

MODEL = "model.onnx"
"""Model that the engines of a folder were built from."""


def engine_file(capabilities: Sequence[str]) -> str:
    """Return the name of an engine for GPUs of these capabilities, such as sm86-sm120.engine."""
    return "-".join(f"sm{c.replace('.', '')}" for c in capabilities) + ".engine"


def find_engine(folder: Path, capability: str) -> Path:
    """Return the engine for a GPU; ValueError names the GPUs with an engine."""
    built = {}
    for path in sorted(folder.glob("*.engine")):
        for word in path.stem.split("-"):
            digits = word.removeprefix("sm")
            built[f"{digits[:-1]}.{digits[-1]}"] = path
    if capability not in built:
        choices = ", ".join(sorted(built, key=float))
        raise ValueError(f"has engines for GPUs of compute capability {choices}, not {capability}")
    return built[capability]


def load_library(name: str) -> Any:
    """Import the module of a library in `LIBRARIES`; ValueError if it is not installed."""
    try:
        return import_module(LIBRARIES[name])
    except ImportError:
        package = LIBRARIES[name].replace("_", "-")
        raise ValueError(f"needs {LIBRARIES[name]} (pip install {package})") from None


def load_cuda() -> Any:
    """Import NVIDIA's bindings of the CUDA runtime; ValueError if they are not installed."""
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError:
        raise ValueError("needs cuda.bindings (pip install cuda-bindings)") from None


def gpu_capability(cuda: Any) -> str:
    """Return the compute capability of the first GPU, such as 8.9; ValueError without one."""
    status, count = cuda.cudaGetDeviceCount()
    if status or not count:
        raise ValueError("needs an NVIDIA GPU and its driver")
    kind = cuda.cudaDeviceAttr
    parts = (kind.cudaDevAttrComputeCapabilityMajor, kind.cudaDevAttrComputeCapabilityMinor)
    return ".".join(str(_call(cuda.cudaDeviceGetAttribute, part, 0)) for part in parts)


def error_log(trt: Any) -> Any:
    """Make a TensorRT logger that prints nothing and keeps errors, a line each, in `errors`."""

    class Log(trt.ILogger):  # type: ignore[misc]  # known when the library is
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (self.ERROR, self.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

    return Log()


class TensorRTSession:
    """A session of one network's engines, on the first GPU.

    Calls of more rows than the engine takes run in pieces; calls of fewer rows are padded.

    Args:
        path: The folder.
        graph: Entry of the graph in the manifest; its note `library` names the library that
            built the engines.
        threads: Unused, as a GPU has no threads.
        providers: Unused, too.

    Raises:
        ValueError: If the library, the CUDA bindings, a GPU or an engine for it is missing.
    """

    def __init__(
        self,
        path: Path,
        graph: Graph,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        try:
            trt = load_library(graph.notes["library"])
            self._cuda = load_cuda()
            file = find_engine(path, gpu_capability(self._cuda))
            self._engine = _load(trt, file)
        except ValueError as problem:
            raise ValueError(f"{path}: {problem}; {MODEL} in it is for other engines") from None
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._dtypes = {n: np.dtype(trt.nptype(self._engine.get_tensor_dtype(n))) for n in names}
        self._inputs = [port.name for port in graph.inputs]
        self._outputs = [port.name for port in graph.outputs]
        shapes = {n: self._engine.get_tensor_profile_shape(n, 0) for n in self._inputs}
        self._least, _, self._most = (shape[0] for shape in shapes[self._inputs[0]])
        self._context = self._engine.create_execution_context()
        for name, (_, _, largest) in shapes.items():
            self._context.set_input_shape(name, tuple(largest))
        self._stream = _call(self._cuda.cudaStreamCreate)
        self._memory = {name: self._allocate(name) for name in names}
        weakref.finalize(self, _release, self._cuda, self._stream, list(self._memory.values()))

    def _allocate(self, name: str) -> int:
        """Allocate device memory for a tensor at the largest batch."""
        size = int(np.prod(tuple(self._context.get_tensor_shape(name))))
        address: int = _call(self._cuda.cudaMalloc, size * self._dtypes[name].itemsize)
        self._context.set_tensor_address(name, address)
        return address

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Run on named inputs into named outputs."""
        count = len(next(iter(inputs.values())))
        pieces = [
            self._run({name: v[start : start + self._most] for name, v in inputs.items()})
            for start in range(0, count, self._most)
        ]
        return {name: np.concatenate([p[name] for p in pieces]) for name in self._outputs}

    def _run(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Run at most as many rows as the engine takes."""
        count = len(next(iter(inputs.values())))
        lack = max(0, self._least - count)
        kind = self._cuda.cudaMemcpyKind
        held = []
        for name in self._inputs:
            value = np.concatenate([inputs[name], inputs[name][-1:].repeat(lack, 0)])
            value = np.ascontiguousarray(value, self._dtypes[name])
            self._context.set_input_shape(name, value.shape)
            self._copy(
                self._memory[name], value.ctypes.data, value.nbytes, kind.cudaMemcpyHostToDevice
            )
            held.append(value)  # keep alive until the stream has read it
        if not self._context.execute_async_v3(int(self._stream)):
            raise RuntimeError("TensorRT could not run the engine")
        outputs = {}
        for name in self._outputs:
            result = np.empty(tuple(self._context.get_tensor_shape(name)), self._dtypes[name])
            self._copy(
                result.ctypes.data, self._memory[name], result.nbytes, kind.cudaMemcpyDeviceToHost
            )
            outputs[name] = result[:count]
        _call(self._cuda.cudaStreamSynchronize, self._stream)
        return outputs

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        _call(self._cuda.cudaMemcpyAsync, target, source, size, kind, self._stream)


def _load(trt: Any, file: Path) -> Any:
    log = error_log(trt)
    engine = trt.Runtime(log).deserialize_cuda_engine(file.read_bytes())
    if engine is None:
        raise ValueError(f"{file.name} does not load: {'; '.join(log.errors)}")
    return engine


def _call(function: Any, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime, which returns (status, result)."""
    status, *results = function(*arguments)
    if status:
        raise RuntimeError(f"{function.__name__}: {status.name}")
    return results[0] if results else None


def _release(cuda: Any, stream: Any, memory: Sequence[int]) -> None:
    """Free device memory, after the work that still uses it."""
    cuda.cudaStreamSynchronize(stream)
    for address in memory:
        cuda.cudaFree(address)
    cuda.cudaStreamDestroy(stream)
