#!/usr/bin/env bash
# Exports through a kubectl port-forward that lives as long as the run: see `--help`.
#
# This front only finds a Python; the program is below. It reaches Python on file descriptor 3, so
# that the run keeps the terminal and stdin, and the two-file install needs no third file.
set -eu

script=$(readlink -f -- "$0" 2>/dev/null || printf '%s' "$0")
folder=$(cd -- "$(dirname -- "$script")" && pwd)
repository=${folder%/workflow/scripts}

python=python3
if [ -f "$repository/Snakefile" ] && [ -x "$repository/.venv/bin/python" ]; then
    python=$repository/.venv/bin/python
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "Error: export_batches.sh needs Python 3.11 or newer as '$python': install it, or" \
        "activate an environment that has it." >&2
    exit 1
fi

exec "$python" -P -c 'exec(compile(open(3, "rb").read(), "export_batches.sh", "exec"))' \
    "$folder" "$@" 3<<'PYTHON'
"""Open a kubectl port-forward to the Auto Labeler backend, export through it, and close it.

In a clone of the workflow, arguments go to snakemake (with `--cores 4` unless they say how many).
Beside a copy of export_via_api.py alone, that runs instead.

Examples:
  workflow/scripts/export_batches.sh
  EXPORT_BATCH_KEY=guns_1016205 EXPORT_KUBE_CONTEXT=production workflow/scripts/export_batches.sh
  workflow/scripts/export_batches.sh --cores 8 --config status_filter=all

Settings are environment variables, beside the EXPORT_* variables of the exporter itself:

  EXPORT_KUBE_CONTEXT       kubectl context (default: the current one; it is never switched)
  EXPORT_KUBE_NAMESPACE     namespace of the backend (default dataset-curation)
  EXPORT_KUBE_SERVICE       its service (default auto-labeler-backend)
  EXPORT_KUBE_SERVICE_PORT  the service's port (default 8000)
  EXPORT_LOCAL_PORT         port of the tunnel on this machine (default: a free one)
  EXPORT_READY_TIMEOUT      seconds to wait for a working tunnel, at the start and whenever it is
                            lost (default 60)
  EXPORT_KUBECTL            the kubectl program (default kubectl)
  EXPORT_API_BASE           gives the root path, and credentials if it has any; its host and port
                            are the tunnel's
                            (default http://localhost:8081/dataset-curation/auto-labeler-labeler/api)
  EXPORT_BACKEND_ID         name of the backend, by which the workflow tells it from another
                            (default: made of context, namespace, service, port and root path)

Exit code: the run's; 1 the tunnel failed, 2 a bad setting, 128 + n ended by signal n.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

DEFAULT_API_BASE = "http://localhost:8081/dataset-curation/auto-labeler-labeler/api"

# All in seconds.
PROBE_INTERVAL = 3
FIRST_PAUSE = 0.2  # before kubectl is started again; doubled each time, up to MAX_PAUSE
MAX_PAUSE = 3.0
MIN_PATIENCE = 15  # before a tunnel that accepts connections but answers nothing is given up
GRACE = 8  # for the run to end when told to

MAX_REFUSALS = 3  # probes in a row that are refused or cut
BUSY_BYTES = 1 << 14  # a second: with so much coming in, a missing answer only has to queue

# Reads the process groups to watch, a line whenever they change. When the pipe ends, with this
# process, it kills them: so nothing survives a SIGKILL of the supervisor.
GUARDIAN = """
trap '' HUP INT QUIT TERM
while read -r line; do groups=$line; done
for group in $groups; do kill -KILL "-$group"; done
"""

# What kubectl (or a probe) says, and what to do about it; the first match counts.
ADVICE = {
    r"address already in use": "Another program holds that port of this machine: set "
    "EXPORT_LOCAL_PORT to a free one, or leave it unset.",
    r"unable to listen": "Set EXPORT_LOCAL_PORT to a port above 1023, or leave it unset.",
    r"current-context is not set": "Set EXPORT_KUBE_CONTEXT to one that '{kubectl} config "
    "get-contexts' lists, or log in to the cluster.",
    r"context .*does not exist": "Set EXPORT_KUBE_CONTEXT to one that '{kubectl} config "
    "get-contexts' lists.",
    r'namespaces? "[^"]*" not found': "Set EXPORT_KUBE_NAMESPACE to one that '{in_cluster} get "
    "namespaces' lists, or EXPORT_KUBE_CONTEXT to another cluster.",
    r'services? "[^"]*" not found': "Set EXPORT_KUBE_SERVICE to one that '{in_namespace} get "
    "services' lists, or check EXPORT_KUBE_NAMESPACE and EXPORT_KUBE_CONTEXT.",
    r"does not have a service port": "Set EXPORT_KUBE_SERVICE_PORT to one that '{in_namespace} "
    "get service {service}' lists.",
    r"forbidden": "Ask the cluster's administrator for the right to get services and pods and to "
    "create pods/portforward in the namespace {namespace}, or log in as someone who has it.",
    r"unauthorized|must be logged in|credentials|exec plugin": "Log in to the cluster again, until "
    "'{in_namespace} get pods' works, then run again.",
    r'pod is not running|timed out waiting|pods? "[^"]*" not found': "The backend's pod is not "
    "ready: '{in_namespace} get pods' shows its state. If it is only slow to start, raise "
    "EXPORT_READY_TIMEOUT.",
    r"lost connection|forwarding port|the backend|refuses": "'{in_namespace} logs service/"
    "{service}' shows what the backend does. Check EXPORT_KUBE_SERVICE_PORT; if it is only slow, "
    "raise EXPORT_READY_TIMEOUT.",
    r"": "Check the connection to the cluster (VPN?) until '{in_namespace} get pods' works, then "
    "run again.",
}
# Before the run, only these are worth another try; during it, all but a taken port are.
HEALING = r"pod is not running|timed out waiting|pods? \"|lost connection|the backend|refuses"


class TunnelError(Exception):
    """An expected failure, told in one line: what failed, why, and what to do."""


class SettingError(TunnelError):
    """A setting that cannot be used."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which backend to open a tunnel to, and how."""

    kubectl: str
    context: str  # empty: the current one
    namespace: str
    service: str
    service_port: int
    local_port: int  # 0: a free one
    ready_timeout: float  # seconds
    patience: int  # seconds without an answer, after which a tunnel in use is given up
    credentials: str = dataclasses.field(repr=False)  # `user:password@`, or empty
    root_path: str

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Read the variables that the help names; an empty one counts as not set.

        Raises:
            SettingError: a variable has a value that cannot be used.
        """

        def checked(variable: str, default: str, pattern: str, must: str, most: int = 0) -> str:
            value = environ.get(variable) or default
            if not re.fullmatch(pattern, value) or (most and not 0 <= float(value) <= most):
                raise SettingError(f"{variable} is {value!a}: it must be {must}.")
            return value

        def name(variable: str, default: str) -> str:
            pattern = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
            return checked(variable, default, pattern, f"a plain name, for example {default}")

        def port(variable: str, default: str) -> int:
            must = "a port number, for example 8000"
            return int(checked(variable, default, r"[0-9]{1,5}", must, 65535))

        def seconds(variable: str) -> float:
            must = "a number of seconds above 0, for example 60"
            pattern = r"(?=.*[1-9])[0-9]{1,9}(\.[0-9]*)?|(?=.*[1-9])\.[0-9]+"
            return float(checked(variable, "60", pattern, must))

        credentials, root_path = split_api_base(environ.get("EXPORT_API_BASE") or DEFAULT_API_BASE)
        return cls(
            kubectl=environ.get("EXPORT_KUBECTL") or "kubectl",
            context=environ.get("EXPORT_KUBE_CONTEXT") or "",
            namespace=name("EXPORT_KUBE_NAMESPACE", "dataset-curation"),
            service=name("EXPORT_KUBE_SERVICE", "auto-labeler-backend"),
            service_port=port("EXPORT_KUBE_SERVICE_PORT", "8000"),
            local_port=port("EXPORT_LOCAL_PORT", "0"),
            ready_timeout=seconds("EXPORT_READY_TIMEOUT"),
            # Less than the exporter waits: it tries again when cut, but not after its timeout.
            patience=max(MIN_PATIENCE, int(seconds("EXPORT_REQUEST_TIMEOUT") * 0.75)),
            credentials=credentials,
            root_path=root_path,
        )

    def with_context(self) -> Settings:
        """Return settings that name a context: kubectl's current one, whoever switches it later.

        Raises:
            TunnelError: there is no kubectl, or no current context.
        """
        if not shutil.which(self.kubectl):
            raise TunnelError(
                f"There is no program {self.kubectl!a}: install kubectl "
                "(https://kubernetes.io/docs/tasks/tools/), or set EXPORT_KUBECTL to its path."
            )
        if self.context:
            return self
        answer = subprocess.run(
            [self.kubectl, "config", "current-context"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if context := answer.stdout.strip():
            return dataclasses.replace(self, context=context)
        raise self.failure("There is no kubectl context", one_line(answer.stderr))

    @property
    def backend_id(self) -> str:
        """What names the backend, whatever local port leads to it."""
        return (
            f"kubectl:{self.context}/{self.namespace}/{self.service}:{self.service_port}"
            f"{self.root_path}"
        )

    @property
    def target(self) -> str:
        """Where the tunnel leads, for the user to see."""
        return (
            f"service {self.service}:{self.service_port}, namespace {self.namespace}, "
            f"context {self.context}"
        )

    def forward_command(self, local_port: int) -> list[str]:
        """Return the command that forwards a local port (0: a free one) to the service."""
        return [
            *(self.kubectl, "port-forward", "--context", self.context, "-n", self.namespace),
            # Without an address, a port taken on IPv4 leaves kubectl on [::1] alone, and the
            # exporter would talk to whoever holds the port.
            *("--address", "127.0.0.1"),
            f"--pod-running-timeout={max(1, int(self.ready_timeout * 0.75))}s",
            f"service/{self.service}",
            f"{local_port or ''}:{self.service_port}",
        ]

    def run_environment(self, environ: Mapping[str, str], port: int) -> dict[str, str]:
        """Return the environment of a run through the tunnel at a local port."""
        return {
            **environ,
            "EXPORT_API_BASE": f"http://{self.credentials}127.0.0.1:{port}{self.root_path}",
            "EXPORT_BACKEND_ID": environ.get("EXPORT_BACKEND_ID") or self.backend_id,
        }

    def failure(self, what: str, said: str) -> TunnelError:
        """Return the error for what kubectl (or a probe) said, with what to do about it."""
        advice = next(a for pattern, a in ADVICE.items() if re.search(pattern, said, re.IGNORECASE))
        in_cluster = [self.kubectl, *(["--context", self.context] if self.context else [])]
        advice = advice.format(
            kubectl=shlex.quote(self.kubectl),
            in_cluster=shlex.join(in_cluster),
            in_namespace=shlex.join([*in_cluster, "-n", self.namespace]),
            namespace=self.namespace,
            service=self.service,
        )
        return TunnelError(f"{what}: {said}. {advice}")


def split_api_base(url: str) -> tuple[str, str]:
    """Return a base URL's credentials (`user:password@`, or empty) and its path.

    Raises:
        SettingError: it is no http(s) URL. The URL is not shown: it may hold a password.
    """
    scheme, _, rest = url.strip().partition("://")
    authority, slash, path = rest.partition("/")
    userinfo, at, host = authority.rpartition("@")
    unusable = re.search(r"[\s\x00-\x1f]", rest) or re.search(r"[?#]", host + path)
    if scheme not in ("http", "https") or not host or unusable:
        raise SettingError(
            "EXPORT_API_BASE must be a whole URL that starts with http:// or https:// and ends "
            f"with the path, for example {DEFAULT_API_BASE}."
        )
    return f"{userinfo}{at}", f"{slash}{path}".rstrip("/")


def log(message: str) -> None:
    """Tell the user something, as one line; nobody may be listening any more."""
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def one_line(said: str) -> str:
    """Return what a program said as one line without control characters and full stop."""
    text = "".join(char for char in " ".join(said.split()) if char.isprintable())
    return text.rstrip(".") or "kubectl said nothing"


async def first(*events: asyncio.Future[Any], timeout: float | None = None) -> None:
    """Wait until one of some events is there, or for some seconds."""
    await asyncio.wait(events, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


class Guardian:
    """A shell that outlives this process just long enough to kill what it has started."""

    def __init__(self) -> None:
        """Start it, out of reach of a signal to this process's group."""
        self._groups: dict[str, int] = {}
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", GUARDIAN],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, **groups: int) -> None:
        """Name process groups to kill (0: none), beside those named before."""
        self._groups |= groups
        line = " ".join(str(group) for group in self._groups.values() if group)
        assert self._shell.stdin
        with contextlib.suppress(BrokenPipeError):
            os.write(self._shell.stdin.fileno(), f"{line}\n".encode())

    def end(self) -> None:
        """Let it kill what is left, and end."""
        self._shell.communicate()


