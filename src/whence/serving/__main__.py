"""The server as a program of its own: ``python -m serving PATH --port 8077``."""

from __future__ import annotations

import argparse
import os
import sys

from .app import serve
from .settings import Settings, read_keys


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(prog="serving", description="Serve a model. Runs the code that clients send.")
    parser.add_argument("path", help="folder or hub id of the checkpoint")
    parser.add_argument("--name", help="what clients call it (default: the path)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8077, help="0 takes a free one")
    parser.add_argument("--keys", help='JSON file {"KEY": {"email": ..., "tags": []}}')
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    parser.add_argument("--attention")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that a job may run")
    parser.add_argument("--request-mb", type=float, default=64.0)
    parser.add_argument("--result-mb", type=float, default=1024.0)
    parser.add_argument("--queue", type=int, default=16, help="jobs that may wait")
    given = vars(parser.parse_args())
    try:
        given["keys"] = None if given["keys"] is None else read_keys(given["keys"])
        serve(Settings(given.pop("path"), **given))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    # Threads of jobs that were interrupted may still be in a long call; nobody waits for them.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
