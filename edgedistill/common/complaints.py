"""What surrounds the verbs: libraries made quiet, and one line for whatever goes wrong."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from io import TextIOWrapper
from typing import Any

from edgedistill.common.progress import Handler, say

__all__ = ["INTERRUPTED", "complain", "misused", "settle"]

INTERRUPTED = 130
"""Exit code."""


def settle() -> None:
    """Silence what libraries say at import, which is not for our users, and set streams up."""
    warnings.filterwarnings("ignore")
    # Some set the root logger up for themselves unless somebody has.
    logging.basicConfig(level=logging.ERROR)
    for library in ("TRANSFORMERS", "DIFFUSERS", "HF_HUB"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    for name in ("torchao", "torch.utils._pytree", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    runtime = logging.getLogger("edgedistill_runtime")
    runtime.addHandler(Handler())
    runtime.propagate = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Names of files may hold what the terminal's encoding does not.
            stream.reconfigure(errors="backslashreplace")


def misused(error: Any) -> int:
    """Say what is wrong with a command's words; the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return 2
    message = error.format_message().rstrip(".")
    where = f"; see {error.ctx.command_path} --help" if error.ctx else ""
    complain(message + where)
    return 2


MAX_LINE = 2000
"""Characters of the longest complaint; the middle of a longer one is left out."""


def complain(text: str) -> None:
    """Print a complaint as one line, the middle left out if it is very long."""
    line = " ".join(text.split())
    if len(line) > MAX_LINE:
        line = f"{line[: MAX_LINE // 2]} ... {line[-MAX_LINE // 2 :]}"
    if re.match(r"[A-Z][a-z]* ", line):  # a word, not a name
        line = line[0].lower() + line[1:]
    say(f"edgedistill: {line}")
