"""A process that reads hostile files, with limits, and the one that watches it; on Linux."""

import faulthandler
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz import canary
from tests.fuzz.kind import Kind, all_kinds


@dataclass(frozen=True)
class Limits:
    """Of a case.

    Attributes:
        cpu_s: When a process that computes is stopped.
        wait_s: When one that waits for something is stopped.
        memory_mb: Resident memory that it may add.
    """

    cpu_s: float = 10.0
    wait_s: float = 15.0
    memory_mb: float = 2048.0


ADDRESS_SPACE_MB = 6144
"""Address space that a process may have on top: larger requests fail, as on a small machine."""

FORBIDDEN = frozenset(
    {
        *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.kill"),
        *("subprocess.Popen", "pty.spawn", "socket.connect", "socket.getaddrinfo"),
    }
)
CHANGES = frozenset(
    {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
)


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        verdict: "accepted", "refused" (with a clean error), or "unclean".
        signature: What kind of fault, and where; for an error, its type.
        detail: The message, or the traceback.
    """

    verdict: str
    signature: str = ""
    detail: str = ""


def run_case(kind: Kind, folder: Path, watch: "Watch") -> Outcome:
    """Read one changed sample in this process."""
    watch.begin()
    try:
        kind.use(folder)
        outcome = Outcome("accepted")
    except kind.clean as error:
        outcome = Outcome("refused", type(error).__name__, str(error))
    except BaseException as error:  # what the fuzzer is here for
        outcome = Outcome("unclean", signature_of(error), traceback.format_exc()[-6000:])
    return watch.end() or outcome


def signature_of(error: BaseException) -> str:
    """Return the type of an error, and the last place in the library that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/triptych/" in f.filename and "/tests/" not in f.filename]
    where = f"{Path(ours[-1].filename).stem}.{ours[-1].name}" if ours else "outside the library"
    return f"{type(error).__name__} in {where}"


class Watch:
    """Sees what a case does to the machine: memory, code that runs, files elsewhere."""

    def __init__(self, scratch: Path, memory_mb: float) -> None:
        self.scratch, self.memory_mb = os.path.realpath(scratch), memory_mb
        self.seen: list[str] = []
        self.on = False
        self.before_mb = 0.0
        sys.addaudithook(self._hook)

    def begin(self) -> None:
        """Start to watch."""
        canary.calls.clear()
        self.seen.clear()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is held now
        self.before_mb = _status_mb("VmHWM")
        self.on = True

    def end(self) -> Outcome | None:
        """Return the fault that was seen, if any."""
        self.on = False
        if canary.calls or self.seen:
            seen = [*(f"ran {call}" for call in canary.calls), *self.seen]
            return Outcome("unclean", f"code or files: {seen[0][:80]}", "\n".join(seen))
        more = _status_mb("VmHWM") - self.before_mb
        if more > self.memory_mb:
            return Outcome("unclean", "memory", f"{more:.0f} MB more than before the case")
        return None

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        if not self.on:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event} {args!r}")
            raise PermissionError(f"the fuzzer forbids {event}")
        if event == "open":
            path, _, flags = args
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and isinstance(path, str | bytes | os.PathLike):
                self._check_place(event, path)
        elif event in CHANGES:
            self._check_place(event, args[0])

    def _check_place(self, event: str, path: object) -> None:
        place = os.path.realpath(os.fsdecode(path))  # type: ignore[arg-type]
        if event == "os.mkdir" and Path(place).name.startswith("torchinductor_"):
            return  # torch makes its cache folder once, whatever is read
        if not place.startswith(self.scratch) and not place.startswith("/dev/"):
            self.seen.append(f"{event} {place}")
            raise PermissionError(f"the fuzzer forbids {event} outside its folder")


def _status_mb(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(name)


def serve(
    pipe: Connection, scratch: Path, memory_mb: float, list_kinds: Callable[[], dict[str, Kind]]
) -> None:
    """Read cases until the pipe closes: (kind, folder) in, Outcome out."""
    os.environ["TRIPTYCH_CACHE"] = str(scratch / "cache")
    tempfile.tempdir = str(scratch)
    sys.dont_write_bytecode = True
    kinds = list_kinds()
    stacks = (scratch / "stacks").open("w")
    faulthandler.register(signal.SIGUSR1, file=stacks)
    faulthandler.enable(file=stacks)
    limit = int((_status_mb("VmSize") + ADDRESS_SPACE_MB) * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch = Watch(scratch, memory_mb)
    pipe.send("ready")
    while True:
        try:
            name, folder = pipe.recv()
        except EOFError:
            return
        pipe.send(run_case(kinds[name], folder, watch))


class Worker:
    """A process that reads cases one after the other; a new one takes the place of a dead one."""

    def __init__(
        self,
        scratch: Path,
        limits: Limits | None = None,
        list_kinds: Callable[[], dict[str, Kind]] = all_kinds,
    ) -> None:
        self.scratch, self.limits, self._list_kinds = scratch, limits or Limits(), list_kinds
        self._process: multiprocessing.process.BaseProcess | None = None
        self._started_s = self._runnable_s = self._cpu_s = 0.0

    def start(self, kind: str, folder: Path) -> None:
        """Give it a case."""
        if self._process is None or not self._process.is_alive():
            self._launch()
        self.pipe.send((kind, folder))
        self._started_s = self._runnable_s = time.monotonic()
        self._cpu_s = self._used_s()

    def poll(self, timeout_s: float = 0.2) -> Outcome | None:
        """Return what became of the case; None if it is not done."""
        if self.pipe.poll(timeout_s):
            try:
                outcome: Outcome = self.pipe.recv()
                return outcome
            except (EOFError, ConnectionError):
                self._process.join()
                code = self._process.exitcode
                return Outcome("unclean", f"died: {code}", self._stacks())
        used, now = self._used_s() - self._cpu_s, time.monotonic()
        if self._state() in "RD":  # it would go on, if the machine were less busy
            self._runnable_s = now
        if used < self.limits.cpu_s and now - self._runnable_s < self.limits.wait_s:
            return None
        waited = now - self._started_s
        os.kill(self._process.pid, signal.SIGUSR1)
        time.sleep(0.3)
        self.close()
        stacks = self._stacks()
        where = next((line.strip() for line in stacks.splitlines() if "/triptych/" in line), "")
        place = where.rpartition("/")[2].replace('"', "")
        return Outcome(
            "unclean", f"hangs in {place}", f"{used:.0f} s of CPU, {waited:.0f} s\n{stacks}"
        )

    def run(self, kind: str, folder: Path) -> Outcome:
        """Read one case and wait for it."""
        self.start(kind, folder)
        while True:
            outcome = self.poll()
            if outcome is not None:
                return outcome

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self.pipe.close()
            self._process = None

    def _launch(self) -> None:
        self.close()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.fuzz.preload"])
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.pipe, theirs = context.Pipe()
        asked = (theirs, self.scratch, self.limits.memory_mb, self._list_kinds)
        self._process = context.Process(target=serve, args=asked, daemon=True)
        self._process.start()
        theirs.close()
        self.pipe.recv()  # the imports are no part of the first case

    def _stat(self) -> list[str]:
        try:
            return Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has died, which the pipe tells
            return []

    def _state(self) -> str:
        return next(iter(self._stat()), "R")

    def _used_s(self) -> float:
        stat = self._stat()
        ticks = int(stat[11]) + int(stat[12]) if stat else 0
        return ticks / os.sysconf("SC_CLK_TCK")

    def _stacks(self) -> str:
        try:
            return (self.scratch / "stacks").read_text()[-4000:]
        except OSError:
            return ""
