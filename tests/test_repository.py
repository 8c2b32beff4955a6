"""Files for GitHub and for contributors: what they name exists and agrees with pyproject.toml."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
FIELDS = {"markdown", "input", "textarea", "dropdown", "checkboxes"}
"""Types of GitHub's issue forms."""


def load(path: Path) -> Any:
    """The value of a YAML file, keys as text (``on`` is true in YAML 1.1)."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)


WORKFLOW = load(GITHUB / "workflows/tests.yml")
COMMANDS = [s["run"] for job in WORKFLOW["jobs"].values() for s in job["steps"] if "run" in s]


def test_the_matrix_has_the_declared_python_versions() -> None:
    """A version that is promised and never run, or run and not promised."""
    tested = WORKFLOW["jobs"]["suite"]["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: 3."
    declared = [line[-4:] for line in PROJECT["classifiers"] if line.startswith(prefix)]
    assert tested == declared
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert all(allowed.contains(version) for version in tested)
    lowest = int(tested[0].partition(".")[2])
    assert not allowed.contains(f"3.{lowest - 1}.99")
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py3{lowest}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == tested[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_workflow(command: str) -> None:
    """A workflow that names a file of an old layout is red on the first push."""
    words = shlex.split(command)
    for path in words:
        if re.fullmatch(r"(tests|\.github)/[\w./]+", path):
            assert (ROOT / path).is_file(), path
    for extra in re.findall(r"\.\[(\w+)\]", command):
        assert extra in PROJECT["optional-dependencies"]
    if words[:2] == ["python", "tests/versions.py"]:
        assert all(f'"{option}"' in (ROOT / words[1]).read_text() for option in words[2:])
    elif words[:2] == ["python", "-m"]:
        developers = " ".join(PROJECT["optional-dependencies"]["dev"])
        assert re.search(rf"\b{words[2]}>=", developers), words[2]
    else:
        assert words[0] in {"pip", "pytest", "python"}


def test_the_workflow_tests_both_ends_of_the_versions() -> None:
    """Lowest versions that nobody installs, and a new release that breaks a user first."""
    assert {"python tests/versions.py", "python tests/versions.py --newest"} <= set(COMMANDS)
    used = [step["uses"] for job in WORKFLOW["jobs"].values() for step in job["steps"][:2]]
    assert {name.partition("@")[0] for name in used} == {"actions/checkout", "actions/setup-python"}


@pytest.mark.parametrize("name", ["bug.yml", "feature.yml"])
def test_issue_forms(name: str) -> None:
    """GitHub shows no form at all if a field is malformed."""
    form = load(GITHUB / "ISSUE_TEMPLATE" / name)
    assert {"name", "description", "body"} <= form.keys()
    assert {field["type"] for field in form["body"]} <= FIELDS
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids)) > 2
    for field in form["body"]:
        assert field.keys() <= {"type", "id", "attributes", "validations"}
        assert field["attributes"]["label"]
        assert (field["type"] == "dropdown") == ("options" in field["attributes"])


def test_hooks_run_the_tools_of_the_development_environment() -> None:
    """A hook of another version undoes what the tests ask for."""
    hooks = [
        hook for repo in load(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]
    ]
    assert [hook["id"] for hook in hooks] == ["ruff-check", "ruff-format", "mypy"]
    developers = " ".join(PROJECT["optional-dependencies"]["dev"])
    for hook in hooks:
        assert hook["language"] == "system"
        python, _, module = hook["entry"].split()[:3]
        assert (python, f"{module}>=" in developers) == ("python", True)


def test_citation_and_changelog_name_this_version() -> None:
    """A citation of a version that was never released."""
    citation = load(GITHUB / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    first = re.search(r"^## (.+)$", (GITHUB / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert PROJECT["version"] in first[1]
