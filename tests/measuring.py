"""Which tests are slow: measured by `make test`, chosen by `make slow`, marked when collected.

`pytest --measure FILE` writes the CPU seconds of every test function and of every fixture that
tests share, those of their processes included, so that a busy machine measures as a quiet one.
`python tests/measuring.py FILE...` keeps the cheapest functions of each file up to `BUDGET`
seconds and prints the others. They become the lines of tests/slow.txt, where a line may also name
a whole file. The marker `slow` leaves them out of `make test-fast`.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SLOW = Path(__file__).with_name("slow.txt")
BUDGET = 80.0
"""CPU seconds that the tests of one half may take beside the others of `make test-fast`."""


@dataclass
class Measured:
    """CPU seconds of test functions and of the fixtures that they share; which uses which."""

    tests: Counter[str] = field(default_factory=Counter)
    fixtures: Counter[str] = field(default_factory=Counter)
    uses: dict[str, list[str]] = field(default_factory=dict)


MEASURED = pytest.StashKey[Measured]()


def function(nodeid: str) -> str:
    """The test's name without its parameters."""
    return nodeid.partition("[")[0]


def is_slow(nodeid: str, lines: Iterable[str]) -> bool:
    """Whether a line names the test's function or its file."""
    name = function(nodeid)
    return not {name, name.partition("::")[0]}.isdisjoint(lines)


def slow(measured: Measured, budget: float = BUDGET) -> list[str]:
    """The functions that are left when the cheapest have used up the budget.

    A function costs its own seconds and those of its shared fixtures that no function before it
    has paid for.
    """
    uses, fixtures = measured.uses, measured.fixtures
    whole = {
        name: own + sum(fixtures[fixture] for fixture in uses.get(name, ()))
        for name, own in measured.tests.items()
    }
    left, paid, total = [], set(), 0.0
    for name in sorted(whole, key=lambda name: whole[name]):
        new = set(uses.get(name, ())) - paid
        cost = measured.tests[name] + sum(fixtures[fixture] for fixture in new)
        if total + cost > budget:
            left.append(name)
        else:
            total += cost
            paid |= new
    return sorted(left)


def spent() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--measure", type=Path, help="file for the CPU seconds of each test")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MEASURED] = Measured()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lines = frozenset(SLOW.read_text("utf-8").splitlines())
    for item in items:
        if is_slow(item.nodeid, lines):
            item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef, request: pytest.FixtureRequest
) -> Iterator[None]:
    before = spent()
    try:
        return (yield)
    finally:
        if fixturedef.scope != "function":
            fixtures = request.config.stash[MEASURED].fixtures
            fixtures[f"{fixturedef.baseid}::{fixturedef.argname}"] += spent() - before


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    measured = item.config.stash[MEASURED]
    before = spent() - measured.fixtures.total()
    result = yield
    name = function(item.nodeid)
    measured.tests[name] += spent() - measured.fixtures.total() - before
    measured.uses[name] = [
        fixture
        for fixture in measured.fixtures
        for baseid, argname in [fixture.rsplit("::", 1)]
        if argname in item.fixturenames and item.nodeid.startswith(baseid)
    ]
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    file = session.config.getoption("--measure")
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(vars(session.config.stash[MEASURED]), indent=0)
        file.write_text(text, encoding="utf-8")


def read(path: Path) -> Measured:
    values = json.loads(path.read_text("utf-8"))
    return Measured(Counter(values["tests"]), Counter(values["fixtures"]), values["uses"])


if __name__ == "__main__":
    for path in sys.argv[1:]:
        sys.stdout.writelines(f"{name}\n" for name in slow(read(Path(path))))
