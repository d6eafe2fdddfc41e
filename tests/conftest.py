"""What every test may ask for: tiny real teachers, and engines that start afresh."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from heard import hearing

pytest_plugins = ["measuring"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="edgedistill-tests-")

TWO_MODES = '{"weights": [1, 2], "means": [[-1, 0], [1, 0.5]], "scales": [0.2, 0.3]}'


@pytest.fixture(autouse=True)
def _fresh_engine():
    """Accelerate keeps its first precision for the whole process otherwise."""
    yield
    import sys

    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def _fresh_logging():
    """The command line leaves a handler that prints."""
    names = ("edgedistill", "edgedistill_export", "edgedistill_runtime")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    from edgedistill.common.progress import hush

    hush(False)
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Messages that the package logs, from INFO on."""
    lines: list[str] = []
    with hearing(lines.append):
        yield lines


@pytest.fixture
def quick_fit(monkeypatch):
    """Planar students start from a short fit of their closed-form teacher."""
    from edgedistill.teachers.families import mixture

    monkeypatch.setattr(mixture, "FIT_STEPS", 20)
    monkeypatch.setattr(mixture, "FIT_BATCH", 64)


@pytest.fixture(scope="session")
def two_modes(tmp_path_factory) -> Path:
    """A mixture file of two modes in the plane."""
    file = tmp_path_factory.mktemp("mixture") / "two.json"
    file.write_text(TWO_MODES, encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def attentive_sd(tmp_path_factory) -> Path:
    """A Stable Diffusion pipeline folder with self-attention over 8x8 tokens and 4x4 tokens."""
    import torch
    from tiny import make_attentive

    folder = tmp_path_factory.mktemp("sd") / "attentive"
    torch.manual_seed(0)
    make_attentive().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory) -> Path:
    """A Stable Diffusion pipeline folder of real classes with random weights."""
    import torch
    from tiny import make_pipeline

    folder = tmp_path_factory.mktemp("sd") / "tiny"
    torch.manual_seed(0)
    make_pipeline().save_pretrained(folder)
    return folder
