"""The reference input: what a feature is replaced by when a method asks what would be without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whence.core.errors import InputError, UnsupportedError, unknown_name
from whence.core.random import stream
from whence.models.model import Model
from whence.probe.batch import Batch

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor

WORDS = ("auto", "mask", "unk", "pad", "zero", "mean")
# An untrained row is far from the others in length; a reference there is no input the model knows.
_NORM_RATIO = 4.0


@dataclass(frozen=True)
class Baseline:
    """A resolved baseline.

    Attributes:
        values: Per stream, the reference embedding: [unit], or [example, position, unit].
        record: What it is and why, one entry per stream, for the result.
        sources_only: Only the source has a reference; the generated prefix keeps its true value.
    """

    values: tuple[Tensor, ...]
    record: tuple[Mapping[str, Any], ...]
    sources_only: bool = False


@dataclass(frozen=True)
class _Wanted:
    """A baseline that was understood, before the rows of the embedding matrix that it needs are there.

    Attributes:
        ids: The ids whose rows it needs.
        make: From what `Model.embedding_rows` gives for these ids to the baseline; called with nothing where
            ``looks`` is False.
        looks: Whether it needs the matrix at all.
    """

    ids: tuple[int, ...]
    make: Callable[[Mapping[str, Any]], Baseline]
    looks: bool = True


def is_several(baseline: Any) -> bool:
    """Whether an option ``baseline`` names several references."""
    if isinstance(baseline, str):
        return baseline.startswith("vocab:")
    plain = isinstance(baseline, list | tuple)
    return plain and not all(isinstance(one, int) and not isinstance(one, bool) for one in baseline)


def resolve_baselines(model: Model, baseline: Any, batch: Batch, seed: int = 0) -> tuple[Baseline, ...]:
    """Find the reference embeddings that a baseline stands for, by one look at the embedding matrix.

    Args:
        model: The model.
        baseline: ``"auto"`` (the first of mask, unk and pad that exists, is not also a begin or end token,
            and whose embedding has a usual length; else the mean row), ``"mask"``, ``"unk"``,
            ``"pad"``, ``"zero"``, ``"mean"``; the id or the text of one token; ``"text:..."`` or a list of
            ids as long as the source; or a tensor [unit] or [position, unit]. A list of anything else is
            several of these; ``"vocab:100"`` is 100 words of the vocabulary, drawn at random.
        batch: The sequences.
        seed: Seed of the draw.

    Returns:
        The references of every stream; one, unless several were named.

    Raises:
        InputError: A baseline has another shape or length, or the tokenizer lacks the token.
        UnknownNameError: A word that is neither a kind of baseline nor one token.
    """
    stacks = list(model.architecture.paths["embed"])
    if isinstance(baseline, str) and baseline.startswith("vocab:"):
        parts: list[Any] = _drawn(model, baseline.removeprefix("vocab:"), seed)
    else:
        parts = list(baseline) if is_several(baseline) else [baseline]
    if not parts:
        raise InputError("baseline: the list is empty. Give at least one reference.")
    wanted = [_understand(model, one, stacks, batch) for one in parts]
    rows: Mapping[str, Any] = {}
    if any(one.looks for one in wanted):
        rows = model.embedding_rows([token_id for one in wanted for token_id in one.ids])
    found, first = [], 0
    for one in wanted:
        mine = slice(first, first + len(one.ids))
        first = mine.stop
        found.append(
            one.make({stack: {**r, "rows": r["rows"][mine], "norms": r["norms"][mine]} for stack, r in rows.items()})
        )
    return tuple(found)


def _understand(model: Model, baseline: Any, stacks: list[str], batch: Batch) -> _Wanted:
    import torch

    if hasattr(baseline, "shape"):
        given = _given(torch.as_tensor(baseline), stacks, batch)
        return _Wanted((), lambda rows: given, looks=False)
    if isinstance(baseline, list | tuple):
        return _parallel(model, [int(i) for i in baseline], stacks, batch)
    if isinstance(baseline, str) and baseline.startswith("text:"):
        return _parallel(model, list(model.encode(baseline.removeprefix("text:")).ids), stacks, batch)
    candidates = _candidates(model)
    if baseline in ("auto", "mean", "zero"):
        ids = tuple(candidates.values()) if baseline == "auto" else ()

        def picked(rows: Mapping[str, Any]) -> Baseline:
            return _named(model, stacks, [_pick(baseline, candidates, rows[stack]) for stack in stacks])

        return _Wanted(ids, picked)
    token_id = _token_id(model, baseline, candidates)

    def token(rows: Mapping[str, Any]) -> Baseline:
        record = {"kind": "token", "id": token_id, "why": "asked for"}
        return _named(model, stacks, [(rows[stack]["rows"][0], record) for stack in stacks])

    return _Wanted((token_id,), token)


def _named(model: Model, stacks: list[str], picked: list[tuple[Any, dict[str, Any]]]) -> Baseline:
    """A baseline of one vector per stack, with what is said of each."""
    records = []
    for stack, (vector, record) in zip(stacks, picked, strict=True):
        text = "" if record.get("id") is None else model.token_name(record["id"])
        records.append({**record, "stack": stack, "text": text, "norm": float(vector.norm())})
    return Baseline(tuple(vector for vector, _ in picked), tuple(records))


def _drawn(model: Model, count: str, seed: int) -> list[int]:
    """Ids of random words."""
    wordless = set(no_words(model))
    words = [token_id for token_id in range(model.vocab_size) if token_id not in wordless]
    if not count.isdigit() or not 1 <= int(count) <= len(words):
        raise InputError(f"baseline='vocab:{count}': give a number from 1 to {len(words)}, such as 'vocab:100'.")
    return [words[k] for k in stream(seed, "baseline").choice(len(words), int(count), replace=False).tolist()]


def no_words(model: Model) -> list[int]:
    """Ids that stand for no word: special tokens, and rows of the embedding matrix that no token has."""
    found = set()
    for config in (model.config, model.generation_config):
        for key in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
            value = getattr(config, key, None)
            found |= set(value) if isinstance(value, list | tuple) else {value}
    if model.tokenizer is not None:
        found |= {*model.tokenizer.all_special_ids, *range(len(model.tokenizer), model.vocab_size)}
    return sorted(token_id for token_id in found if token_id is not None and 0 <= token_id < model.vocab_size)


def _candidates(model: Model) -> dict[str, int]:
    """Special tokens that may serve: those that do not also begin or end a text."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return {}
    taken = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    for config in (model.config, model.generation_config):
        for key in ("bos_token_id", "eos_token_id", "decoder_start_token_id"):
            value = getattr(config, key, None)
            taken |= set(value) if isinstance(value, list | tuple) else {value}
    found = {}
    for word in ("mask", "unk", "pad"):
        token_id = getattr(tokenizer, f"{word}_token_id", None)
        if token_id is not None and token_id not in taken and token_id < model.vocab_size:
            found[word] = int(token_id)
    return found


