"""Several bundles behind one call: each draws the conditions its student was trained on."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgedistill_runtime.backends import open_graph
from edgedistill_runtime.hub import local_folder
from edgedistill_runtime.manifest import BundleError, Manifest
from edgedistill_runtime.noise import noise as draw_noise
from edgedistill_runtime.pipeline import Array, Pipeline, Result
from edgedistill_runtime.routes import Routes
from edgedistill_runtime.tokenizer import Tokenizers, open_tokenizer

__all__ = ["Router"]

_ENCODER = "text_encoder"
_PIECE = 64
"""Number of prompts encoded at once to find their bundles."""


class Router:
    """A folder of bundles 0, 1, ... with students.json, which routes prompts to bundles.

    Args:
        directory: The folder, or OWNER/NAME[@REVISION] on the Hugging Face Hub.
        keep_all: Whether opened bundles stay open; otherwise only the last one used does.
        threads: As in `Pipeline.load`.
        providers: As in `Pipeline.load`.

    Raises:
        BundleError: If students.json or a bundle is invalid; names file and key.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep_all: bool = False,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        self.directory, self.keep_all = local_folder(directory), keep_all
        self.routes = Routes.read(self.directory)
        self._threads, self._providers = threads, providers
        self._open: dict[int, Pipeline] = {}
        self._opening = threading.Lock()
        manifests = [Manifest.read(self.place(part)) for part in range(len(self.routes.parts))]
        self.manifest, first = manifests[0], self.place(0)
        if _ENCODER not in self.manifest.graphs:
            raise BundleError(
                f"{first}: graphs: no {_ENCODER}, by which prompts find their student; "
                "export without --fused"
            )
        self.steps = max((manifest.steps for manifest in manifests), key=lambda steps: steps.draws)
        self.manifest.verify(first)
        graph = self.manifest.graphs[_ENCODER]
        self._first_output = graph.outputs[0].name
        self._encoder = open_graph(
            self.manifest.backend, first, graph, threads=threads, providers=providers
        )
        tokenizer = open_tokenizer(self.manifest, first)
        if tokenizer is None:
            raise BundleError(f"{first}: tokenizer: none, so prompts cannot find their student")
        self.tokenizer: Tokenizers = tokenizer

    def place(self, part: int) -> Path:
        """Return the folder of a bundle."""
        return self.directory / str(part)

    def of(self, prompts: Sequence[str]) -> list[int]:
        """Return the bundle of each prompt; ValueError for a class that no student has."""
        found: list[int] = []
        for start in range(0, len(prompts), _PIECE):
            tokens = self.tokenizer(prompts[start : start + _PIECE])
            encoded = self._encoder(**tokens)[self._first_output]
            found += self.routes.of(encoded).tolist()
        return found

    def pipeline(self, part: int) -> Pipeline:
        """Return a bundle, opened if it is not yet; among several threads only one opens it."""
        with self._opening:
            if part not in self._open:
                if not self.keep_all:
                    self._open.clear()
                self._open[part] = Pipeline.load(
                    self.place(part), threads=self._threads, providers=self._providers
                )
            return self._open[part]

    def __call__(
        self, prompts: str | Sequence[str], seed: int = 0, *, noise: Sequence[Array] | None = None
    ) -> Result:
        """Draw one picture for each prompt, with the bundle responsible for it.

        Args:
            prompts: One or more texts.
            seed: Picture i depends on (seed, i) only, as with one bundle.
            noise: Noise instead of the seed's: tensors (N, ...) of `steps.shapes`.

        Raises:
            ValueError: If there are no prompts, or one belongs to no student.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts:
            raise ValueError("nothing to draw: no prompts")
        if noise is None:
            shapes = self.steps.shapes(self.manifest.latent.shape)
            noise = draw_noise(seed, 0, len(texts), shapes)
        start = time.perf_counter()
        parts = np.array(self.of(texts))
        seconds = time.perf_counter() - start
        timings = {_ENCODER: seconds, "total": seconds}
        drawn: list[tuple[np.ndarray, Result]] = []
        for part in sorted(set(parts.tolist())):
            rows = np.flatnonzero(parts == part)
            pipe = self.pipeline(part)
            given = [tensor[rows] for tensor in noise[: pipe.manifest.steps.draws]]
            result = pipe([texts[row] for row in rows], noise=given)
            drawn.append((rows, result))
            for stage, seconds in result.timings.items():
                timings[stage] = timings.get(stage, 0.0) + seconds
        back = np.argsort(np.concatenate([rows for rows, _ in drawn]))
        samples = np.concatenate([result.samples for _, result in drawn])[back]
        images = [result.images for _, result in drawn if result.images is not None]
        return Result(samples, np.concatenate(images)[back] if images else None, timings)
