"""A model on an NDIF server: whence's programs become jobs, and users' traces as well."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

from nnsight.intervention.backends.remote import RemoteBackend

from whence.core.errors import RemoteError
from whence.core.progress import Waiting
from whence.models.programs import facts, with_facts

if TYPE_CHECKING:
    from nnsight.schema.request import RequestModel
    from nnsight.tracing.tracer import Tracer

_SPOKEN = {
    "RECEIVED": "received",
    "QUEUED": "in the queue",
    "PROVISIONING": "preparing the model",
    "DEPLOYING": "loading the model",
    "DISPATCHED": "dispatched",
    "RUNNING": "running",
}


class Transport(Protocol):
    """What carries jobs: `whence.models.ndif.wire.Connection`, or a double of it."""

    url: str

    def get(self, path: str, key: str | None = None) -> Any:
        """The answer to a plain question."""
        ...

    def submit(self, model_key: str, blob: bytes, env: Mapping[str, Any], note: Callable[[str, str], None]) -> Any:
        """The values that a job saved."""
        ...


class Server:
    """One model of a server.

    Args:
        transport: The connection.
        model_key: The model, as nnsight names it.
        plain: The nnsight model, without names of ours: what programs are sent with.
    """

    def __init__(self, transport: Transport, model_key: str, plain: Any) -> None:
        self.transport = transport
        self.model_key = model_key
        self.plain = plain
        self._facts: Mapping[str, Any] | None = None

    @property
    def facts(self) -> Mapping[str, Any]:
        """What `whence.models.programs.facts` says there: precision, device, free memory.

        It comes with the first job; asked before that, it is a job of its own.
        """
        if self._facts is None:
            self.run(facts, {})
        assert self._facts is not None
        return self._facts

    def run(self, program: Callable[..., Any], data: Mapping[str, Any]) -> Any:
        """Run a program there, and bring its result here.

        Args:
            program: An undecorated module-level function ``program(model, **data)``.
            data: Plain data and tensors for it.

        Returns:
            What the program returned.

        Raises:
            RemoteError: Anything failed on the way, or there.
        """
        import nnsight

        model, sent, answered = self.plain, dict(data), with_facts
        with model.session(backend=self.backend()):
            result = nnsight.save(answered(model, program, sent))
        self._facts = result["facts"]
        return result["result"]

    def backend(self) -> Job:
        """What runs one nnsight trace or session on the server."""
        return Job(self)

    def trusted(self) -> bool:
        """Whether jobs of this key run where the weights are, so that there are gradients."""
        who = self.transport.get("/whoami")
        if "trusted" in (who.get("tags") or ()):
            return True
        if who.get("email") is not None:
            return False
        # Nobody: a server of NDIF that asks for no key, and trusts all, says the same of a key it does not know.
        try:
            self.transport.get("/whoami", key="no-key-at-all")
        except RemoteError:
            return False
        return True

    def compare_versions(self) -> None:
        """Warn once where the server's libraries differ in what decides about numbers."""
        from nnsight.ndif import CRITICAL_PACKAGES, EnvComparison

        here = {"python_version": sys.version, "packages": {name: version(name) for name in CRITICAL_PACKAGES}}
        found = EnvComparison(here, self.transport.get("/env"))
        if found.critical_mismatches:
            others = sorted(found.critical_mismatches.items())
            pairs = "; ".join(f"{name} {one['local']} here, {one['remote']} there" for name, one in others)
            warnings.warn(
                f"{self.transport.url} has other versions: {pairs}. Scores may differ from those of a "
                "model here, and sites may be missing; install the server's versions to be sure.",
                UserWarning,
                stacklevel=4,
            )


class Job(RemoteBackend):
    """nnsight's hook for running a captured block elsewhere, over a connection of ours."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.model_key, host=server.transport.url, env=server.plain._remoteable_get_env())
        self.server = server

    def request(self, request: RequestModel, tracer: Tracer) -> Any:
        """Send the block, wait, and return what it saved."""
        try:
            blob = self._serialize(tracer)
        except Exception as error:
            raise RemoteError(
                f"this cannot be sent to {self.host}: {type(error).__name__}: {error}. A step function or method of "
                "your own must be a plain function of a module, without decorators, and import by name."
            ) from error
        with Waiting(self.host) as waiting:

            def note(status: str, text: str) -> None:
                if status == "LOG":
                    logged(text)
                else:
                    waiting.note(f"{_SPOKEN.get(status, status.lower())}. {text}".strip() if status else "")

            return self.server.transport.submit(self.model_key, blob, self.env, note)


def logged(text: str) -> None:
    """What a block prints on the server appears here, as it would if the block ran here."""
    sys.stdout.write(f"{text}\n")
