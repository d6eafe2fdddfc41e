"""Workflows parse, run what the Makefile has, and store no token."""

import re
from pathlib import Path

import pytest
import tomllib
import yaml

ROOT = Path(__file__).parents[2]
LOCKED = ("cpu", "openvino", "executorch", "data", "moments", "tensorboard", "dev")
"""Extras whose packages the lock has; those for some systems alone it has not."""

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_every_step_runs_something_that_is_there(file):
    text = file.read_text("utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    for name, job in jobs.items():
        assert set(job.get("needs", "").split()) <= set(jobs), name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@[\w./]+", step["uses"])
            for path in re.findall(r"[\w./-]+\.py\b|\.ci/run", step.get("run", "")):
                assert (ROOT / path).is_file(), path
    assert "secrets." not in text


def test_only_the_publishing_job_may_ask_for_an_identity():
    for file in WORKFLOWS:
        data = yaml.safe_load(file.read_text("utf-8"))
        assert data["permissions"] == {"contents": "read"}
        writers = [name for name, job in data["jobs"].items() if "permissions" in job]
        assert writers == (["publish"] if file.stem == "publish" else [])


def test_the_dockerfile_copies_what_is_there_and_is_no_root():
    text = (ROOT / "Dockerfile").read_text("utf-8")
    for source in re.findall(r"^COPY (?!--from)(\S+)", text, re.M):
        assert (ROOT / source).exists(), source
    assert re.search(r"^USER [1-9]\d*$", text, re.M)
    extras = (ROOT / "pyproject.toml").read_text("utf-8")
    for extra in re.search(r'"\.\[(.*)\]"', text)[1].split(","):
        assert re.search(rf"^{extra} = \[", extras, re.M), extra


def test_the_lock_names_every_dependency():
    locked = (ROOT / "requirements.lock").read_text("utf-8")
    names = {
        re.sub(r"[-_.]+", "-", name).lower() for name in re.findall(r"^([\w.-]+)==", locked, re.M)
    }
    for package in ("", "runtime"):
        project = tomllib.loads((ROOT / package / "pyproject.toml").read_text())["project"]
        extras = project["optional-dependencies"]
        asked = [
            *project["dependencies"],
            *(each for name in LOCKED for each in extras.get(name, ())),
        ]
        for each in asked:
            name = re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", each)[0]).lower()
            assert name in names or name.startswith("edgedistill"), each
