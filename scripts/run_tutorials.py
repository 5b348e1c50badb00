"""Run the tutorials: each as a plain script, and as a notebook made from it with jupytext."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 300


def run_script(tutorial: Path, folder: Path) -> None:
    """Run a tutorial with this interpreter, in another folder."""
    subprocess.run([sys.executable, str(tutorial)], cwd=folder, check=True, timeout=LIMIT, stdout=subprocess.DEVNULL)


def run_notebook(tutorial: Path, folder: Path) -> None:
    """Run a tutorial as a notebook, in another folder; its asserts are the test."""
    import jupytext
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient

    notebook = jupytext.read(tutorial)
    # The interpreter that runs this, whatever kernels are installed for the user.
    manager = KernelManager(kernel_name="python3")
    manager.kernel_spec.argv[0] = sys.executable
    client = NotebookClient(notebook, km=manager, timeout=LIMIT, resources={"metadata": {"path": str(folder)}})
    client.execute()


def main() -> None:
    """Run the tutorials named on the command line, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Example: python scripts/run_tutorials.py tutorials/01_first_attribution.py"
    )
    parser.add_argument("tutorials", nargs="*", type=Path, help="default: all in tutorials/")
    parser.add_argument("--only", choices=("script", "notebook"), help="run them one way only")
    given = parser.parse_args()
    ways = {"script": run_script, "notebook": run_notebook}
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for tutorial in given.tutorials or sorted(ROOT.glob("tutorials/*.py")):
        for way in [given.only] if given.only else ways:
            start = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                ways[way](tutorial.resolve(), Path(folder))
            print(f"{tutorial.name} as a {way}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