def _pick(baseline: str, candidates: Mapping[str, int], rows: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    median = rows["median_norm"]
    if baseline == "zero":
        return rows["mean"] * 0, {"kind": "zero", "id": None, "why": "asked for"}
    if baseline == "auto":
        for index, (word, token_id) in enumerate(candidates.items()):
            norm = float(rows["norms"][index])
            if median / _NORM_RATIO <= norm <= median * _NORM_RATIO:
                return rows["rows"][index], {"kind": "token", "id": token_id, "why": f"{word} token, dedicated"}
        return rows["mean"], {"kind": "mean", "id": None, "why": "no dedicated mask, unk or pad token"}
    return rows["mean"], {"kind": "mean", "id": None, "why": "asked for"}


def _token_id(model: Model, baseline: Any, candidates: Mapping[str, int]) -> int:
    if isinstance(baseline, int) and not isinstance(baseline, bool):
        if not 0 <= baseline < model.vocab_size:
            raise InputError(f"baseline: id {baseline} is outside the vocabulary of {model.vocab_size}.")
        return baseline
    if not isinstance(baseline, str):
        raise InputError(f"baseline: {baseline!r:.80} is none of {', '.join(WORDS)}, a token, ids or a tensor.")
    if model.tokenizer is None:
        raise InputError(f"baseline={baseline!r} names a token, but the model has no tokenizer; give an id.")
    if baseline in ("mask", "unk", "pad"):
        token_id = getattr(model.tokenizer, f"{baseline}_token_id", None)
        if token_id is None:
            raise InputError(f"baseline: this tokenizer has no {baseline} token. Try 'mean' or the text of a token.")
        return int(token_id)
    ids = model.tokenizer(baseline, add_special_tokens=False)["input_ids"]
    known = model.tokenizer.convert_tokens_to_ids(baseline)
    if len(ids) != 1 and known in (None, model.tokenizer.unk_token_id):
        raise unknown_name(
            "baseline", baseline, WORDS, f"As the text of a token it would have to be one token, but it is {len(ids)}."
        )
    return int(ids[0]) if len(ids) == 1 else int(known)


def _parallel(model: Model, ids: list[int], stacks: list[str], batch: Batch) -> _Wanted:
    """Embeddings of another source text of the same length: a counterfactual."""
    for sequence in batch.sequences:
        own = sum(token.side == "source" for token in sequence.tokens)
        if own != len(ids):
            raise InputError(
                f"baseline: the parallel text has {len(ids)} tokens and the source {own}. Give a text of as many "
                "tokens, or compare segments with a token instead."
            )

    def make(rows: Mapping[str, Any]) -> Baseline:
        import torch

        own = rows[stacks[0]]["rows"]
        values = torch.zeros(len(batch.sequences), batch.widths[0], own.shape[1], dtype=own.dtype)
        for row, slots in enumerate(batch.slots):
            values[row, slots[: len(ids)]] = own
        rest = tuple(torch.zeros(own.shape[1]) for _ in stacks[1:])
        record = {"kind": "text", "ids": ids, "why": "asked for", "stack": stacks[0]}
        return Baseline((values, *rest), (record,), sources_only=True)

    return _Wanted(tuple(ids), make)


def _given(tensor: Any, stacks: list[str], batch: Batch) -> Baseline:
    import torch

    record = {"kind": "tensor", "shape": list(tensor.shape), "why": "asked for"}
    if tensor.dim() == 1:
        return Baseline((tensor,) * len(stacks), ({**record, "norm": float(tensor.norm())},))
    if tensor.dim() != 2 or len(stacks) > 1:
        raise UnsupportedError(
            "baseline: a tensor has shape [unit], or [position, unit] for a decoder-only model, not "
            f"{list(tensor.shape)}."
        )
    values = torch.zeros(len(batch.sequences), batch.widths[0], tensor.shape[1], dtype=tensor.dtype)
    for row, slots in enumerate(batch.slots):
        if len(slots) != len(tensor):
            raise InputError(f"baseline: the tensor has {len(tensor)} positions and the input {len(slots)}.")
        values[row, slots] = tensor
    return Baseline((values,), (record,))


def replaceable(batch: Batch, baseline: Baseline, fixed: list[list[bool]]) -> list[Bool[Tensor, "example position"]]:
    """Per stream, the positions that may leave their true value.

    Args:
        batch: The sequences.
        baseline: The resolved baseline.
        fixed: For each sequence and token, whether it is kept.

    Returns:
        One mask per stream.
    """
    free = [
        [
            not kept and not (baseline.sources_only and token.side == "prefix")
            for token, kept in zip(sequence.tokens, flags, strict=True)
        ]
        for sequence, flags in zip(batch.sequences, fixed, strict=True)
    ]
    return list(batch.mask(free).split(list(batch.widths), dim=1))