def kill_group(group: int, number: int = signal.SIGKILL) -> bool:
    """Send a signal to a process group; return whether there still is one."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS has the latter for zombies
        return False
    return True


class Kubectl:
    """One `kubectl port-forward`, with its pipes drained: a full one would stop the forward."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        """Follow a process that leads its own process group."""
        self._process = process
        self._lines: deque[str] = deque(maxlen=2)
        self.pid = process.pid
        self.port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.create_task(self._follow())

    @classmethod
    async def start(cls, command: Sequence[str]) -> Kubectl:
        """Start it, out of reach of the terminal's Ctrl-C: the run ends first."""
        return cls(
            await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                limit=1 << 20,  # bytes a line
            )
        )

    async def _follow(self) -> None:
        assert self._process.stdout and self._process.stderr
        await asyncio.gather(
            self._drain(self._process.stdout),
            self._drain(self._process.stderr, keep=True),
        )
        await self._process.wait()

    async def _drain(self, pipe: asyncio.StreamReader, keep: bool = False) -> None:
        async for line in pipe:
            text = line.decode("utf-8", "replace").strip()
            address = re.match(r"Forwarding from 127\.0\.0\.1:(\d+) -> ", text)
            if address and not self.port.done():
                self.port.set_result(int(address[1]))
            elif keep and text:
                self._lines.append(text)

    @property
    def said(self) -> str:
        """Its last words, as one line."""
        # Errors on the way are logged like `E0102 03:04:05.6 78 file.go:9] "Message" err="why" ...`
        lines = [
            re.sub(r'^[EWI]\d{4} [^]]*\] |" (localPort|remotePort)=.*', "", line)
            for line in self._lines
        ]
        generic = lines and re.match("error: (lost connection|unable to listen)", lines[-1])
        return one_line("; ".join(lines if generic else lines[-1:]))

    def received(self) -> int:
        """Return how many bytes it has read so far, where that can be told (Linux)."""
        try:
            counters = Path(f"/proc/{self.pid}/io").read_text()
        except OSError:
            return 0
        return int(counters.split()[1])  # rchar

    async def stop(self) -> None:
        """End it and whatever it started; it has nothing to lose by a kill."""
        kill_group(self.pid)
        await self.ended


