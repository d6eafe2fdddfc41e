"""Folders on the Hugging Face Hub, named `OWNER/NAME` or `OWNER/NAME@REVISION`.

Files that hold numbers or text are fetched: safetensors, onnx, OpenVINO's xml and its bin, json,
and so on. Pickles and programs stay on the Hub. A local file or folder of that name comes first.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = [
    "ROOTS",
    "TERMS",
    "HubError",
    "HubName",
    "fetch",
    "hub_name",
    "local_folder",
    "named",
    "reason",
    "wanted",
]

DATA = (
    *(".safetensors", ".onnx", ".data", ".xml", ".mlmodel", ".pte", ".model"),
    *(".json", ".jsonl", ".txt", ".md", ".yaml", ".jinja", ".csv", ".sha256"),
    *(".png", ".jpg", ".webp"),
)
"""Endings of the files that are fetched."""

BESIDE = {".bin": (".xml",)}
"""Endings of files that are fetched if a file of the same name with another ending is there."""

INSIDE = {".bin": ".mlpackage"}
"""Endings of files that are fetched from inside a folder of another ending."""

TERMS = ("license", "licence", "notice", "use_policy", "use-policy", "copying")
"""Begins of the names of files with terms of use, which may have any ending."""

ROOTS = ("model_index.json", "student.json", "students.json", "manifest.json", "config.json")
"""Files without which a copy is not used where the Hub cannot be reached."""

BUNDLES = ("manifest.json", glob.escape("0/manifest.json"))
"""Files by which a repository is one of bundles."""

OURS = "runs"
"""Owner that is never looked up, since it is the folder of runs."""

PATIENCE = 10.0
"""Seconds to wait for the Hub's first answer."""

_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>\w[\w./-]*))?",
    re.ASCII,
)


class HubError(ValueError):
    """A folder that could not be had from the Hub; the message says why in one line."""


class HubName(str):
    """The name of a folder on the Hub.

    Attributes:
        repo: OWNER/NAME.
        revision: Branch, tag or commit after the "@"; None for the newest of the main branch.
    """

    repo: str
    revision: str | None

    def __new__(cls, repo: str, revision: str | None = None) -> HubName:
        self = super().__new__(cls, f"{repo}@{revision}" if revision else repo)
        self.repo, self.revision = repo, revision
        return self

    @property
    def name(self) -> str:
        """Name without its owner and revision."""
        return self.repo.partition("/")[2]


def hub_name(path: str | os.PathLike[str]) -> HubName | None:
    """Return a path as a name on the Hub; None if it can be none, or if it exists here.

    `a/b` is no name on the Hub where a folder `a` exists, nor is `runs/b` anywhere.
    """
    name = named(os.fspath(path))
    if name is None:
        return None
    owner = name.repo.partition("/")[0]
    if owner == OURS or Path(path).exists() or Path(owner).is_dir():
        return None
    return name


def named(text: str) -> HubName | None:
    """Read OWNER/NAME or OWNER/NAME@REVISION, whatever exists here; None for other words."""
    match = _NAME.fullmatch(text)
    return None if match is None else HubName(match["repo"], match["revision"])


def local_folder(path: str | os.PathLike[str]) -> Path:
    """Return a local path as it is, and the local copy of a folder on the Hub.

    Raises:
        HubError: If `path` is a name on the Hub that cannot be had.
    """
    name = hub_name(path)
    return Path(path) if name is None else fetch(name)


def wanted(files: Iterable[str]) -> list[str]:
    """Return the files of a repository that are fetched, by their names in it."""
    names = set(files)
    return sorted(name for name in names if _is_data(PurePosixPath(name), names))


def _is_data(path: PurePosixPath, names: set[str]) -> bool:
    ending = path.suffix.lower()
    if any(part.startswith(".") for part in path.parts):
        return False
    if ending in DATA or path.name.lower().startswith(TERMS):
        return True
    if any(str(path.with_suffix(other)) in names for other in BESIDE.get(ending, ())):
        return True
    inside = INSIDE.get(ending)
    return inside is not None and any(part.endswith(inside) for part in path.parts[:-1])


