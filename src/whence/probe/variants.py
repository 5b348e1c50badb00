"""Rows that are variants of the input, put to the model: what `ModelProbe` needs for its question respond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from whence.core.contract import Anatomy, Need, Removal, check_removal
from whence.core.errors import InputError, UnsupportedError
from whence.core.progress import Progress
from whence.models.components import Architecture
from whence.models.model import Model
from whence.probe.beside import noise_leaves
from whence.probe.layers import embedding_leaves, leaf
from whence.probe.payload import score_data
from whence.probe.plan import make_rows
from whence.probe.remove import respond_cut_off, respond_deleted, respond_resampled
from whence.probe.respond import respond
from whence.step_functions.functions import among_top

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from whence.probe.probe import ModelProbe


def remove_features(
    probe: ModelProbe,
    examples: Int[Tensor, " row"],
    masks: Bool[Tensor, "row feature"],
    *,
    removal: Removal,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    rows: int | None,
) -> Float[Tensor, "layer row step"]:
    """Targets of rows with features removed; arguments and errors as `ModelProbe.respond` says."""
    check_removal(removal)
    if removal != "knockout" and not (layers is None and heads is None):
        raise InputError(f"layers and heads say where attention is knocked out; they mean nothing to {removal!r}.")
    tokens = token_masks(probe, examples, masks)
    with Progress("variants", len(examples) * len(probe.layers.groups)) as bar:
        shared = shared_data(probe, examples, rows, bar)
        if removal == "replace":
            return probe.model.run(
                respond,
                embeds=embedding_leaves(probe.model.architecture),
                groups=probe.layers.groups,
                reference=probe.reference(),
                masks=tokens,
                **shared,
            )
        require_alone(probe, f"removal={removal!r}")
        if probe.layers.deep:
            raise UnsupportedError(
                f"removal={removal!r} takes tokens out of the input, and layer= asks about a deeper site. "
                "Take removal='replace', or leave layer= out."
            )
        if removal == "delete":
            require_masks(probe.model)
            found = probe.model.run(respond_deleted, masks=tokens, least=least_inputs(probe), **shared)
        else:
            require_heads(probe.anatomy, heads)
            require_patterns(probe, shared["run"])
            require_sight(probe, examples, tokens)
            found = probe.model.run(
                respond_cut_off,
                leaves=attention_leaves(probe.model.architecture, probe.anatomy, layers),
                masks=tokens,
                of=list(probe.feature_of().split(list(probe.widths), dim=1)),
                heads=None if heads is None else list(heads),
                **shared,
            )
        return found[None]


def exchange_tokens(
    probe: ModelProbe,
    examples: Int[Tensor, " row"],
    ids: Int[Tensor, "row token"],
    *,
    top: int | None,
    rows: int | None,
) -> Float[Tensor, "layer row step"]:
    """Targets of rows with other ids; arguments as `ModelProbe.resample` says."""
    require_alone(probe, "exchanging tokens")
    parts = list(ids.split(list(probe.widths), dim=1))
    with Progress("variants", len(examples)) as bar:
        shared = shared_data(probe, examples, rows, bar)
        if top is not None:
            shared["score"] = {"fn": among_top, "options": {"count": top}}
        return probe.model.run(respond_resampled, ids=parts, **shared)[None]


def shared_data(probe: ModelProbe, examples: Int[Tensor, " row"], rows: int | None, bar: Progress) -> dict[str, Any]:
    """What every program of variants takes."""
    model = probe.model
    if rows is None:
        free, cpu = model.free_bytes(), model.device.type == "cpu"
        rows = make_rows(probe.shape(), len(examples), free=free, cpu=cpu, width=probe.row_width)
    return {
        "run": probe.target_run(),
        "score": score_data(probe.target),
        "examples": examples,
        "chunk": 1 if model.rows_interact else rows,
        "advance": bar.advance if model.remote is None else None,
    }


def token_masks(
    probe: ModelProbe, examples: Int[Tensor, " row"], masks: Bool[Tensor, "row feature"]
) -> list[Bool[Tensor, "row position"]]:
    """Masks of features as masks of the tokens that may change, one per stream."""
    import torch

    of = probe.feature_of()[examples]
    padded = torch.cat([masks, torch.zeros(len(masks), 1, dtype=torch.bool)], dim=1)
    tokens = padded.gather(1, torch.where(of < 0, masks.shape[1], of)) & probe.changeable()[examples]
    return list(tokens.split(list(probe.widths), dim=1))


def least_inputs(probe: ModelProbe) -> list[dict[str, Any]]:
    """What has to be left in every stream when tokens are deleted (see `whence.probe.remove.without_tokens`).

    An encoder has to read something. A decoder of its own keeps the id that it starts with. A decoder alone
    begins with something where its whole prompt is gone; not only where nothing at all is left before a step,
    so that what a step sees does not depend on which other steps of the continuation are asked about.
    """
    import torch

    batch, begin = probe.batch, begin_id(probe.model)
    if len(batch.widths) > 1:
        whole = torch.full((len(batch.sequences),), batch.widths[0] - 1)
        return [{"id": begin, "until": whole}, {"id": probe.model.decoder_start, "until": whole * 0}]
    ends = [sum(token.side == "source" for token in one.tokens) - 1 for one in batch.sequences]
    prompt = torch.stack([slots[end] for slots, end in zip(batch.slots, ends, strict=True)])
    return [{"id": begin, "until": torch.minimum(prompt, batch.query.amin(1))}]


def begin_id(model: Model) -> int:
    """What a model reads where nothing else is left: the token that begins a text, else one that ends it."""
    for name in ("bos_token_id", "eos_token_id"):
        for config in (model.generation_config, model.config):
            found = getattr(config, name, None)
            found = found[0] if isinstance(found, list | tuple) and found else found
            if isinstance(found, int):
                return found
    return model.pad_id


def require_alone(probe: ModelProbe, what: str) -> None:
    """What changes the text itself does not change the contrast's text beside it.

    Raises:
        UnsupportedError: The contrast's own run is explained together with the main one.
    """
    if probe.foil is not None and probe.foil.beside is not None:
        raise UnsupportedError(
            f"contrast: {what} changes this text and not the contrast's. Take removal='replace', or in contrast "
            "grad='main' or evaluate='main'."
        )


def require_masks(model: Model) -> None:
    """Rows of different length need an attention mask.

    Raises:
        UnsupportedError: The model takes none.
    """
    if "attention_mask" not in model.accepts:
        raise UnsupportedError(
            f"{model.name} takes no attention mask, so rows with deleted tokens cannot run together. "
            "Take removal='replace'."
        )


def require_heads(anatomy: Anatomy, heads: Sequence[int] | None) -> None:
    """Heads are counted in every stack.

    Raises:
        InputError: A stack has no such head.
    """
    for stack, count in anatomy.heads.items():
        for head in heads or ():
            if not -count <= head < count:
                raise InputError(f"heads: there is no head {head}; the {stack} has {count} (0 to {count - 1}).")


def require_patterns(probe: ModelProbe, run: dict[str, Any]) -> None:
    """Nothing else may change the attention in which features are knocked out.

    Raises:
        UnsupportedError: The target needs runs whose attention patterns lose values.
    """
    if any(one["grid"] == "pair" for one in noise_leaves(run)):
        raise UnsupportedError(
            f"removal='knockout' changes the attention whose patterns lose values for {probe.target.name}. "
            "Take removal='replace' or 'delete'."
        )


def require_sight(probe: ModelProbe, examples: Int[Tensor, " row"], tokens: list[Bool[Tensor, "row position"]]) -> None:
    """What is knocked out has to be cut off inside attention, and a decoder has to have a source to attend to.

    Raises:
        UnsupportedError: The place gives no attention, or a row knocks out the whole source of an
            encoder-decoder model.
    """
    if Need.ATTENTION not in probe.model.provides:
        raise UnsupportedError(
            f"removal='knockout' needs {Need.ATTENTION.value}, which {probe.model.name} at place "
            f"{probe.model.place!r} does not provide. Take removal='replace'."
        )
    if len(tokens) == 1:
        return
    import torch

    present = probe.batch.mask([[True] * len(one.tokens) for one in probe.batch.sequences])
    sources = present[examples][:, : probe.widths[0]]
    if bool(torch.all(tokens[0] | ~sources, dim=1).any()):
        raise UnsupportedError(
            "knockout: a row leaves nothing of the source, and attention to nothing is not defined. Keep a token of "
            "it (keep='special', or positions), or take removal='replace'."
        )


def attention_leaves(
    architecture: Architecture, anatomy: Anatomy, layers: Sequence[int] | None
) -> list[dict[str, Any]]:
    """The attention scores of blocks, encoder first, each with the stream of its queries and of its keys.

    Raises:
        InputError: There is no such block.
    """
    stacks = list(anatomy.layers)
    found = []
    for stream, stack in enumerate(stacks):
        count = anatomy.layers[stack]
        for layer in range(count) if layers is None else layers:
            if not -count <= layer < count:
                raise InputError(f"layers: there is no block {layer}; the {stack} has {count} (0 to {count - 1}).")
            for kind, keys in (("attn", stream), ("cross_attn", 0)):
                name = anatomy.site(stack, f"{kind}.scores", layer % count)
                if kind == "attn" or name in architecture.sites:
                    found.append({**leaf(architecture.site(name), stream), "keys": keys})
    return sorted(found, key=lambda one: one["order"])
