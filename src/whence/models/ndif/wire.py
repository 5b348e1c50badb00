"""The connection to a server that speaks NDIF's protocol: one job at a time there and back, within a deadline.

nnsight's own client waits for ever on a server that is frozen, and lets errors of five libraries through. This
one speaks the same protocol with nnsight's own messages, gives up at its deadline, and raises one kind of error.
"""

from __future__ import annotations

import json
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from whence.core.errors import RemoteError
from whence.models.ndif.results import read_plain
from whence.models.traffic import Traffic

DEFAULT_TIMEOUT = 600.0
_CONNECT = 10.0
_TICK = 0.2
_PLAIN_CALL = 60.0


class Connection:
    """A server, as seen by one client.

    Args:
        url: Such as ``"https://api.ndif.us"``.
        api_key: The key, or an empty text.
        timeout: Seconds that a job may take, from sending to the last byte of its result.

    Raises:
        RemoteError: The URL has another scheme than http or https.
    """

    def __init__(self, url: str, api_key: str = "", timeout: float = DEFAULT_TIMEOUT) -> None:
        if not url.startswith(("http://", "https://")):
            raise RemoteError(f"remote={url!r}: a server's address begins with http:// or https://.")
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.traffic = Traffic()
        self._headers = {"ndif-api-key": api_key} if api_key else {}

    def get(self, path: str, key: str | None = None) -> Any:
        """What the server answers to a plain question, such as ``"/status"``.

        Args:
            path: The path.
            key: Ask with another key than the client's.

        Returns:
            The JSON it answers with.

        Raises:
            RemoteError: It does not answer, or refuses the key.
        """
        import httpx

        with self._failures(), httpx.Client(timeout=httpx.Timeout(_PLAIN_CALL, connect=_CONNECT)) as client:
            headers = self._headers if key is None else {"ndif-api-key": key}
            answer = client.get(f"{self.url}{path}", headers=headers)
            self._refuse(answer)
            return answer.json()

    def submit(self, model_key: str, blob: bytes, env: Mapping[str, Any], note: Callable[[str, str], None]) -> Any:
        """Send a job and wait for what it saved.

        Args:
            model_key: The model, as nnsight names it.
            blob: The job, as nnsight serialises and compresses it.
            env: Settings that the server applies to the model before the job.
            note: Told the status and its description whenever they change.

        Returns:
            The saved values by name.

        Raises:
            RemoteError: Anything failed; the message ends with the server's last line, and ``details`` has all.
        """
        import websocket
        from nnsight.schema.request import RequestModel

        deadline = _Deadline(self.timeout, self.url)
        self.traffic.requests += 1
        self.traffic.sent += len(blob)
        with self._failures(deadline):
            socket = websocket.create_connection(
                f"ws{self.url.removeprefix('http')}/subscribe", timeout=deadline.left(), header=self._headers
            )
            try:
                session = json.loads(socket.recv())["session_id"]
                request = RequestModel(model_key=model_key, session_id=session, compress=True, env=dict(env))
                response = self._post(request.metadata(), blob, deadline)
                while (data := self._outcome(response, note)) is None:
                    response = self._next(socket, deadline, note)
                content = data if isinstance(data, bytes) else self._download(str(data), deadline)
            finally:
                socket.close()
        self.traffic.received += len(content)
        return read_plain(content, self.url, compressed=True)

    def _post(self, metadata: str, blob: bytes, deadline: _Deadline) -> dict[str, Any]:
        import httpx

        headers = {
            **self._headers,
            "ndif-timestamp": repr(time.time()),
            "nnsight-version": version("nnsight"),
            "python-version": sys.version,
        }
        timeout = httpx.Timeout(deadline.left(), connect=min(_CONNECT, deadline.left()))
        with httpx.Client(timeout=timeout) as client:
            answer = client.post(
                f"{self.url}/request",
                data={"data": metadata},
                files={"blob": ("request", blob, "application/octet-stream")},
                headers=headers,
            )
        self._refuse(answer)
        return answer.json()

    def _next(self, socket: Any, deadline: _Deadline, note: Callable[[str, str], None]) -> dict[str, Any]:
        import websocket

        while True:
            socket.settimeout(min(_TICK, deadline.left()))
            try:
                message = socket.recv()
            except websocket.WebSocketTimeoutException:
                deadline.left()
                note("", "")
                continue
            if not message:
                raise RemoteError(f"{self.url} closed the connection before the job was done.")
            return json.loads(message) if isinstance(message, str) else read_plain(message, self.url)

    def _outcome(self, response: dict[str, Any], note: Callable[[str, str], None]) -> bytes | str | None:
        status = getattr(response["status"], "value", response["status"])
        text = response.get("description") or ""
        if status == "ERROR":
            raise RemoteError(f"{self.url}: {last_line(text)}", details=text)
        if status != "COMPLETED":
            note(status, text)
            return None
        if not response.get("data"):
            raise RemoteError(f"{self.url}: the job was completed without a result.")
        return response["data"]

    def _download(self, address: str, deadline: _Deadline) -> bytes:
        import httpx

        parts = []
        timeout = httpx.Timeout(deadline.left(), connect=min(_CONNECT, deadline.left()))
        # A presigned address of a store elsewhere must not be shown the key.
        headers = self._headers if address.startswith(f"{self.url}/") else {}
        with httpx.Client(timeout=timeout) as client, client.stream("GET", address, headers=headers) as answer:
            if answer.is_error:
                answer.read()
            self._refuse(answer)
            for part in answer.iter_bytes():
                parts.append(part)
                deadline.left()
        return b"".join(parts)

    def _refuse(self, answer: Any) -> None:
        """Raise for an HTTP error, with what the server says about it."""
        if not answer.is_error:
            return
        text = answer.text
        try:
            body = answer.json()
            text = str(body.get("detail", body)) if isinstance(body, dict) else str(body)
        except ValueError:
            pass
        hint = ""
        if answer.status_code in (401, 403) or "API key" in text:
            hint = " Give the key with api_key=, or in the environment variable NDIF_API_KEY."
        raise RemoteError(
            f"{self.url} refused ({answer.status_code}): {last_line(text) or 'no reason given'}{hint}", details=text
        )

    @contextmanager
    def _failures(self, deadline: _Deadline | None = None) -> Iterator[None]:
        """Turn what other libraries raise into one error that says what to do."""
        import httpx
        import websocket

        try:
            yield
        except websocket.WebSocketBadStatusException as error:
            hint = " Give the key with api_key=, or in NDIF_API_KEY." if error.status_code in (401, 403) else ""
            raise RemoteError(f"{self.url} refused the connection ({error.status_code}).{hint}") from error
        except (httpx.TimeoutException, websocket.WebSocketTimeoutException, TimeoutError) as error:
            if deadline is not None:
                deadline.left()
            raise RemoteError(f"{self.url} does not answer: {error}.") from error
        except (OSError, websocket.WebSocketException, httpx.HTTPError, httpx.InvalidURL) as error:
            if isinstance(error, ssl.SSLError) or "SSL" in str(error):
                raise RemoteError(
                    f"{self.url} does not speak TLS as asked ({error}); a server on this machine has http://."
                ) from error
            if isinstance(error, ConnectionRefusedError | httpx.ConnectError) or "refused" in str(error):
                raise RemoteError(
                    f"no server answers at {self.url} ({error}). Check the address, or start one: "
                    "whence serve-model PATH --port PORT."
                ) from error
            raise RemoteError(f"the connection to {self.url} was lost: {error}.") from error


class _Deadline:
    """When to stop waiting."""

    def __init__(self, seconds: float, url: str) -> None:
        self.seconds = seconds
        self.url = url
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left; an error when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise RemoteError(
                f"{self.url} did not finish within {self.seconds:g} s. It may be frozen, or the queue long: try "
                "again later, ask for less at once, or give it more time with timeout=."
            )
        return left


def last_line(text: str) -> str:
    """The last line of a message that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