def fetch(name: HubName, choose: Callable[[Iterable[str]], list[str]] = wanted) -> Path:
    """Return a local copy of a folder on the Hub; an older copy where the Hub cannot be reached.

    Args:
        name: The folder.
        choose: Function that chooses from the names of the files there.

    Raises:
        HubError: If there is none; says why.
    """
    try:
        import huggingface_hub as hub
    except ImportError:
        raise HubError(
            f"no folder at {str(name)!r}; to get it from the Hub: pip install huggingface_hub"
        ) from None
    try:
        info = hub.HfApi().model_info(name.repo, revision=name.revision, timeout=PATIENCE)
        files = choose(wanted(each.rfilename for each in info.siblings or ()))
        if not files:
            raise HubError(f"{name}: the Hub has no file there that is read (safetensors, onnx)")
        patterns = [glob.escape(file) for file in files]
        return _download(hub, name, str(info.sha), patterns)
    except HubError:
        raise
    except Exception as error:  # its HTTP library's own errors among them
        kept = _kept(hub, name) if _unreachable(error) else None
        if kept is None:
            raise HubError(f"no folder at {str(name)!r}, and {reason(error)}") from error
        return kept


def _download(hub: Any, name: HubName, commit: str, patterns: list[str]) -> Path:
    """Download files into the Hub's own cache; those of bundles into ours."""
    if not any(pattern in patterns for pattern in BUNDLES):
        # By its revision, so that the cache knows it without a network.
        found = hub.snapshot_download(name.repo, revision=name.revision, allow_patterns=patterns)
        return Path(found)
    # The Hub's cache links files to another folder, which backends refuse.
    home = _bundles(name)
    folder = home / commit
    hub.snapshot_download(name.repo, revision=commit, allow_patterns=patterns, local_dir=folder)
    _ref(home, name).write_text(commit, encoding="utf-8")
    return folder


def _bundles(name: HubName) -> Path:
    """Return the folder of the copies of a repository of bundles."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "edgedistill" / "hub" / name.repo.replace("/", "--")


def _ref(home: Path, name: HubName) -> Path:
    """Return the file that names the newest fetched commit of a revision."""
    return home / f"{(name.revision or 'main').replace('/', '--')}.ref"


def _kept(hub: Any, name: HubName) -> Path | None:
    """Return the copy that an earlier call has fetched, if there is one."""
    home = _bundles(name)
    commit = _ref(home, name)
    if commit.is_file():
        return home / commit.read_text(encoding="utf-8")
    try:
        return Path(
            hub.snapshot_download(
                name.repo,
                revision=name.revision,
                allow_patterns=list(ROOTS),
                local_files_only=True,
            )
        )
    except (OSError, ValueError):
        return None


def reason(error: BaseException) -> str:
    """Return in a few words why the Hub gave nothing."""
    kinds = set(_names(error))
    for kind, told in _REASONS:
        if kind in kinds:
            return told
    answer = getattr(getattr(error, "response", None), "status_code", None)
    if answer in (401, 403):
        return "the Hub does not let you in there: log in with `hf auth login`"
    if answer is not None:
        return f"the Hub answered {answer}"
    return f"the Hub could not be reached ({type(error).__name__})"


_REASONS = (
    ("OfflineModeIsEnabled", "the Hub is switched off (HF_HUB_OFFLINE)"),
    ("GatedRepoError", "the Hub's is gated: ask for access there, then `hf auth login`"),
    ("RevisionNotFoundError", "the Hub knows no such revision"),
    (
        "RepositoryNotFoundError",
        "the Hub knows none (a private one needs `hf auth login`)",
    ),
    ("LocalTokenNotFoundError", "the Hub wants to know you: log in with `hf auth login`"),
    ("HFValidationError", "the Hub takes no such name"),
)
"""Words by the name of an error's class, the most specific first."""


def _names(error: BaseException) -> Iterator[str]:
    """Yield the names of an error's classes."""
    for kind in type(error).__mro__:
        yield kind.__name__


def _unreachable(error: BaseException) -> bool:
    """Whether nobody answered, or only that something is wrong there (5xx)."""
    answer = getattr(getattr(error, "response", None), "status_code", None)
    return answer is None or answer >= 500
