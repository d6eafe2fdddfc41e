"""Draw pictures for prompts with a bundle on a device."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgedistill_runtime.backends import Session, open_graph
from edgedistill_runtime.hub import local_folder
from edgedistill_runtime.machine import device
from edgedistill_runtime.manifest import FUSED, BundleError, Manifest
from edgedistill_runtime.noise import noise as draw_noise
from edgedistill_runtime.steps import sample
from edgedistill_runtime.tokenizer import Tokenizers, open_tokenizer

__all__ = ["Pipeline", "Result", "to_uint8"]

Array: TypeAlias = NDArray[np.float32]

# Latent values in one call: larger batches do not fit the cache and are no faster a picture.
_BATCH_VALUES = 8192


@dataclass(frozen=True)
class Result:
    """Result of a call.

    Attributes:
        samples: Samples x0, (N, *latent shape) float32.
        images: Pictures (N, H, W, 3) uint8, or None for a bundle without a decoder.
        timings: Seconds by stage, which is a graph's name or "other", and "total".
    """

    samples: Array
    images: NDArray[np.uint8] | None
    timings: dict[str, float]


class _Clock:
    """A clock that sums seconds by stage."""

    def __init__(self, graphs: Iterable[str]) -> None:
        self.start = time.perf_counter()
        self.seconds = dict.fromkeys(graphs, 0.0)

    def run(self, stage: str, session: Session, **inputs: NDArray[Any]) -> dict[str, Array]:
        """Run a graph and add its time to the stage."""
        start = time.perf_counter()
        outputs = session(**inputs)
        self.seconds[stage] += time.perf_counter() - start
        return outputs

    def read(self) -> dict[str, float]:
        """Return seconds by stage; time outside graphs is "other"."""
        total = time.perf_counter() - self.start
        return self.seconds | {"other": total - sum(self.seconds.values()), "total": total}


class Pipeline:
    """A loaded bundle.

    Args:
        manifest: Manifest of the bundle.
        graphs: Loaded graphs by name.
        tokenizer: Function from texts to the text encoder's inputs; present if there is a text
            encoder.
        finite: Whether a result that is not finite is an error.
    """

    def __init__(
        self,
        manifest: Manifest,
        graphs: Mapping[str, Session],
        tokenizer: Tokenizers | None,
        *,
        finite: bool = True,
    ) -> None:
        self.manifest = manifest
        self._finite = finite
        self.graphs = graphs
        self.tokenizer = tokenizer
        self._last: tuple[list[str], dict[str, Array]] | None = None

    @classmethod
    def load(
        cls,
        directory: str | Path,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> Pipeline:
        """Load a bundle directory after checking its manifest and the hash of every file.

        Args:
            directory: Directory of manifest.json, or OWNER/NAME[@REVISION] on the Hugging Face
                Hub, which needs huggingface_hub.
            threads: Threads inside an operator; by default as many as were fastest on this device
                when the bundle was chosen for it, else all cores this process may use.
            providers: Execution providers of the backend, by preference.

        Raises:
            BundleError: If the bundle does not match its manifest; names file and key.
            ValueError: If a provider is unknown, or the Hub has no such bundle.
        """
        directory = local_folder(directory)
        manifest = Manifest.read(directory)
        manifest.verify(directory)
        if threads is None:
            threads = next((c.threads for c in manifest.choices if c.device == device()), None)
        opened = partial(
            open_graph, manifest.backend, directory, threads=threads, providers=providers
        )
        with ThreadPoolExecutor(len(manifest.graphs)) as pool:  # engines compile without the GIL
            sessions = pool.map(opened, manifest.graphs.values())
            graphs = dict(zip(manifest.graphs, sessions, strict=True))
        return cls(manifest, graphs, open_tokenizer(manifest, directory))

    def __call__(
        self, prompts: str | Sequence[str], seed: int = 0, *, noise: Sequence[Array] | None = None
    ) -> Result:
        """Draw one picture for each prompt.

        Args:
            prompts: One or more texts.
            seed: Picture i depends on (seed, i) only, whatever else is drawn with it.
            noise: Noise instead of the seed's: tensors (N, ...) of `manifest.steps.shapes`.

        Raises:
            ValueError: If there are no prompts, or the bundle takes none.
            BundleError: If a graph cannot run, or the result is not finite.
        """
        if self.tokenizer is None:
            raise ValueError("this bundle takes no prompts; call samples(count)")
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        return self._draw(len(texts), texts, seed, noise)

    def samples(
        self, count: int, seed: int = 0, *, noise: Sequence[Array] | None = None
    ) -> Result:
        """Draw `count` samples from a bundle that takes no prompts.

        Raises:
            ValueError: If count is below 1, or the bundle takes prompts.
            BundleError: If a graph cannot run, or the result is not finite.
        """
        if self.tokenizer is not None:
            raise ValueError("this bundle needs prompts; call it with them")
        return self._draw(count, None, seed, noise)

    def _draw(
        self, count: int, texts: list[str] | None, seed: int, noise: Sequence[Array] | None
    ) -> Result:
        if count < 1:
            raise ValueError("nothing to draw: no prompts, or a count below 1")
        clock = _Clock(self.graphs)
        shape = self.manifest.latent.shape
        shapes = self.manifest.steps.shapes(shape)
        batch = max(1, _BATCH_VALUES // math.prod(shape))
        samples, images = [], []
        for start in range(0, count, batch):
            stop = min(start + batch, count)
            if noise is None:
                given: Sequence[Array] = draw_noise(seed, start, stop - start, shapes)
            else:
                given = [tensor[start:stop] for tensor in noise]
            draw = self._fused if FUSED in self.graphs else self._stepwise
            x0, image = draw(given, texts[start:stop] if texts else None, clock)
            if self._finite:
                _check_finite(x0, image)
            samples.append(x0)
            if image is not None:
                images.append(to_uint8(image))
        return Result(_join(samples), _join(images) if images else None, clock.read())

    def _fused(
        self, noise: Sequence[Array], texts: list[str] | None, clock: _Clock
    ) -> tuple[Array, Array | None]:
        """Compute x0 and image by the one fused graph."""
        inputs: dict[str, NDArray[Any]] = {"noise": np.stack(noise, 1)}
        if texts:
            inputs |= self._tokens(texts)
        outputs = clock.run(FUSED, self.graphs[FUSED], **inputs)
        return outputs["x0"], outputs.get("image")

    def _stepwise(
        self, noise: Sequence[Array], texts: list[str] | None, clock: _Clock
    ) -> tuple[Array, Array | None]:
        """Compute x0 and image by one graph after the other."""
        cond = self._encoded(texts, clock) if texts else {}
        x0 = self._denoise(noise, cond, clock)
        if "decoder" not in self.graphs:
            return x0, None
        return x0, clock.run("decoder", self.graphs["decoder"], x0=x0)["image"]

    def _encoded(self, texts: list[str], clock: _Clock) -> dict[str, Array]:
        """Encode prompts; those of the last call are kept, as apps draw one with many seeds."""
        last = self._last
        if last is None or last[0] != texts:
            encoder = self.graphs["text_encoder"]
            last = texts, clock.run("text_encoder", encoder, **self._tokens(texts))
            self._last = last
        return last[1]

    def _tokens(self, texts: list[str]) -> dict[str, NDArray[np.int64]]:
        assert self.tokenizer is not None
        return self.tokenizer(texts)

    def _denoise(self, noise: Sequence[Array], cond: dict[str, Array], clock: _Clock) -> Array:
        denoiser = self.graphs["denoiser"]

        def net(x: Array, t: Array) -> Array:
            return clock.run("denoiser", denoiser, x=x, t=t, **cond)["f"]

        return sample(net, self.manifest.steps, noise)


def _check_finite(*drawn: Array | None) -> None:
    if not all(bool(np.isfinite(array).all()) for array in drawn if array is not None):
        raise BundleError(
            "this bundle draws numbers that are not finite: its weights or its step table are "
            "wrong, or its precision is too low here"
        )


def to_uint8(image: Array) -> NDArray[np.uint8]:
    """Convert (N, 3, H, W) in [-1, 1] to (N, H, W, 3) in 0 .. 255; overwrites `image`."""
    image *= 127.5
    image += 127.5
    np.rint(image, out=image)
    np.clip(image, 0, 255, out=image)
    return np.ascontiguousarray(image.transpose(0, 2, 3, 1), dtype=np.uint8)


def _join(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
