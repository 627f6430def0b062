"""How are the servers under test started, kept from disturbing each other, and measured?"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.serving.load_client import Exchange, on_loop, run_clients

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent


class ServerProcess:
    """A server in a process group of its own.

    Attributes:
        protocol: which of `exchanges` it speaks.
    """

    def __init__(self, command: list[str], port: int, protocol: str, log: Path) -> None:
        self.port, self.protocol, self.log = port, protocol, log
        variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=variables, preexec_fn=os.setpgrp
            )

    def wait_until_ready(self, exchange: Exchange, seconds: float = 60.0) -> None:
        """Ask until an answer is right.

        Raises:
            RuntimeError: the server ended, or was not ready in time.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            outcome = on_loop(run_clients("127.0.0.1", self.port, [[exchange]], seconds=5, most=1))
            if outcome.answered and not outcome.wrong:
                return
            time.sleep(0.3)
        raise RuntimeError(f"not ready: {self.log.read_text(errors='replace')[-2000:]}")

    def signal(self, number: int) -> None:
        """Send a signal to all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Let it run inside the context only, so that its idle work disturbs nobody else's."""
        self.signal(signal.SIGCONT)
        time.sleep(0.2)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def resident_bytes(self) -> int:
        """Memory in use by its first process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        """Processor time of all its processes so far."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has just ended
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[2]) == self.process.pid:  # its process group
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """Stop all its processes."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.signal(signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_ours(
    model: Path, log: Path, *options: str, grpc_port: int | None = None, name: str = "model"
) -> ServerProcess:
    """`l0runtime serve`, with one thread inside operators; without gRPC unless a port is given."""
    port = free_port()
    command = [sys.executable, "-m", "l0runtime", "serve", f"{name}={model}", "--device", "cpu", "--threads", "1"]
    command += ["--port", str(port), *(["--no-grpc"] if grpc_port is None else ["--grpc-port", str(grpc_port)])]
    return ServerProcess([*command, *options], port, "json", log)


def start_peer(environment: Path, script: str, model: Path, protocol: str, log: Path, *options: str) -> ServerProcess:
    """A peer's script in its own environment."""
    port = free_port()
    command = [str(environment / "bin" / "python"), str(HERE / script), str(model), str(port), *options]
    return ServerProcess(command, port, protocol, log)
