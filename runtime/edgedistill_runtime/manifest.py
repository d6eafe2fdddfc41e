"""manifest.json of a bundle: its schema, strict reading, and checks against the files.

A bundle directory holds the manifest, the graphs and, for text-conditioned samples, a tokenizer:

- `text_encoder`: input_ids (N, L) int64, and more by name -> the denoiser's condition;
- `denoiser`: x (N, ...), t (N,), condition -> f, as `steps.StepTable` combines it;
- `decoder`: x0 (N, ...) -> image (N, 3, H, W) in [-1, 1], latent scaling folded in.

or, in a fused bundle, all of it as one:

- `pipeline`: noise (N, draws, ...), token ids where there is a tokenizer -> x0, and image.

Tensors at a graph's border are float32 (token ids int64) whatever the precision inside.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from edgedistill_runtime import sense, strict_json
from edgedistill_runtime.sense import FUSED, GRAPHS, Problem
from edgedistill_runtime.steps import StepTable
from edgedistill_runtime.strict_json import short

__all__ = [
    "FILE_NAME",
    "FUSED",
    "GRAPHS",
    "HASH_NAME",
    "READABLE",
    "SCHEMA_VERSION",
    "BundleError",
    "Choice",
    "Figures",
    "Graph",
    "Image",
    "Latent",
    "Manifest",
    "Parity",
    "Port",
    "Source",
    "Speed",
    "TokenizerFile",
    "schema_for",
    "sha256",
]

FILE_NAME = "manifest.json"
HASH_NAME = "manifest.sha256"
"""Name of the hash file of manifest.json, in the format of the program sha256sum."""

SCHEMA_VERSION = 5
HASHED_SINCE = 3
"""Version of the schema since which there is a `HASH_NAME`."""
PAST_SINCE = 4
"""Version of the schema since which rows of the step table use earlier ones."""
MEASURED_SINCE = 5
"""Version of the schema since which a bundle says how fast it is."""
READABLE = (2, 3, 4, 5)

_log = logging.getLogger(__name__)


class BundleError(ValueError):
    """Raised for a bundle that cannot be trusted; one line naming the file and the key."""


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of a graph; a word in `shape` is an axis of any size."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One compiled graph: the file or folder a backend opens, and the sha256 of all its files.

    `notes` holds further facts for its backend (compute units, capabilities).
    """

    file: str
    sha256: dict[str, str]
    precision: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    notes: dict[str, str]

    @property
    def batch(self) -> int | None:
        """The batch that the graph is fixed to; None if it takes any."""
        size = self.inputs[0].shape[0]
        return size if isinstance(size, int) else None


@dataclass(frozen=True, kw_only=True)
class TokenizerFile:
    """A file of the `tokenizers` library, with its inputs of the text encoder.

    `input` is the input for its ids; `mask`, unless "", is the input that is 1 for each id and 0
    for padding.
    """

    file: str
    sha256: dict[str, str]
    length: int
    pad_id: int
    input: str = "input_ids"
    mask: str = ""


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Latent of the denoiser; the scaling is built into the decoder and only recorded here."""

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
    """Agreement with the torch student in dB (PSNR), 200 when equal, -1 if not finite."""

    mean: float
    worst: float


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Settings and results of comparing the bundle with its student.

    `graphs` compares each graph with the student's module on the same inputs, `final` the whole
    way from prompt and noise to the sample, and `worst_prompt` is the prompt with the largest
    difference. `passed` means that no graph's worst figure is below `floor_db`, that of `final`
    not below `final_floor_db`, and `text_image` not below `text_image_floor`.

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
class Speed:
    """Figures of one bundle of the student, measured in processes of its own.

    `p50_s` is the median of one picture a call, `pictures_per_s` the rate with several a call,
    `start_s` the time from loading to the first picture; `peak_rss_mb` and `size_mb` are in MiB.
    """

    bundle: str
    threads: int
    p50_s: float
    pictures_per_s: float
    start_s: float
    peak_rss_mb: float | None
    size_mb: float
    worst_db: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The bundles among which this one was chosen, all measured in turns on one device.

    `threads` is the number with which this one is the fastest there.
    """

    device: str
    purpose: str
    threads: int
    speeds: tuple[Speed, ...]


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
    choices: tuple[Choice, ...] = ()

    @property
    def tokenizers(self) -> tuple[TokenizerFile, ...]:
        """All tokenizers, in the text encoder's order."""
        return (self.tokenizer, *self.more_tokenizers) if self.tokenizer else ()

    @classmethod
    def read(cls, directory: str | Path) -> Manifest:
        """Read and check a bundle's manifest, not its files (see `verify`).

        Raises:
            BundleError: If it is wrong; names the file and the key.
        """
        path = Path(directory) / FILE_NAME
        try:
            text = strict_json.read_bytes(path)
            manifest = _check(strict_json.parse(text))
        except (FileNotFoundError, NotADirectoryError):
            raise BundleError(f"{path}: no such file; {directory} is not a bundle") from None
        except OSError as error:
            raise BundleError(f"{path}: not readable: {error.strerror}") from None
        except ValueError as error:
            raise BundleError(f"{path}: not JSON: {error}") from None
        except Problem as problem:
            raise BundleError(f"{path}: {problem}") from None
        if manifest.schema_version < HASHED_SINCE:
            _tell_old(path, manifest.schema_version)
        else:
            _check_hash(path, text)
        return manifest

    def write(self, directory: Path) -> None:
        """Write the manifest and its hash into a directory.

        Raises:
            ValueError: If a number is not finite; nothing is written.
        """
        path = directory / FILE_NAME
        beside = path.with_suffix(".tmp")
        data = asdict(self)
        for row in data["steps"]["rows"]:
            if row["size"] == 1:
                del row["size"]
            if not row["past"]:
                del row["past"]
        if not data["choices"]:
            del data["choices"]
        text = json.dumps(data, indent=2, allow_nan=False) + "\n"
        beside.write_text(text, "utf-8", newline="\n")
        digest = hashlib.sha256(text.encode()).hexdigest()
        (directory / HASH_NAME).write_text(f"{digest}  {FILE_NAME}\n", "utf-8", newline="\n")
        beside.replace(path)

    def verify(self, directory: Path) -> None:
        """Compare every file with its sha256.

        Raises:
            BundleError: If a file is missing, differs, is a link to a place outside, or lies in a
                graph's folder without a hash; names the first.
        """
        parts: dict[str, Graph | TokenizerFile] = dict(self.graphs)
        parts |= {f"tokenizer ({entry.input})": entry for entry in self.tokenizers}
        for key, part in parts.items():
            for name, expected in part.sha256.items():
                _verify(directory, name, expected, key)
            for file in sorted((directory / part.file).rglob("*")):
                name = file.relative_to(directory).as_posix()
                if not file.is_dir() and name not in part.sha256 and file.name != ".DS_Store":
                    raise BundleError(f"{file}: {FILE_NAME} does not name it as a part of {key}")


