"""Push students and bundles to the Hugging Face Hub."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from edgedistill.common.files import recover, write_text
from edgedistill.common.hashes import files_in
from edgedistill.common.pickles import PICKLES
from edgedistill.common.pictures import grid, scatter
from edgedistill.draw.subjects import Subject, bundle_subject, student_subject
from edgedistill.students.folder import CARD, load_student_info
from edgedistill.students.group import Students, group_of, open_student
from edgedistill.verbs.cards import PICTURE, bundle_card, student_card
from edgedistill.verbs.places import settled
from edgedistill_export.prompts import parity_prompts
from edgedistill_runtime import Pipeline
from edgedistill_runtime.bench import PROMPTS
from edgedistill_runtime.hub import PATIENCE, HubError, HubName, named, reason, wanted
from edgedistill_runtime.manifest import FILE_NAME, Manifest
from edgedistill_runtime.noise import noise

__all__ = ["push"]

OURS = ("student.json", "students.json", FILE_NAME)
"""Files by which a repository on the Hub is known to hold a student or a bundle."""

EMPTY = (".gitattributes", CARD)
"""Files of a repository that holds nothing yet."""

COUNT, SEED = 4, 0
"""Number and seed of the samples on the card."""


@dataclass(frozen=True)
class _Parcel:
    """A checked folder to push, and functions that make its card and its samples' subject."""

    folder: Path
    card: Callable[[str, Sequence[str]], str]
    subject: Callable[[], tuple[Subject, list[str]]]


def push(
    source: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    prompts: Sequence[str] | None = None,
    replace: bool = False,
    message: str = "",
) -> str:
    """Push a student or a bundle to the Hugging Face Hub, with a model card and a picture.

    The repository is made if it is not there. An older student or bundle in it is replaced; its
    files stay in the repository's history. The local folder is not changed.

    Args:
        source: Folder of a student, a run, several students or a bundle.
        repo: OWNER/NAME.
        private: Whether a new repository is private.
        prompts: Prompts of the card's picture, at least one; known ones if None.
        replace: Whether other files in the repository may be replaced.
        message: Message of the commit.

    Returns:
        The repository's address.

    Raises:
        ValueError: If the folder is no student or bundle, or damaged.
        HubError: If the Hub cannot be reached or refuses; says why. Nothing was pushed.
    """
    name = _repo(repo)
    parcel = _open(settled(source))
    api = HfApi()
    with _worded(name):
        theirs = _files_there(api, name, replace)
        subject, known = parcel.subject()
        lines = list(prompts or known) if known else []
        if prompts and not known:
            raise ValueError(f"{source} takes no prompt, got {prompts[0]!r}")
        with tempfile.TemporaryDirectory(prefix="edgedistill-push-") as work:
            staged = Path(work) / name.name
            _stage(parcel.folder, staged)
            _draw(subject, lines, staged / PICTURE)
            write_text(staged / CARD, parcel.card(name.repo, lines))
            url = api.create_repo(name.repo, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=name.repo,
                folder_path=staged,
                commit_message=message or f"Push {parcel.folder.name} with edgedistill",
                delete_patterns=[file for file in theirs if not (staged / file).is_file()],
            )
    return str(url)


def _repo(text: str) -> HubName:
    """Return the repository that the user named."""
    name = named(text)
    if name is None or name.revision:
        raise ValueError(f"{text!r} is no repository of the Hub; OWNER/NAME expected")
    return name


def _open(source: Path) -> _Parcel:
    """Check a folder whole, before anything is sent."""
    recover(source)
    if (source / FILE_NAME).is_file():
        return _bundle(source)
    group = group_of(source)
    info = load_student_info(group / "0" if group else source)
    folder = group or _student_folder(source)
    bad = [file for file in files_in(folder) if file.endswith(PICKLES)]
    if bad:
        raise ValueError(f"{folder / bad[0]}: a pickle, which nobody should open; take it away")

    def card(repo: str, prompts: Sequence[str]) -> str:
        return student_card(folder, info, repo, prompts, SEED)

    def subject() -> tuple[Subject, list[str]]:
        student = open_student(folder)
        takes = bool(student.teacher.prompts)
        first = student.students[0] if isinstance(student, Students) else student
        known = parity_prompts(first, COUNT) if takes else []
        return student_subject("student", student, noise), list(dict.fromkeys(known))

    return _Parcel(folder, card, subject)


def _student_folder(source: Path) -> Path:
    return source if (source / "student.json").is_file() else source / "student"


def _bundle(folder: Path) -> _Parcel:
    """Check a bundle, and that what is pushed of it can be fetched again."""
    manifest = Manifest.read(folder)
    manifest.verify(folder)
    files = [file for graph in manifest.graphs.values() for file in graph.sha256]
    lost = sorted(set(files) - set(wanted(files_in(folder))))
    if lost:
        raise ValueError(
            f"{folder / lost[0]}: a program for one device, which is not fetched from the Hub; "
            "push the student, and export it there"
        )

    def card(repo: str, prompts: Sequence[str]) -> str:
        return bundle_card(folder, manifest, repo, prompts, SEED)

    def subject() -> tuple[Subject, list[str]]:
        pipe = Pipeline.load(folder)
        return bundle_subject("bundle", pipe), _readable(pipe)

    return _Parcel(folder, card, subject)


def _readable(pipe: Pipeline) -> list[str]:
    """Return prompts that a bundle reads: known ones, or that of its parity check for classes."""
    worst = pipe.manifest.parity.worst_prompt
    known = [line for line in dict.fromkeys((worst, *PROMPTS)) if line][:COUNT]
    if pipe.tokenizer is None:
        return []
    try:
        pipe.tokenizer(known)
    except ValueError:
        return [worst]
    return known


@contextmanager
def _worded(name: HubName) -> Iterator[None]:
    """Turn errors of the Hub's client into a line that says why."""
    try:
        yield
    except (ValueError, FloatingPointError) as error:
        if type(error).__module__.startswith("huggingface_hub"):
            raise HubError(f"not pushed to {name}: {reason(error)}") from error
        raise
    except Exception as error:  # its HTTP library's own errors among them
        if type(error).__module__.split(".")[0] not in ("huggingface_hub", "httpx", "httpx2"):
            raise
        raise HubError(f"not pushed to {name}: {reason(error)}") from error


def _files_there(api: HfApi, name: HubName, replace: bool) -> list[str]:
    """Return the files that a repository holds; ValueError if they are of something else."""
    try:
        info = api.model_info(name.repo, timeout=PATIENCE)
    except RepositoryNotFoundError:
        return []
    files = [each.rfilename for each in info.siblings or ()]
    other = [file for file in files if file not in EMPTY]
    if other and not replace and not any(file in OURS for file in files):
        raise ValueError(
            f"{name}: holds {other[0]} and no student or bundle; name another repository, or "
            "replace its files with --replace"
        )
    return other


def _stage(folder: Path, staged: Path) -> None:
    """Fill a folder with links to another's files, or copies where there are no links."""
    for file in files_in(folder):
        (staged / file).parent.mkdir(parents=True, exist_ok=True)
        if file == CARD:
            continue
        try:
            (staged / file).symlink_to((folder / file).resolve())
        except OSError:
            shutil.copyfile(folder / file, staged / file)


def _draw(subject: Subject, prompts: Sequence[str], file: Path) -> None:
    """Write the card's picture: a sample for each prompt, or samples as a grid or a plot."""
    drawn = subject.draw(list(prompts) or COUNT, SEED, lambda done: None)
    if drawn.ndim == 4:
        grid(drawn).save(file)
    else:
        scatter(drawn).savefig(file, dpi=110)
