"""The profiles beside the default one, as far as they can be tried without their engines."""

import json
import re
import shlex
import subprocess
import sys

import yaml
from export_settings import ENVIRONMENT

from tests.conftest import ROOT, Workflow
from tests.fault_server import FaultServer

KUBERNETES = ROOT / "profiles/kubernetes"


def image_command() -> str:
    """Return what a container runs."""
    (command,) = re.findall(r"^CMD (\[.*\])$", (KUBERNETES / "Dockerfile").read_text(), re.M)
    shell, option, script = json.loads(command)
    assert (shell, option) == ("sh", "-c")
    return str(script)


def test_what_a_pod_runs(workflow: Workflow, server: FaultServer) -> None:
    """The image's own command, with the folders of this machine for those of the image."""
    script = image_command().replace("/app/", f"{ROOT}/")
    script = script.replace("snakemake ", f"{shlex.quote(sys.executable)} -m snakemake ")
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=workflow.folder,
        env=workflow.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    workflow.assert_as_served("guns_1016205", "tablet4_0001")


def test_a_dry_run_with_each_profile(workflow: Workflow, server: FaultServer) -> None:
    workflow.run("--workflow-profile", str(KUBERNETES), "--dry-run")
    assert not server.requests


def test_the_image_is_made_of_what_is_there() -> None:
    text = (KUBERNETES / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for name in line.split()]
    assert {"Snakefile", "workflow", "profiles", "requirements.lock"} == set(copied)
    assert all((ROOT / name).exists() for name in copied)
    (expression,) = re.findall(r"sed -n '([^']*)'", text)
    part = subprocess.run(
        ["sed", "-n", expression, ROOT / "requirements.lock"], capture_output=True, text=True
    )
    assert "snakemake==" in part.stdout
    assert "moto==" not in part.stdout


def test_the_cron_job_sets_what_the_workflow_knows() -> None:
    job, claim = yaml.safe_load_all((KUBERNETES / "cronjob.yaml").read_text())
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {variable["name"] for variable in container["env"]} <= set(ENVIRONMENT.values())
    (volume,) = pod["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert container["volumeMounts"][0]["mountPath"] == "/data"
    assert job["metadata"]["namespace"] == claim["metadata"]["namespace"]