class Tunnel:
    """Keeps a kubectl forwarding to the backend, always on the same local port."""

    def __init__(self, settings: Settings, guardian: Guardian) -> None:
        """Prepare; `keep` does the work."""
        self._settings = settings
        self._guardian = guardian
        self._route = "/health"
        self._problem = "kubectl opened no forward"
        self._pause = FIRST_PAUSE
        self._limit: asyncio.Timeout  # set to go off while there is no working tunnel
        self.port = settings.local_port
        self.run: Run | None = None  # what to hold while there is no tunnel
        self.ready = asyncio.Event()  # set for good by the first answer

    async def keep(self) -> NoReturn:
        """Open the tunnel and keep it open, until cancelled.

        Raises:
            TunnelError: it cannot be opened, or not again.
        """
        timeout = self._settings.ready_timeout
        try:
            async with asyncio.timeout(timeout) as self._limit:
                while True:
                    await self._forward()
                    await asyncio.sleep(self._pause)
                    self._pause = min(2 * self._pause, MAX_PAUSE)
        except TimeoutError:
            what = f"No working tunnel within {timeout:g} s"
            raise self._settings.failure(what, self._problem) from None

    async def _forward(self) -> None:
        """Run one kubectl, for as long as its forward works."""
        kubectl = await Kubectl.start(self._settings.forward_command(self.port))
        self._guardian.watch(kubectl=kubectl.pid)
        try:
            await first(kubectl.port, kubectl.ended)
            if kubectl.port.done():
                self.port = kubectl.port.result()
                self._problem = "the backend does not answer"
                await self._probe(kubectl)
            if kubectl.ended.done():
                self._problem = kubectl.said
        finally:
            await kubectl.stop()
            self._guardian.watch(kubectl=0)
        taken = "address already in use" in self._problem  # let nobody talk to that stranger
        if taken or not (self.ready.is_set() or re.search(HEALING, self._problem)):
            raise self._settings.failure("The tunnel cannot be opened", self._problem)
        if self._limit.when() is None:
            log(f"Tunnel lost ({self._problem}): the run waits until it is back.")
            if self.run:
                self.run.pause()
            loop = asyncio.get_running_loop()
            self._limit.reschedule(loop.time() + self._settings.ready_timeout)
        elif not self.ready.is_set() and self._pause == FIRST_PAUSE:
            log(f"No tunnel yet ({self._problem}); trying again.")

    async def _probe(self, kubectl: Kubectl) -> None:
        """Ask the backend through a kubectl again and again, until something is wrong with it."""
        refusals = 0
        while refusals < MAX_REFUSALS and not kubectl.ended.done():
            pause = 1
            try:
                status = await self._ask(kubectl)
            except TimeoutError:
                self._problem = "the backend does not answer"
                return
            except OSError as error:
                refusals += 1
                self._problem = f"the backend refuses connections: {error}"
            else:
                refusals = 0
                if status in (502, 503, 504) and not self.ready.is_set():
                    self._problem = f"the backend answers {status}"
                else:
                    self._works()
                    pause = PROBE_INTERVAL
            await first(kubectl.ended, timeout=pause)

    def _works(self) -> None:
        if self._limit.when() is None:
            return
        self._limit.reschedule(None)
        self._pause = FIRST_PAUSE
        if self.ready.is_set():
            log("Tunnel is back.")
        else:
            log(f"Tunnel on 127.0.0.1:{self.port} to {self._settings.target}.")
        self.ready.set()
        if self.run:
            self.run.go_on()

    async def _ask(self, kubectl: Kubectl) -> int:
        """Return the status that the backend answers with.

        Raises:
            TimeoutError: no answer for so long, and so little else coming in, that the forward
                must be dead; a backend that is only busy gets as much time as the run gives it.
            OSError: the connection was refused or cut.
        """
        patience = self._settings.patience if self.ready.is_set() else MIN_PATIENCE
        waited = 0
        answer = asyncio.create_task(self._get())
        try:
            # By the second: time for which this process is stopped (Ctrl-Z) is not waited for.
            while waited < patience and not (answer.done() or kubectl.ended.done()):
                received = kubectl.received()
                await first(answer, kubectl.ended, timeout=1)
                waited = 0 if kubectl.received() - received > BUSY_BYTES else waited + 1
            if answer.done():
                return answer.result()
        except OSError:
            if waited < MIN_PATIENCE:
                raise
            # kubectl cuts a connection when its peer has not opened a stream for it in 30 s.
        finally:
            answer.cancel()
        if kubectl.ended.done():
            raise ConnectionError("kubectl ended")
        raise TimeoutError

    async def _get(self) -> int:
        route = quote(self._settings.root_path + self._route, safe="/%:@!$&'()*+,;=~")
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(
                f"GET {route} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
                "Accept: application/json\r\nConnection: close\r\n\r\n".encode()
            )
            try:
                head = await reader.readexactly(len("HTTP/1.1 200"))
            except asyncio.IncompleteReadError as error:
                head = error.partial
            # To its end: connections closed before that are what kubectl may break on.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    while await reader.read(1 << 16):
                        pass
        finally:
            writer.close()
        answer = re.match(rb"HTTP/1\.[01] (\d{3})", head)
        if not answer:
            raise ConnectionError("no HTTP answer" if head else "closed without an answer")
        status = int(answer[1])
        if status == 404 and self._route == "/health":
            self._route = "/batches"
            return await self._get()
        return status


