"""Which tests are slow: measured by `make test`, chosen by `make slow`, marked when collected.

`pytest --measure FILE` writes the CPU seconds of every test function, those of its processes
included, so that a busy machine measures as a quiet one. `python tests/measuring.py FILE...` keeps
the cheapest functions of each file up to `BUDGET` seconds and prints the others. They become the
lines of tests/slow.txt, where a line may also name a whole file. The marker `slow` leaves them out
of `make test-fast`.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

SLOW = Path(__file__).with_name("slow.txt")
BUDGET = 110.0
"""CPU seconds that the tests of one half may take beside the others of `make test-fast`."""

SECONDS = pytest.StashKey[Counter]()


def function(nodeid: str) -> str:
    """The test's name without its parameters."""
    return nodeid.partition("[")[0]


def is_slow(nodeid: str, lines: Iterable[str]) -> bool:
    """Whether a line names the test's function or its file."""
    name = function(nodeid)
    return not {name, name.partition("::")[0]}.isdisjoint(lines)


def slow(seconds: Mapping[str, float], budget: float = BUDGET) -> list[str]:
    """The functions that are left when the cheapest have used up the budget."""
    left, total = [], 0.0
    for name, spent in sorted(seconds.items(), key=lambda item: item[1]):
        total += spent
        if total > budget:
            left.append(name)
    return sorted(left)


def spent() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--measure", type=Path, help="file for the CPU seconds of each test")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SECONDS] = Counter()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lines = frozenset(SLOW.read_text("utf-8").splitlines())
    for item in items:
        if is_slow(item.nodeid, lines):
            item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    before = spent()
    result = yield
    item.config.stash[SECONDS][function(item.nodeid)] += spent() - before
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    file = session.config.getoption("--measure")
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(session.config.stash[SECONDS], indent=0), encoding="utf-8")


if __name__ == "__main__":
    for path in sys.argv[1:]:
        sys.stdout.writelines(f"{name}\n" for name in slow(json.loads(Path(path).read_text())))
