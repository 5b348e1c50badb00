"""``whence serve-model``: one model for other processes and machines, by NDIF's protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from whence.cli.errors import readable_errors
from whence.core.extras import require

EXAMPLES = """Examples:

whence serve-model ./my-model --port 8077

whence attribute "Once upon a time" --model ./my-model --remote http://127.0.0.1:8077

whence serve-model ./my-model --host 0.0.0.0 --keys keys.json --timeout 120"""


def serve_model(
    path: Annotated[str, typer.Argument(help="Folder or hub id of a checkpoint, or a bundled model.")],
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8077,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any but this machine's own needs --keys.")
    ] = "127.0.0.1",
    keys: Annotated[
        Path | None, typer.Option(help='JSON file of keys: {"KEY": {"email": "someone@example.org", "tags": []}}.')
    ] = None,
    name: Annotated[str | None, typer.Option(help="What clients call the model; the path unless given.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16, auto.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0.")] = None,
    attention: Annotated[str | None, typer.Option(help="Attention implementation, such as eager or sdpa.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that a job may run.")] = 600.0,
    request_mb: Annotated[float, typer.Option(help="Largest request, in MiB.")] = 64.0,
    result_mb: Annotated[float, typer.Option(help="Largest result, in MiB.")] = 1024.0,
    queue: Annotated[int, typer.Option(help="Jobs that may wait.")] = 16,
) -> None:
    """Serve a model to whence and nnsight on other machines. Runs the Python code that clients send.

    It speaks NDIF's protocol, for one model, one job at a time. Whoever may send a job may do all that this
    process may do; there is no sandbox. So it listens on this machine alone, unless there are keys.
    """
    with readable_errors():
        for library in ("starlette", "uvicorn", "websockets", "python_multipart"):
            require(library, "server")
        from whence.models.checkpoints import locate
        from whence.serving.app import serve
        from whence.serving.settings import Settings, read_keys

        limits: dict[str, Any] = {"timeout": timeout, "request_mb": request_mb, "result_mb": result_mb, "queue": queue}
        try:
            settings = Settings(
                locate(path),
                name=name or path,
                host=host,
                port=port,
                keys=None if keys is None else read_keys(keys),
                dtype=dtype,
                device=device,
                attention=attention,
                **limits,
            )
            serve(settings)
        except (ValueError, OSError) as error:
            raise typer.BadParameter(str(error)) from error