def _verify(directory: Path, name: str, expected: str, key: str) -> None:
    file = directory / name
    try:
        if not file.is_file():
            raise BundleError(f"{file}: missing; {FILE_NAME} names it as a part of {key}")
        if not file.resolve().is_relative_to(directory.resolve()):
            raise BundleError(f"{file}: links to a place outside the bundle; copy the file there")
        found = sha256(file)
    except OSError as error:
        raise BundleError(f"{file}: not readable: {error.strerror}") from None
    if found != expected:
        raise BundleError(f"{file}: damaged or changed: its SHA-256 is not that in {FILE_NAME}")


def schema_for(steps: StepTable, choices: Sequence[Choice] = ()) -> int:
    """Return the oldest schema that holds these parts, so that older runtimes read it too."""
    if choices:
        return MEASURED_SINCE
    return PAST_SINCE if steps.reach else HASHED_SINCE


def sha256(path: Path) -> str:
    """Return the hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@functools.cache
def _tell_old(path: Path, version: int) -> None:
    """Report once in one line what an older bundle lacks."""
    _log.warning(
        "%s: schema_version %d of an older edgedistill, whose step table is under no hash; "
        "export again to have one",
        path,
        version,
    )


def _check_hash(path: Path, text: bytes) -> None:
    file = path.with_name(HASH_NAME)
    try:
        found = strict_json.read_bytes(file).split()[:1]
    except FileNotFoundError:
        raise BundleError(f"{file}: no such file; it belongs to {FILE_NAME}") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{file}: not readable: {error}") from None
    if found != [hashlib.sha256(text).hexdigest().encode()]:
        raise BundleError(f"{path}: damaged or changed: its SHA-256 is not that in {HASH_NAME}")


def _check(data: Any) -> Manifest:
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is not int or version not in READABLE:
        known = ", ".join(map(str, READABLE))
        raise Problem(f"schema_version: {short(version)} is unknown; this runtime reads {known}")
    manifest: Manifest = _read(Manifest, data, "")
    sense.check(manifest)
    return manifest


def _read(kind: Any, value: Any, key: str) -> Any:
    """Read `value` as `kind`: a dataclass, tuple[T, ...], dict[str, T], a union or a scalar."""
    origin, args = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _read_fields(kind, value, key)
    if origin is UnionType:
        return _read(next((arg for arg in args if type(value) is arg), args[0]), value, key)
    types = {tuple: (list,), dict: (dict,), float: (int, float)}.get(origin or kind, (kind,))
    if type(value) not in types:
        raise Problem(f"{key}: expected {types[-1].__name__}, found {short(value)}")
    if origin is tuple:
        return tuple(_read(args[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        return {name: _read(args[1], item, f"{key}.{name:.60}") for name, item in value.items()}
    return float(value) if kind is float else value


def _read_fields(kind: Any, value: Any, key: str) -> Any:
    if not isinstance(value, dict):
        raise Problem(f"{key}: expected an object, found {short(value)}")
    prefix = f"{key}." if key else ""
    hints = get_type_hints(kind)
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    for name in hints:
        if name not in value and name in needed:
            raise Problem(f"{prefix}{name}: missing")
    for name in value:
        if name not in hints:
            raise Problem(f"{prefix}{name:.60}: unknown key; choose from {', '.join(hints)}")
    return kind(**{name: _read(hints[name], value[name], prefix + name) for name in value})
