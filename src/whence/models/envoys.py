"""Sites as attributes of an nnsight model: ``model.blocks[3].attn.pattern``, read and assigned in a trace.

The classes are given to nnsight through ``envoys=``; each looks its sites up in a table of plain data that
travels in the same mapping, under a key that no module path can equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnsight.intervention.envoy import Envoy

from whence.core.errors import UnsupportedError, unknown_name
from whence.models.access import read_site, write_site
from whence.models.operations import resolve

TABLE = "whence:sites"


def table_of(envoy: Envoy) -> tuple[dict[str, Any], str]:
    """The table of the model an envoy belongs to, and the envoy's path from the root."""
    table: Any = envoy._envoys
    return table[TABLE], envoy.path.partition(".")[2]


def refuse_withheld(table: dict[str, Any], path: str, name: str) -> None:
    """Say why a value or a part of a block is not given where the model runs, if that is so.

    Args:
        table: The model's table of sites.
        path: Path of the block.
        name: What was asked for.

    Raises:
        UnsupportedError: It is withheld.
    """
    if path in table["withheld"]:
        raise UnsupportedError(f"{path}.{name}: {table['withheld'][path]}.")


class SiteValue:
    """A site as an attribute: reading and assigning it reads and writes the value of the running trace."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, host: Any, owner: type | None = None) -> Any:
        if host is None:
            return self
        return read_site(host.root, self._spec(host))

    def __set__(self, host: Any, value: Any) -> None:
        if isinstance(value, Envoy):
            # nnsight hangs up a submodule that has the name of a site (T5's q, k and v): it moves, the way
            # nnsight itself moves a submodule called "output".
            host.__dict__[f"{Envoy.OVERLOAD_PREFIX}{self.name}"] = value
            return
        write_site(host.root, self._spec(host), value)

    def _spec(self, host: Any) -> dict[str, Any]:
        table, path = host.site_table()
        specs = table["values"].get(path, {})
        if self.name not in specs:
            refuse_withheld(table, path, self.name)
            raise unknown_name(f"site of {path}", self.name, specs)
        return specs[self.name]


class BlockPart:
    """A part of a block under its common name, where the module tree calls it otherwise."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, host: Any, owner: type | None = None) -> Any:
        if host is None:
            return self
        table, path = host.site_table()
        parts = table["parts"].get(path, {})
        if self.name in parts:
            return resolve(host.root, parts[self.name])
        refuse_withheld(table, path, self.name)
        if self.name == "mlp":
            return MLPView(host)
        raise unknown_name(f"part of {path}", self.name, parts)


class BlockEnvoy(Envoy):
    """A transformer block."""

    resid_pre = SiteValue()
    resid_mid = SiteValue()
    resid_mid_cross = SiteValue()
    resid_post = SiteValue()
    attn_out = SiteValue()
    cross_attn_out = SiteValue()
    mlp_out = SiteValue()
    ln1 = BlockPart()
    ln2 = BlockPart()
    ln_cross = BlockPart()
    attn = BlockPart()
    cross_attn = BlockPart()
    mlp = BlockPart()

    def site_table(self) -> tuple[dict[str, Any], str]:
        """The model's table of sites, and where this envoy is in it."""
        return table_of(self)


class AttentionEnvoy(Envoy):
    """An attention module."""

    q = SiteValue()
    k = SiteValue()
    v = SiteValue()
    scores = SiteValue()
    pattern = SiteValue()
    z = SiteValue()
    result = SiteValue()

    def site_table(self) -> tuple[dict[str, Any], str]:
        """The model's table of sites, and where this envoy is in it."""
        return table_of(self)


class MLPEnvoy(Envoy):
    """An MLP module."""

    pre = SiteValue()
    post = SiteValue()

    def site_table(self) -> tuple[dict[str, Any], str]:
        """The model's table of sites, and where this envoy is in it."""
        return table_of(self)


class MLPView:
    """The MLP of a block that has no module for it (OPT, BART and their kin)."""

    pre = SiteValue()
    post = SiteValue()

    def __init__(self, block: Any) -> None:
        self.block = block

    @property
    def root(self) -> Any:
        """The nnsight model."""
        return self.block.root

    def site_table(self) -> tuple[dict[str, Any], str]:
        """The model's table of sites, and where the MLP is in it."""
        table, path = self.block.site_table()
        return table, f"{path}.mlp"


def envoy_classes(
    specs: Mapping[str, dict[str, Any]],
    parts: Mapping[str, Mapping[str, str]],
    blocks: Mapping[str, str],
    withheld: Mapping[str, str],
) -> dict[str, Any]:
    """The ``envoys=`` argument of nnsight for an architecture.

    Args:
        specs: Every site's spec by name.
        parts: For each block's module path, the paths of its parts under their common names.
        blocks: For each stack, the path of its blocks.
        withheld: The paths of blocks whose inside is not given where the model runs, and why.

    Returns:
        Classes by path pattern, and the table they use.
    """
    classes: dict[str, Any] = {}
    values: dict[str, dict[str, Any]] = {}
    kinds = {"attn": AttentionEnvoy, "cross_attn": AttentionEnvoy, "mlp": MLPEnvoy}
    for stack, path in blocks.items():
        start = f"{stack}.blocks" if len(blocks) > 1 else "blocks"
        classes[f"{path}.*"] = BlockEnvoy
        for block in [block for block in parts if block.rpartition(".")[0] == path]:
            layer = block.rpartition(".")[2]
            hosts = {"": block}
            for part, kind in kinds.items():
                module = parts[block].get(part, f"{block}.{part}")
                # A wrapper with the common name (GPT-Neo's attn.attention) is where people look.
                inside = module.removeprefix(f"{block}.")
                inside = part if inside.startswith(f"{part}.") else inside
                hosts[part] = f"{block}.{inside}"
                classes[f"{path}.*.{inside}"] = kind
            for part, host in hosts.items():
                prefix = f"{start}.{layer}.{part}." if part else f"{start}.{layer}."
                own = {
                    name.removeprefix(prefix): spec
                    for name, spec in specs.items()
                    if name.startswith(prefix) and "." not in name.removeprefix(prefix)
                }
                values.setdefault(host, {}).update(own)
    table = {"values": values, "parts": {k: dict(v) for k, v in parts.items()}, "withheld": dict(withheld)}
    return {**classes, TABLE: table}
