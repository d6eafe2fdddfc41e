"""manifest.json of a bundle: the schema, strict reading, and checks against the files beside it.

A bundle directory holds the manifest, the graphs and, for text-conditioned samples, a tokenizer:

- `text_encoder`: input_ids (N, L) int64, and more by name -> the denoiser's condition;
- `denoiser`: x (N, ...), t (N,), condition -> f, as `steps.StepTable` combines it;
- `decoder`: x0 (N, ...) -> image (N, 3, H, W) in [-1, 1], latent scaling folded in.

or, in a fused bundle, all of it as one:

- `pipeline`: noise (N, draws, ...), token ids where there is a tokenizer -> x0, and image.

Tensors at a graph's border are float32 (token ids int64) whatever the precision inside.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from edgedistill_runtime.steps import StepTable

__all__ = [
    "FILE_NAME",
    "FUSED",
    "GRAPHS",
    "SCHEMA_VERSION",
    "BundleError",
    "Figures",
    "Graph",
    "Image",
    "Latent",
    "Manifest",
    "Parity",
    "Port",
    "Source",
    "TokenizerFile",
    "sha256",
]

FILE_NAME = "manifest.json"
SCHEMA_VERSION = 2
GRAPHS = ("text_encoder", "denoiser", "decoder")
FUSED = "pipeline"


class BundleError(ValueError):
    """A bundle that cannot be trusted; one line naming the file and the key."""


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of a graph; a word in `shape` is an axis of any size."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One compiled graph: the file or folder a backend opens, and the sha256 of all its files.

    `notes` holds what else its backend needs to know (compute units, capabilities).
    """

    file: str
    sha256: dict[str, str]
    precision: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    notes: dict[str, str]

    @property
    def batch(self) -> int | None:
        """The batch it is fixed to; None if it takes any."""
        size = self.inputs[0].shape[0]
        return size if isinstance(size, int) else None


@dataclass(frozen=True, kw_only=True)
class TokenizerFile:
    """A file of the `tokenizers` library, and what surrounds it.

    `input` is where its ids go, and `mask`, unless "", where 1 for each of them and 0 for padding.
    """

    file: str
    sha256: dict[str, str]
    length: int
    pad_id: int
    input: str = "input_ids"
    mask: str = ""


@dataclass(frozen=True, kw_only=True)
class Latent:
    """What the denoiser works on; the scaling is in the decoder and here for the record."""

    shape: tuple[int, ...]
    scaling_factor: float
    shift_factor: float


@dataclass(frozen=True, kw_only=True)
class Image:
    """Picture size in pixels."""

    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Agreement with the torch student in dB (PSNR), 200 when equal."""

    mean: float
    worst: float


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How the bundle was compared with its student, and what came out.

    `graphs` holds each graph against the same module on the same inputs, `final` the whole way
    from prompt and noise to the sample, and `worst_prompt` the prompt it is farthest at. `passed`
    means that no graph's worst is under `floor_db`, that of `final` not under `final_floor_db`,
    and `text_image` not under `text_image_floor`.

    `backend` ran the graphs. `perceptual` is the mean distance of the pictures in the features of
    the evaluation's CLIP model (0 when equal), `text_image` the ratio of the bundle's text-image
    score to the student's; both are null where there are no pictures or no such model.
    """

    tier: str
    backend: str
    samples: int
    floor_db: float
    final_floor_db: float
    text_image_floor: float
    passed: bool
    graphs: dict[str, Figures]
    final: Figures
    worst_prompt: str
    perceptual: float | None
    text_image: float | None


@dataclass(frozen=True, kw_only=True)
class Source:
    """The student a bundle was made from."""

    sha256: str
    method: str
    family: str
    teacher: str
    licences: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a runtime needs to know; `made_from` is a hash over student and choices."""

    schema_version: int
    target: str
    backend: str
    precision: str
    steps: StepTable
    latent: Latent
    image: Image | None
    tokenizer: TokenizerFile | None
    graphs: dict[str, Graph]
    parity: Parity
    student: Source
    versions: dict[str, str]
    made_from: str
    more_tokenizers: tuple[TokenizerFile, ...] = ()

    @property
    def tokenizers(self) -> tuple[TokenizerFile, ...]:
        """All of them, in the text encoder's order."""
        return (self.tokenizer, *self.more_tokenizers) if self.tokenizer else ()

    @classmethod
    def read(cls, directory: str | Path) -> Manifest:
        """Read and check a bundle's manifest, not its files (see `verify`).

        Raises:
            BundleError: naming the file and the key that is wrong.
        """
        path = Path(directory) / FILE_NAME
        try:
            data = json.loads(path.read_bytes(), parse_constant=_no_constant)
        except FileNotFoundError:
            raise BundleError(f"{path}: no such file; {directory} is not a bundle") from None
        except ValueError as error:
            raise BundleError(f"{path}: not JSON: {error}") from None
        try:
            return _check(data)
        except _KeyError as problem:
            raise BundleError(f"{path}: {problem}") from None

    def write(self, directory: Path) -> None:
        """Write into a directory, at once or not at all."""
        path = directory / FILE_NAME
        beside = path.with_suffix(".tmp")
        data = asdict(self)
        for row in data["steps"]["rows"]:
            if row["size"] == 1:
                del row["size"]
        beside.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", "utf-8")
        beside.replace(path)

    def verify(self, directory: Path) -> None:
        """Compare every file with its sha256.

        Raises:
            BundleError: naming the first file that is missing or differs.
        """
        parts: dict[str, Graph | TokenizerFile] = dict(self.graphs)
        parts |= {f"tokenizer ({entry.input})": entry for entry in self.tokenizers}
        for key, part in parts.items():
            for name, expected in part.sha256.items():
                if not (directory / name).is_file():
                    raise BundleError(f"{directory / name}: missing, named by {key}.sha256")
                if sha256(directory / name) != expected:
                    raise BundleError(f"{directory / name}: does not match {key}.sha256")


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


