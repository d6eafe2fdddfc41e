"""Checks of a manifest beyond its types: bounds, and the agreement of its parts.

Numbers are bounded before anything is allocated. Shapes of the latent, the ports of all graphs,
the tokenizers and the picture must fit each other, and files must lie inside the bundle.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from edgedistill_runtime.strict_json import short

if TYPE_CHECKING:
    from edgedistill_runtime.manifest import Graph, Manifest, Port, TokenizerFile

__all__ = ["FUSED", "GRAPHS", "Problem", "check"]

GRAPHS = ("text_encoder", "denoiser", "decoder")
FUSED = "pipeline"

FLOAT = "float32"
TOKENS = "int64"
DTYPES = (FLOAT, TOKENS, "int32", "bool")
"""Types of a graph's inputs and outputs."""

MAX_SIDE = 2**16
"""Largest side of latents, pictures and ports."""
MAX_VALUES = 2**28
"""Largest number of values in a latent or a picture."""
MAX_AXES = 8
MAX_BATCH = 4096
MAX_ROWS = 1000
MAX_TOKENS = 2**16
MAX_ID = 2**31
MAX_THREADS = 4096
MAX_NAME = 255
"""Largest number of bytes of a file's name."""

LARGEST = 3.4028234663852886e38
"""Largest float32, the type in which a step table runs."""

Ports = Mapping[str, "Port"]


class Problem(Exception):  # noqa: N818  it is told as a BundleError, with the file
    """Raised for a wrong key; the message is one line that begins with the key."""


def check(manifest: Manifest) -> None:
    """Raise a `Problem` if a manifest is inconsistent."""
    _check_latent(manifest)
    _check_steps(manifest)
    _check_parts(manifest)
    for name, graph in manifest.graphs.items():
        _check_files(graph, f"graphs.{name}")
        _check_ports(graph, f"graphs.{name}")
    _check_tokenizers(manifest)
    _check_choices(manifest)
    if FUSED in manifest.graphs:
        _check_fused(manifest)
    else:
        _check_chain(manifest)


def _need(true: bool, problem: str) -> None:
    if not true:
        raise Problem(problem)


# --- Numbers ------------------------------------------------------------------------------------


def _check_shape(shape: Sequence[int], key: str) -> None:
    _need(0 < len(shape) <= MAX_AXES, f"{key}: 1 to {MAX_AXES} axes expected")
    for side in shape:
        _need(0 < side <= MAX_SIDE, f"{key}: {side} is no size from 1 to {MAX_SIDE}")
    _need(math.prod(shape) <= MAX_VALUES, f"{key}: more than {MAX_VALUES} values")


def _check_latent(manifest: Manifest) -> None:
    latent, image = manifest.latent, manifest.image
    _check_shape(latent.shape, "latent.shape")
    for key in ("scaling_factor", "shift_factor"):
        number = getattr(latent, key)
        _need(abs(number) <= LARGEST, f"latent.{key}: {number} is no finite number")
    if image:
        _check_shape((image.height, image.width), "image")


def _check_steps(manifest: Manifest) -> None:
    steps = manifest.steps
    _need(bool(steps.rows), "steps.rows: at least one row expected")
    _need(len(steps.rows) <= MAX_ROWS, f"steps.rows: more than {MAX_ROWS} rows")
    numbers = {"steps.init_scale": steps.init_scale}
    for i, row in enumerate(steps.rows):
        plain = {key: value for key, value in vars(row).items() if key != "past"}
        numbers |= {f"steps.rows[{i}].{key}": value for key, value in plain.items()}
        pairs = enumerate(n for pair in row.past for n in pair)
        numbers |= {f"steps.rows[{i}].past (number {j})": value for j, value in pairs}
    for key, number in numbers.items():
        _need(abs(number) <= LARGEST, f"{key}: {number} is no finite float32 number")
    _need(steps.init_scale > 0, f"steps.init_scale: {steps.init_scale} is not above 0")
    if problem := steps.problem(manifest.latent.shape):
        raise Problem(f"steps.rows: {problem}")


