"""Quiet libraries and one-line error messages around the commands."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from io import TextIOWrapper
from typing import Any

from edgedistill.common.logs import PACKAGE
from edgedistill.common.progress import Handler, hush, say

__all__ = ["INTERRUPTED", "complain", "listen", "misused", "settle"]

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def settle() -> None:
    """Print our log messages, silence those of libraries, and set the output streams up."""
    warnings.filterwarnings("ignore")
    # Some libraries configure the root logger unless it is configured already.
    logging.basicConfig(level=logging.ERROR)
    for library in ("TRANSFORMERS", "DIFFUSERS", "HF_HUB"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    for name in ("torchao", "torch.utils._pytree", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    listen()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # File names may hold characters that the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")


def listen(level: int = logging.INFO) -> None:
    """Print messages of the package's and the runtime's loggers on the console.

    Args:
        level: Least level of what is printed; above INFO there are no progress bars either.
    """
    hush(level > logging.INFO)
    for name in (PACKAGE.name, "edgedistill_export", "edgedistill_runtime"):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        if not any(isinstance(handler, Handler) for handler in logger.handlers):
            logger.addHandler(Handler())
        logger.propagate = False


def misused(error: Any) -> int:
    """Print what is wrong with a command's arguments; return the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return 2
    message = error.format_message().rstrip(".")
    where = f"; see {error.ctx.command_path} --help" if error.ctx else ""
    complain(message + where)
    return 2


MAX_LINE = 2000
"""Length of the longest complaint in characters; a longer one loses its middle."""


def complain(text: str) -> None:
    """Print a complaint as one line, the middle left out if it is very long."""
    line = " ".join(text.split())
    if len(line) > MAX_LINE:
        line = f"{line[: MAX_LINE // 2]} ... {line[-MAX_LINE // 2 :]}"
    if re.match(r"[A-Z][a-z]* ", line):  # a word, not a name
        line = line[0].lower() + line[1:]
    say(f"edgedistill: {line}")
