"""What must stay true of the project's own files."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def locked() -> dict[str, set[str]]:
    """Return the pins of the lock, by the `make` target whose part they are in."""
    parts = re.split(r"^# make (.+)\n", (ROOT / "requirements.lock").read_text(), flags=re.M)[1:]
    pins = [{m[0] for m in re.finditer(r"^[a-z0-9][^\\\n]*(?= \\$)", text, re.M)} for text in parts]
    return dict(zip(parts[::2], pins[1::2], strict=True))


def names(pins: set[str]) -> set[str]:
    return {pin.split("==")[0] for pin in pins}


def test_environment_yml_has_the_lock_files_pins() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (packages,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert set(packages) == locked()["setup"]
    assert "python >=3.11" in environment["dependencies"]


@pytest.mark.parametrize(
    ("part", "extras"),
    [
        ("setup", ["demo", "dev"]),
        ("setup-s3", ["s3"]),
        ("setup-slurm", ["slurm"]),
        ("test-all", ["s3", "test-all"]),
    ],
)
def test_all_direct_dependencies_are_locked(part: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [project["optional-dependencies"][extra] for extra in extras]
    groups = [*optional, project["dependencies"]] if part == "setup" else optional
    wanted = {re.split(r"[\[<>=]", requirement)[0] for group in groups for requirement in group}
    assert wanted <= names(locked()[part])


def test_a_package_has_the_same_pins_in_every_part() -> None:
    parts = locked()
    for pins in parts.values():
        for others in parts.values():
            assert all(pin in others for pin in pins if names({pin}) <= names(others))


def test_every_pin_has_hashes_and_no_host() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    for block in re.split(r"\n(?=[a-z0-9])", re.sub(r"^# make .*\n", "", lock, flags=re.M)):
        assert "--hash=sha256:" in block, block.splitlines()[0]


def test_readme_names_files_that_are_there() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in re.findall(r"(?:workflow|config|profiles|tests)/[\w./-]+", readme):
        assert (ROOT / name).exists(), name
    targets = subprocess.run(
        [
            "make",
            "--dry-run",
            "--always-make",
            *set(re.findall(r"make (setup|demo|test|lint)", readme)),
        ],
        cwd=ROOT,
        capture_output=True,
    )
    assert targets.returncode == 0


def test_the_tunnel_script_that_messages_name_is_there() -> None:
    client = (ROOT / "workflow/scripts/export_via_api.py").read_text()
    for name in re.findall(r"workflow/scripts/\w+\.sh", client):
        assert (ROOT / name).exists()