def _check_choices(manifest: Manifest) -> None:
    for i, choice in enumerate(manifest.choices):
        key = f"choices[{i}]"
        counts = {f"{key}.threads": choice.threads}
        counts |= {f"{key}.speeds[{j}].threads": s.threads for j, s in enumerate(choice.speeds)}
        for name, count in counts.items():
            _need(0 < count <= MAX_THREADS, f"{name}: {count} is no number of threads")


# --- Parts --------------------------------------------------------------------------------------


def _check_parts(manifest: Manifest) -> None:
    """Check that the networks that a picture needs exist, or the one that fuses them."""
    graphs = manifest.graphs
    if unknown := graphs.keys() - {*GRAPHS, FUSED}:
        choices = ", ".join((*GRAPHS, FUSED))
        raise Problem(f"graphs: unknown {short(min(unknown))}; choose from {choices}")
    if FUSED in graphs:
        _need(len(graphs) == 1, f"graphs: {FUSED} stands alone, found {', '.join(graphs)}")
        text = any(port.name != "noise" for port in graphs[FUSED].inputs)
        picture = any(port.name == "image" for port in graphs[FUSED].outputs)
        places = f"an input of tokens of graphs.{FUSED}", f"the output image of graphs.{FUSED}"
    else:
        _need("denoiser" in graphs, "graphs.denoiser: missing")
        text, picture = "text_encoder" in graphs, "decoder" in graphs
        places = "graphs.text_encoder", "graphs.decoder"
    there = manifest.tokenizer is not None
    _need(text == there, f"tokenizer: must be there exactly when {places[0]} is")
    _need(there or not manifest.more_tokenizers, "more_tokenizers: there is no first one")
    there = manifest.image is not None
    _need(picture == there, f"image: must be there exactly when {places[1]} is")


def _check_files(part: Graph | TokenizerFile, key: str) -> None:
    for name in (part.file, *part.sha256):
        _need(_stays_inside(name), f"{key}.file: {short(name)} leaves the bundle")
    file = PurePosixPath(part.file)
    hashed = [PurePosixPath(name) for name in part.sha256]
    _need(
        any(file in (name, *name.parents) for name in hashed),
        f"{key}.sha256: no entry for {short(part.file)}",
    )


