"""The server as a process of its own, in an environment where whence is not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import whence.serving

_READY = "Serving "
_START = 120.0
# Where whence is a wheel among the other packages, the path alone does not hide it.
_HIDE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("whence", "jaxtyping"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


class ServerProcess:
    """A running server.

    Attributes:
        url: Its address.
        process: The process.
        lines: What it has printed.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self.url = ""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if line.startswith(_READY):
                self.url = line.split()[-1]
                self._ready.set()
        self._ready.set()

    def wait(self) -> None:
        """Until it can be asked."""
        self._ready.wait(_START)
        assert self.url, "the server did not start:\n" + "\n".join(self.lines)

    def stop(self) -> int:
        """End it, and see that it is gone."""
        self.process.terminate()
        try:
            return self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Close what is left of a process that has ended."""
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()


def bare_environment(folder: Path) -> Path:
    """An interpreter with the packages of this environment, except whence: an editable install is not on its path."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        site = next((folder / "lib").glob("python*/site-packages"))
        (site / "borrowed.pth").write_text("\n".join({sysconfig.get_path(k) for k in ("purelib", "platlib")}) + "\n")
        (site / "sitecustomize.py").write_text(_HIDE)
        package = folder / "package"
        shutil.copytree(Path(whence.serving.__file__).parent, package / "serving")
    return python


def start(environment: Path, folder: Path | str, *options: str) -> ServerProcess:
    """Start a server and do not wait for it."""
    python = bare_environment(environment)
    process = subprocess.Popen(
        [str(python), "-m", "serving", str(folder), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=environment / "package",
        env={
            **{k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "NDIF_API_KEY")},
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(environment / "package"),
            "PYTHONUNBUFFERED": "1",
        },
    )
    return ServerProcess(process)


@contextmanager
def serve(environment: Path, folder: Path | str, *options: str) -> Iterator[ServerProcess]:
    """A server for the ``with`` block.

    Args:
        environment: Where its interpreter is made, if it is not there yet.
        folder: The checkpoint.
        *options: Options of the server.
    """
    server = start(environment, folder, *options)
    try:
        server.wait()
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()
        server.close()


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process ends in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False
