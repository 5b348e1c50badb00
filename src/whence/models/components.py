"""The named internal values (sites) of a model, found by looking at its module tree.

Names are TransformerLens's: ``embed``, ``blocks.3.resid_pre``, ``blocks.3.attn.pattern`` and so on;
encoder-decoder models have ``encoder.`` or ``decoder.`` in front. Nothing is run: the same works for a model
on the meta device. What is found is plain data, which travels to wherever the model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from whence.core.errors import ModelError, UnsupportedError, unknown_name
from whence.models.families import known_model_types
from whence.models.family import Family
from whence.models.fitting import missing_names, module_names
from whence.models.matching import family_from, recognise
from whence.models.sites import Site, SiteBuilder

__all__ = ["Architecture", "Site", "architecture", "nnsight_names", "restricted"]


@dataclass(frozen=True)
class Architecture:
    """The sites of a model and where its main modules are.

    Attributes:
        family: Name of the row of the table that fits.
        encoder_decoder: Whether there is an encoder.
        n_layers: Number of blocks of each stack.
        head_count: Number of query heads of each stack.
        sites: Every site by name, in the order of execution.
        paths: Module paths: ``embed``, ``blocks`` and ``ln_final`` by stack, ``unembed``, and ``parts``,
            the modules of each block under their common names.
        absent: Names that other architectures have, and why this one does not.
        bends: Where the model is not linear, as plain data in the order of execution (see `whence.probe.rules`).
        withheld: Names that this architecture has, but not where this model runs, and why.
        sinks: Whether an attention pattern may give some of a query's weight to no token.
    """

    family: str
    encoder_decoder: bool
    n_layers: Mapping[str, int]
    head_count: Mapping[str, int]
    sites: Mapping[str, Site]
    paths: Mapping[str, Any]
    absent: Mapping[str, str]
    bends: Sequence[Mapping[str, Any]] = ()
    withheld: Mapping[str, str] = field(default_factory=dict)
    sinks: bool = False

    def site(self, name: str) -> Site:
        """Look up a site by name.

        Args:
            name: Such as ``"blocks.3.resid_mid"``.

        Returns:
            The site.

        Raises:
            UnknownNameError: There is none of that name; the message lists the nearest, or says why this
                architecture does not have it.
            UnsupportedError: The place where this model runs does not give it.
        """
        if name in self.sites:
            return self.sites[name]
        if name in self.withheld:
            raise UnsupportedError(f"{name}: {self.withheld[name]}.")
        reason = self.absent.get(name, "")
        raise unknown_name("site", name, self.sites, f"It does not exist here: {reason}." if reason else "")


def architecture(hf_model: Any, family: Family | Mapping[str, Any] | None = None) -> Architecture:
    """Find the named internals of a transformers model.

    Args:
        hf_model: The model; its weights are not looked at.
        family: A row of your own for an architecture that is not in the table: a `Family`, or a mapping with
            its fields, where ``"like"`` names a known model type to start from.

    Returns:
        The architecture.

    Raises:
        ModelError: The model fits no row, or not the row that was given.
    """
    config = hf_model.config
    text_config = getattr(config, "text_config", None) or config
    known = known_model_types()
    if family is not None:
        row = family_from(family)
    elif config.model_type in known:
        row = known[config.model_type]
    else:
        row = recognise(hf_model, text_config)
    row = row.configured(text_config)
    tree = module_names(hf_model)
    missing = missing_names(tree, row)
    if missing:
        raise ModelError(
            f"{type(hf_model).__name__} does not fit the family {row.name!r}; it lacks {', '.join(missing)}. "
            f"Pass family= with the names it has: {{'like': {row.name!r}, 'decoder': {{...}}}}."
        )
    built = SiteBuilder(hf_model, tree, text_config, row)
    embed = built.paths["embed"]
    if len({id(hf_model.get_submodule(path)) for path in embed.values()}) < len(embed):
        # One module that runs twice in a pass has one place in a trace; equal weights are no problem.
        raise ModelError(
            f"{' and '.join(embed.values())} are one module; give the decoder its own with the same weights: "
            f"import copy; decoder.embed_tokens = copy.copy(decoder.embed_tokens)."
        )
    return Architecture(
        family=row.name,
        encoder_decoder=row.encoder is not None,
        n_layers=built.n_layers,
        head_count=built.head_count,
        sites=built.sites,
        paths=built.paths,
        absent=built.absent,
        sinks=built.sinks,
        bends=tuple(built.bends),
    )


def restricted(found: Architecture, keep: Callable[[Site], bool], reason: str) -> Architecture:
    """An architecture of whose values a place gives only some.

    Args:
        found: The architecture.
        keep: Whether the place gives a site.
        reason: Why it does not give the others, for the error message.

    Returns:
        The architecture with the other sites withheld, and no modules inside of blocks.
    """
    gone = {name: reason for name, site in found.sites.items() if not keep(site)}
    sites = {name: site for name, site in found.sites.items() if name not in gone}
    parts = {block: {} for block in found.paths["parts"]}
    return replace(found, sites=sites, paths={**found.paths, "parts": parts}, withheld=gone, bends=())


def nnsight_names(found: Architecture) -> tuple[dict[str, str], dict[str, Any]]:
    """What makes ``NNsight(hf_model, rename=..., envoys=...)`` serve the sites as attributes.

    In a trace of such a model ``model.embed.output``, ``model.blocks[3].resid_pre``,
    ``model.blocks[3].attn.pattern`` and so on can be read and assigned; encoder-decoder models have
    ``model.encoder`` and ``model.decoder`` in front. The module tree stays as it is.

    Args:
        found: The architecture.

    Returns:
        The arguments ``rename`` and ``envoys``.
    """
    # nnsight changes torch.Tensor when imported, so it is imported no earlier than needed.
    from whence.models.envoys import envoy_classes

    rename: dict[str, str] = {}
    for part in ("embed", "blocks", "ln_final"):
        for stack, path in found.paths[part].items():
            if path and found.encoder_decoder:
                host = path.rpartition(".")[0]
                rename[path] = f"{host}.{part}"
                if "." in host:
                    rename[host] = stack
            elif path:
                rename[path] = part
    rename[found.paths["unembed"]] = "unembed"
    sites = {name: dict(site.spec) for name, site in found.sites.items()}
    withheld = {}
    for name, why in found.withheld.items():
        stack, _, inside = name.rpartition("blocks.")
        blocks = found.paths["blocks"][stack.removesuffix(".") or "decoder"]
        withheld[f"{blocks}.{inside.partition('.')[0]}"] = why
    return rename, envoy_classes(sites, found.paths["parts"], found.paths["blocks"], withheld)