def _stays_inside(name: str) -> bool:
    """Whether a file's name is valid on all systems and inside the bundle on each."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name:
        return False
    if "\\" in name or ":" in name or PureWindowsPath(name).drive or not name.isprintable():
        return False
    return all(len(part.encode()) <= MAX_NAME for part in path.parts)


def _check_ports(graph: Graph, key: str) -> None:
    for side in ("inputs", "outputs"):
        found: tuple[Port, ...] = getattr(graph, side)
        names = [port.name for port in found]
        _need(bool(found), f"{key}.{side}: at least one expected")
        _need(len({*names}) == len(names), f"{key}.{side}: a name is there twice")
        for port in found:
            place = f"{key}.{side}.{short(port.name)}"
            _need(port.dtype in DTYPES, f"{place}.dtype: one of {', '.join(DTYPES)} expected")
            _need(0 < len(port.shape) <= MAX_AXES, f"{place}.shape: 1 to {MAX_AXES} axes expected")
            _check_shape([n for n in port.shape if isinstance(n, int)] or [1], f"{place}.shape")
            batch = port.shape[0]
            _need(
                batch == graph.inputs[0].shape[0],
                f"{place}.shape: batch {short(batch)}, elsewhere {graph.inputs[0].shape[0]}",
            )
            _need(
                isinstance(batch, str) or batch <= MAX_BATCH,
                f"{place}.shape: batch {batch} is above {MAX_BATCH}",
            )


# --- Agreement ----------------------------------------------------------------------------------


def _by_name(ports: Iterable[Port]) -> dict[str, Port]:
    return {port.name: port for port in ports}


def _check_names(found: Iterable[str], wanted: Iterable[str], key: str) -> None:
    if sorted(found) != sorted(wanted):
        names = ", ".join(sorted(wanted)) or "none"
        raise Problem(f"{key}: {names} expected, found {short(', '.join(sorted(found)))}")


def _check_fit(port: Port, shape: Sequence[int | str], dtype: str, key: str) -> None:
    """Check that a port takes rows of `shape`, in which a word is an axis of any size."""
    place = f"{key}.{port.name}"
    _need(port.dtype == dtype, f"{place}.dtype: {dtype} expected, found {port.dtype}")
    own = port.shape[1:]
    fits = len(own) == len(shape) and all(
        isinstance(a, str) or isinstance(b, str) or a == b for a, b in zip(own, shape, strict=True)
    )
    _need(fits, f"{place}.shape: {[*shape]} expected after the batch, found {[*own]}")


def _check_tokenizers(manifest: Manifest) -> None:
    if not manifest.tokenizers:
        return
    name = FUSED if FUSED in manifest.graphs else "text_encoder"
    ports, key = _by_name(manifest.graphs[name].inputs), f"graphs.{name}.inputs"
    wanted = [n for entry in manifest.tokenizers for n in (entry.input, entry.mask) if n]
    _check_names([n for n in ports if n != "noise"], wanted, key)
    for entry in manifest.tokenizers:
        _check_files(entry, "tokenizer")
        length, place = entry.length, f"tokenizer ({entry.input})"
        _need(0 < length <= MAX_TOKENS, f"{place}.length: {length} is not from 1 to {MAX_TOKENS}")
        _need(0 <= entry.pad_id < MAX_ID, f"{place}.pad_id: {entry.pad_id} is no id")
        for port in filter(None, (entry.input, entry.mask)):
            _check_fit(ports[port], (length,), TOKENS, key)


def _check_fused(manifest: Manifest) -> None:
    graph, latent = manifest.graphs[FUSED], manifest.latent.shape
    inputs, outputs = _by_name(graph.inputs), _by_name(graph.outputs)
    key = f"graphs.{FUSED}"
    _need("noise" in inputs, f"{key}.inputs: noise: missing")
    _check_fit(inputs["noise"], (manifest.steps.draws, *latent), FLOAT, f"{key}.inputs")
    _check_names(outputs, ["x0", *(["image"] if manifest.image else [])], f"{key}.outputs")
    _check_fit(outputs["x0"], latent, FLOAT, f"{key}.outputs")
    _check_picture(manifest, outputs, f"{key}.outputs")
    _need(
        all(row.size == 1 for row in manifest.steps.rows),
        f"steps.rows: sizes below 1, which graphs.{FUSED} does not run",
    )


def _check_chain(manifest: Manifest) -> None:
    graphs, latent = manifest.graphs, manifest.latent.shape
    cond = _by_name(graphs["text_encoder"].outputs) if "text_encoder" in graphs else {}
    key = "graphs.denoiser"
    inputs, outputs = _by_name(graphs["denoiser"].inputs), _by_name(graphs["denoiser"].outputs)
    _check_names(inputs, ["x", "t", *cond], f"{key}.inputs")
    _check_fit(inputs["x"], latent, FLOAT, f"{key}.inputs")
    _check_fit(inputs["t"], (), FLOAT, f"{key}.inputs")
    for name, port in cond.items():
        _check_fit(inputs[name], port.shape[1:], port.dtype, f"{key}.inputs")
    _need("f" in outputs, f"{key}.outputs: f: missing")
    _check_fit(outputs["f"], latent, FLOAT, f"{key}.outputs")
    if any(row.size != 1 for row in manifest.steps.rows):
        free = all(isinstance(side, str) for side in inputs["x"].shape[-2:])
        _need(free, f"{key}.inputs.x.shape: height and width are fixed, and steps.rows grow")
    if "decoder" in graphs:
        inputs, outputs = _by_name(graphs["decoder"].inputs), _by_name(graphs["decoder"].outputs)
        _check_names(inputs, ["x0"], "graphs.decoder.inputs")
        _check_fit(inputs["x0"], latent, FLOAT, "graphs.decoder.inputs")
        _need("image" in outputs, "graphs.decoder.outputs: image: missing")
        _check_picture(manifest, outputs, "graphs.decoder.outputs")


def _check_picture(manifest: Manifest, outputs: Ports, key: str) -> None:
    if manifest.image:
        size = ("channels", manifest.image.height, manifest.image.width)
        _check_fit(outputs["image"], size, FLOAT, key)
