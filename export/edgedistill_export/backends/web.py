"""onnxruntime-web in a node process, to prove what a page will run."""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgedistill_export.backends.web_home import find_home
from edgedistill_export.onnx_files import files_of
from edgedistill_runtime.backends.onnx_data import external_files
from edgedistill_runtime.manifest import Graph

__all__ = ["DTYPES", "PROVIDER", "WebSession"]

PROVIDER = "wasm"
"""The only execution provider that onnxruntime-web has in node."""

DTYPES = ("float32", "int64")
"""Types of inputs that a graph may have."""

_SCRIPT = Path(__file__).with_name("web_session.mjs")


class WebSession:
    """A session of one ONNX graph in its own process, which ends with the session.

    Args:
        path: The .onnx file.
        graph: Entry of the graph in the manifest.
        threads: Threads inside an operator; by default as many as onnxruntime-web chooses.
        providers: `PROVIDER` or None.

    Raises:
        ValueError: Without node or the npm package, for an unknown provider, or if onnxruntime-web
            does not run the graph.
    """

    def __init__(
        self,
        path: Path,
        graph: Graph,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        for name in providers or ():
            if name != PROVIDER:
                raise ValueError(f"unknown provider {name!r}; choose from {PROVIDER}")
        node = shutil.which("node")
        if node is None:
            raise ValueError("onnxruntime-web needs the program 'node'")
        command: list[str | Path] = [
            node,
            _SCRIPT,
            find_home(),
            str(threads or 0),
            *files_of(path),
        ]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(  # noqa: S603  our script, and no shell
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        self._end = weakref.finalize(self, _end, self._process, self._errors)
        try:
            self._receive()
        except RuntimeError as error:
            self.close()
            raise ValueError(f"{path.name}: {error}") from None
        self._outputs = [port.name for port in graph.outputs]
        self._turn = threading.Lock()

    @staticmethod
    def reads(path: Path) -> set[str]:
        """Return the files beside an .onnx file that hold its weights."""
        return external_files(path)

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Run on named inputs into named outputs; calls from several threads take turns.

        Raises:
            ValueError: For an input of a type that is not in `DTYPES`.
            RuntimeError: If the engine fails; contains its message.
        """
        for name, value in inputs.items():
            if str(value.dtype) not in DTYPES:
                raise ValueError(f"{name} is {value.dtype}; choose from {', '.join(DTYPES)}")
        with self._turn:
            self._send(inputs)
            outputs = self._receive()
        return {name: outputs[name] for name in self._outputs}

    def close(self) -> None:
        """End the process, as happens too when this object or the interpreter ends."""
        self._end()

    def _send(self, tensors: dict[str, NDArray[Any]]) -> None:
        described = [
            {"name": name, "dtype": str(value.dtype), "shape": value.shape}
            for name, value in tensors.items()
        ]
        header = json.dumps({"tensors": described}).encode()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(struct.pack("<I", len(header)) + header)
            for value in tensors.values():
                self._process.stdin.write(np.ascontiguousarray(value).data)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None

    def _receive(self) -> dict[str, NDArray[np.float32]]:
        (length,) = struct.unpack("<I", self._read(4))
        header = json.loads(self._read(length))
        if "error" in header:
            raise RuntimeError(f"onnxruntime-web: {header['error']}")
        return {entry["name"]: self._tensor(**entry) for entry in header["tensors"]}

    def _tensor(self, name: str, dtype: str, shape: list[int]) -> NDArray[np.float32]:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        # Copy, since an array on bytes is read-only and the caller may write to its arrays.
        return np.frombuffer(self._read(size), dtype).reshape(shape).copy()

    def _read(self, count: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(count)
        if len(data) < count:
            raise self._death()
        return data

    def _death(self) -> RuntimeError:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        said = [line for line in lines if "error:" in line.lower()]
        return RuntimeError(": ".join([f"node ended with status {status}", *said[-1:]]))


def _end(process: subprocess.Popen[bytes], errors: IO[bytes], patience: float = 5.0) -> None:
    """Close a child's input, which ends it; kill it if it does not end in time."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    errors.close()
