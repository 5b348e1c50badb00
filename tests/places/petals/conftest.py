"""Swarms of tiny models, which end with the tests that ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import pytest

from tiny_models import tiny_model, tiny_tokenizer

PREFIX = "tiny"


@pytest.fixture(scope="session", autouse=True)
def _hivemind() -> None:
    if find_spec("hivemind") is None:
        pytest.skip("hivemind is not installed: pip install 'whence[petals]'")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A folder with a tiny checkpoint of a family."""
    made: dict[str, Any] = {}

    def folder(family: str) -> Any:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("checkpoints") / family
            tiny_model(family).save_pretrained(made[family])
            tiny_tokenizer(family).save_pretrained(made[family])
        return made[family]

    return folder


class Swarms:
    """Starts servers and clients, and stops them all."""

    def __init__(self, stack: ExitStack, checkpoint: Callable[[str], Any]) -> None:
        self._stack = stack
        self._checkpoint = checkpoint

    def server(self, blocks: Any, peers: Any = (), *, family: str = "llama", **options: Any) -> Any:
        """A server of some blocks."""
        from local_swarm import PetalsServer

        server = PetalsServer(tiny_model(family), blocks, PREFIX, peers, **options)
        self._stack.callback(server.close)
        return server

    def load(self, peers: Any, *, family: str = "llama", **options: Any) -> Any:
        """A model whose blocks are with servers."""
        from whence.models.petals.loading import load_petals

        model = load_petals(str(self._checkpoint(family)), peers=peers, dht_prefix=PREFIX, **options)
        self._stack.callback(model.nn._module.swarm.close)
        return model


@pytest.fixture(scope="module")
def lasting(checkpoint: Callable[[str], Any]) -> Iterator[Swarms]:
    """For servers that all tests of a module share."""
    with ExitStack() as stack:
        yield Swarms(stack, checkpoint)


@pytest.fixture
def swarms(checkpoint: Callable[[str], Any]) -> Iterator[Swarms]:
    """For servers that a test kills."""
    with ExitStack() as stack:
        yield Swarms(stack, checkpoint)
