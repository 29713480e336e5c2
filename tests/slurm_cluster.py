"""A Slurm of one node, from Debian's packages `slurm-wlm` and `munge`, for the time of a test.

    with SlurmCluster(folder) as cluster:
        subprocess.run(["sbatch", ...], env=cluster.environ)

It has its own key and ports. Its configuration is linked to where Slurm looks for one, since jobs
lose the variable that names another: where there is a Slurm already, the tests are skipped.
"""

import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
SEARCHED = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
LINK = Path("/etc/slurm/slurm.conf")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def missing() -> str:
    """Return why there can be no such cluster; empty when there can."""
    if os.geteuid() != 0:
        return "the daemons of Slurm need root"
    lacking = [name for name in PROGRAMS if not shutil.which(name, path=SEARCHED)]
    if LINK.exists():
        return f"this machine has a Slurm of its own ({LINK})"
    if lacking:
        return f"not installed (Debian: slurm-wlm, munge): {', '.join(lacking)}"
    return ""


class SlurmCluster:
    """The daemons; `environ` is what a client of theirs needs, `logs` what they said."""

    def __init__(self, folder: Path, cpus: int = 4) -> None:
        self.folder = folder
        self.environ = {**os.environ, "PATH": SEARCHED}
        self._daemons: list[subprocess.Popen[bytes]] = []
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        folder.chmod(0o755)  # munged refuses others
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=socket.gethostname().partition(".")[0],
                folder=folder,
                controller_port=free_port(),
                node_port=free_port(),
                cpus=cpus,
            )
        )

    def __enter__(self) -> Self:
        LINK.parent.mkdir(exist_ok=True)
        LINK.unlink(missing_ok=True)  # a killed test's
        LINK.symlink_to(self.folder / "slurm.conf")
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        places = {"socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        options = [f"--{name}={self.folder / file}" for name, file in places.items()]
        self._start("munged", "--foreground", "--force", f"--key-file={key}", *options)
        wait_for(lambda: (self.folder / "munge.socket").exists(), "munged", self)
        self._start("slurmctld", "-D", "-c")
        self._start("slurmd", "-D")
        wait_for(self._is_idle, "an idle node", self)
        return self

    def __exit__(self, *_: object) -> None:
        LINK.unlink(missing_ok=True)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def logs(self) -> str:
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{file.name}:\n{file.read_text()[-3000:]}" for file in files)

    def _start(self, name: str, *arguments: str) -> None:
        program = shutil.which(name, path=SEARCHED)
        assert program
        with (self.folder / f"{name}.out.log").open("wb") as output:
            self._daemons.append(
                subprocess.Popen(
                    [program, *arguments], env=self.environ, stdout=output, stderr=output
                )
            )

    def _is_idle(self) -> bool:
        command = ["sinfo", "--noheader", "--format=%T"]
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True)
        return done.stdout.strip() == "idle"


def wait_for(condition: object, what: str, cluster: SlurmCluster) -> None:
    """Wait until a condition holds; fail with the daemons' logs."""
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"no {what}:\n{cluster.logs()}"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