class Run:
    """The export: a process group, and the terminal's foreground where there is a terminal."""

    def __init__(self, command: list[str], environ: Mapping[str, str], guardian: Guardian) -> None:
        """Start it."""
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = loop.create_future()  # its exit code
        loop.add_signal_handler(signal.SIGCHLD, self._look)
        # Python ignores these two, and children would inherit that.
        defaults = [signal.SIGPIPE, signal.SIGXFSZ]
        self._group = os.posix_spawn(command[0], command, environ, setpgroup=0, setsigdef=defaults)
        self._guardian = guardian
        guardian.watch(run=self._group)
        # Only a whole terminal: `... | less` needs the foreground for itself.
        self._has_terminal = os.isatty(0) and os.isatty(1)
        self._hand_terminal(os.getpgrp(), self._group)

    def pause(self) -> None:
        """Stop it, and listen to the terminal's Ctrl-C in its place.

        The exporter's own tries last some seconds; while it is stopped it uses up none.
        """
        kill_group(self._group, signal.SIGSTOP)
        self._hand_terminal(self._group, os.getpgrp())

    def go_on(self) -> None:
        """Let it go on after a pause."""
        self._hand_terminal(os.getpgrp(), self._group)
        kill_group(self._group, signal.SIGCONT)

    def _look(self) -> None:
        """See whether the run has ended, or was stopped."""
        if self.ended.done():
            return
        pid, status = os.waitpid(self._group, os.WNOHANG | os.WUNTRACED)
        if pid and not os.WIFSTOPPED(status):
            self._hand_terminal(self._group, os.getpgrp())
            code = os.waitstatus_to_exitcode(status)
            self.ended.set_result(code if code >= 0 else 128 - code)
        elif pid and os.WSTOPSIG(status) != signal.SIGSTOP and self._has_terminal:
            # Ctrl-Z: stop along, so that the shell gets the terminal, until it says fg or bg.
            self.pause()
            os.kill(0, signal.SIGTSTP)
            self.go_on()

    def _hand_terminal(self, giver: int, taker: int) -> None:
        """Make another process group the terminal's foreground, if the giver is that now."""
        if not self._has_terminal:
            return
        # From the background, this signal would stop the caller.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        with contextlib.suppress(OSError):  # hung up, or not the controlling terminal
            if os.tcgetpgrp(0) == giver:
                os.tcsetpgrp(0, taker)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTTOU})

    async def end(self, again: asyncio.Future[int]) -> None:
        """Tell the run to end as Ctrl-C does (it then removes half-written files); then kill it.

        Args:
            again: Done when the user asks a second time: no more waiting then.
        """
        for _ in range(2):  # Snakemake may miss one, in which case it starts the next jobs
            kill_group(self._group, signal.SIGINT)
            kill_group(self._group, signal.SIGCONT)
            await first(self.ended, again, timeout=GRACE / 2)
            if self.ended.done():
                return
        kill_group(self._group)
        await self.ended

    async def clear(self) -> None:
        """Give what the ended run has left behind a moment to tidy up; then kill it."""
        for _ in range(100):
            if not kill_group(self._group, 0):
                break
            await asyncio.sleep(0.02)
        kill_group(self._group)
        self._guardian.watch(run=0)


