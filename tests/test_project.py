"""What must stay true of the project's own files."""

import re
import subprocess
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def locked() -> set[str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return {line.removesuffix(" \\") for line in lines if re.match(r"[a-z0-9]", line)}


def test_environment_yml_has_the_lock_files_pins() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (packages,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert set(packages) == locked()
    assert "python >=3.11" in environment["dependencies"]


def test_all_direct_dependencies_are_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [requirement for group in groups for requirement in group]
    names = {re.split(r"[<>=]", requirement)[0] for requirement in wanted}
    assert names <= {pin.split("==")[0] for pin in locked()}


def test_every_pin_has_hashes_and_no_host() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    for block in re.split(r"\n(?=[a-z0-9])", lock):
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