class _KeyError(Exception):
    """What is wrong with one key."""


def _check(data: Any) -> Manifest:
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise _KeyError(
            f"schema_version: {version!r} is unknown; this runtime reads {SCHEMA_VERSION}"
        )
    manifest: Manifest = _read(Manifest, data, "")
    if problem := manifest.steps.problem(manifest.latent.shape):
        raise _KeyError(f"steps.rows: {problem}")
    _check_graphs(manifest)
    for name, graph in manifest.graphs.items():
        _check_files(graph, f"graphs.{name}")
    for entry in manifest.tokenizers:
        _check_files(entry, "tokenizer")
    return manifest


def _check_graphs(manifest: Manifest) -> None:
    """The networks that a picture needs, or the one that is all of them."""
    graphs = manifest.graphs
    if unknown := graphs.keys() - {*GRAPHS, FUSED}:
        choices = ", ".join((*GRAPHS, FUSED))
        raise _KeyError(f"graphs: unknown {min(unknown)!r}; choose from {choices}")
    if FUSED in graphs:
        if len(graphs) > 1:
            raise _KeyError(f"graphs: {FUSED} stands alone, found {', '.join(graphs)}")
        text = any(port.name != "noise" for port in graphs[FUSED].inputs)
        picture = any(port.name == "image" for port in graphs[FUSED].outputs)
        places = f"an input of tokens of graphs.{FUSED}", f"the output image of graphs.{FUSED}"
    else:
        if "denoiser" not in graphs:
            raise _KeyError("graphs.denoiser: missing")
        text, picture = "text_encoder" in graphs, "decoder" in graphs
        places = "graphs.text_encoder", "graphs.decoder"
    if text != (manifest.tokenizer is not None):
        raise _KeyError(f"tokenizer: must be there exactly when {places[0]} is")
    if picture != (manifest.image is not None):
        raise _KeyError(f"image: must be there exactly when {places[1]} is")


def _check_files(part: Graph | TokenizerFile, key: str) -> None:
    for name in (part.file, *part.sha256):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise _KeyError(f"{key}.file: {name!r} leaves the bundle")
    if not any(
        PurePosixPath(part.file) in (PurePosixPath(n), *PurePosixPath(n).parents)
        for n in part.sha256
    ):
        raise _KeyError(f"{key}.sha256: no entry for {part.file!r}")


def _read(kind: Any, value: Any, key: str) -> Any:
    """`value` as `kind`: a dataclass, tuple[T, ...], dict[str, T], a union or a scalar."""
    origin, args = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _read_fields(kind, value, key)
    if origin is UnionType:
        return _read(next((arg for arg in args if type(value) is arg), args[0]), value, key)
    types = {tuple: (list,), dict: (dict,), float: (int, float)}.get(origin or kind, (kind,))
    if type(value) not in types:
        raise _KeyError(f"{key}: expected {types[-1].__name__}, found {value!r:.60}")
    if origin is tuple:
        return tuple(_read(args[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        return {name: _read(args[1], item, f"{key}.{name}") for name, item in value.items()}
    return float(value) if kind is float else value


def _read_fields(kind: Any, value: Any, key: str) -> Any:
    if not isinstance(value, dict):
        raise _KeyError(f"{key}: expected an object, found {value!r:.60}")
    prefix = f"{key}." if key else ""
    hints = get_type_hints(kind)
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    for name in hints:
        if name not in value and name in needed:
            raise _KeyError(f"{prefix}{name}: missing")
    for name in value:
        if name not in hints:
            raise _KeyError(f"{prefix}{name}: unknown key; choose from {', '.join(hints)}")
    return kind(**{name: _read(hints[name], value[name], prefix + name) for name in value})