async def supervise(settings: Settings, command: list[str], guardian: Guardian) -> int:
    """Open the tunnel, run a command through it, close it; return the exit code."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[int] = loop.create_future()
    told_again: asyncio.Future[int] = loop.create_future()

    def tell(number: int) -> None:
        told_now = told_again if told.done() else told
        if not told_now.done():
            told_now.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # nohup ignores SIGHUP, and means it.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, tell, number)

    tunnel = Tunnel(settings, guardian)
    keeping = asyncio.create_task(tunnel.keep())
    ready = asyncio.create_task(tunnel.ready.wait())
    code = 1
    try:
        await first(ready, keeping, told)
        run = None
        if ready.done() and not told.done():
            tunnel.run = run = Run(
                command, settings.run_environment(os.environ, tunnel.port), guardian
            )
            await first(run.ended, keeping, told)
        if keeping.done() and (error := keeping.exception()):
            if not isinstance(error, TunnelError):
                raise error
            log(f"Error: {error}")
        if run and not run.ended.done():
            await run.end(told_again)
        elif run:
            code = run.ended.result()
        if run:
            await run.clear()
    finally:
        keeping.cancel()
        ready.cancel()
        await asyncio.wait({keeping, ready})
    return 128 + told.result() if told.done() else code


def run_command(folder: Path, arguments: Sequence[str]) -> list[str]:
    """Return the command to run: snakemake in a clone of the workflow, else the exporter.

    Raises:
        TunnelError: what the command needs is missing.
        SettingError: an argument would go against the tunnel.
    """
    snakefile = folder.parent.parent / "Snakefile"
    if folder.parts[-2:] != ("workflow", "scripts") or not snakefile.is_file():
        exporter = folder / "export_via_api.py"
        if not exporter.is_file():
            raise TunnelError(f"There is neither a workflow around {folder}, nor {exporter.name}.")
        if not importlib.util.find_spec("requests"):
            raise TunnelError(
                f"{sys.executable} lacks `requests`: run '{sys.executable} -m pip install "
                "requests', or activate an environment that has it."
            )
        return [sys.executable, str(exporter), *arguments]
    if any(argument.startswith("api_base=") for argument in arguments):
        raise SettingError(
            "--config api_base would lead the run past the tunnel: leave it out, and give the "
            "root path in EXPORT_API_BASE."
        )
    command = [sys.executable, "-m", "snakemake"]
    if not importlib.util.find_spec("snakemake"):
        program = shutil.which("snakemake")
        if not program:
            raise TunnelError(
                f"{sys.executable} lacks Snakemake: install the workflow's environment as the "
                "README says, or activate it."
            )
        command = [program]
    if snakefile.parent != Path.cwd() and not _given(arguments, "--snakefile", "-s"):
        command += ["--snakefile", str(snakefile)]
    if not _given(arguments, "--cores", "-c", "--jobs", "-j"):
        command += ["--cores", "4"]
    return [*command, *arguments]


def _given(arguments: Sequence[str], *options: str) -> bool:
    """Tell whether one of some options is among arguments (`--long`, `--long=1`, `-s1`, `-s 1`)."""
    return any(
        argument == option or argument.startswith(f"{option}=" if option[1] == "-" else option)
        for argument in arguments
        for option in options
    )


def main(folder: Path, arguments: Sequence[str]) -> int:
    """Run what the arguments and the environment ask for; return the exit code."""
    if not {"-h", "--help"}.isdisjoint(arguments):
        print((__doc__ or "").strip())
        return 0
    try:
        settings = Settings.from_environment(os.environ)
        command = run_command(folder, arguments)
        settings = settings.with_context()
        guardian = Guardian()
        try:
            return asyncio.run(supervise(settings, command, guardian))
        finally:
            guardian.end()
    except TunnelError as error:
        log(f"Error: {error}")
        return 2 if isinstance(error, SettingError) else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
PYTHON
