"""What every step is compared with: another token of the same run, or the same step of a run on another text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from whence.core.errors import InputError, UnsupportedError
from whence.models.model import Model
from whence.probe.batch import Batch, Forced, collate, force
from whence.probe.measure import step_logits
from whence.probe.payload import run_data
from whence.step_functions import StepFunction
from whence.text.continuation import encode_continuation
from whence.text.contrast import Contrast
from whence.text.embedders import MatrixEmbedder
from whence.text.encoded import Encoded
from whence.text.prompt import require_tokenizer
from whence.text.step_alignment import align_steps

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


@dataclass(frozen=True)
class Foil:
    """The partners of every step of a batch.

    Attributes:
        ids: The token that each step's token is compared with; its own token where only the input differs.
        paired: Which steps have a partner.
        logits: The contrast's own distributions at these steps, where they are constants.
        beside: The contrast's own rows, where they are explained with the main ones (see `whence.probe.beside`).
        keep: How many of the last positions of the last stream of those rows need logits.
        record: For each sequence, plain data on what is compared.
        itself: The contrast is the unchanged run itself.
    """

    ids: Int[Tensor, "example step"]
    paired: Bool[Tensor, "example step"]
    logits: Float[Tensor, "example step vocab"] | None = None
    beside: Mapping[str, Any] | None = None
    keep: int = 0
    record: tuple[Mapping[str, Any], ...] = ()
    itself: bool = False

    def without_unpaired(
        self, function: StepFunction, steps: Float[Tensor, "example step"]
    ) -> Float[Tensor, "example step"]:
        """The values of a step function, NaN where it compares a step that has no partner."""
        import torch

        return steps.masked_fill(~self.paired, torch.nan) if "contrast" in function.needs else steps


@dataclass(frozen=True)
class _Pairing:
    """One sequence and what it is compared with: the text that is read, and the partner of every step."""

    prompt: Encoded
    text: Encoded
    partners: tuple[int | None, ...]
    notes: Mapping[str, Any]


def find_foils(
    model: Model,
    batch: Batch,
    prompts: Sequence[Encoded],
    texts: Sequence[Encoded | None],
    contrasts: Sequence[Contrast],
) -> tuple[Batch, Foil]:
    """Find the partner of every step, and run what it is looked up in.

    Args:
        model: The model.
        batch: The sequences that are explained.
        prompts: Their prompts.
        texts: Their continuations.
        contrasts: What each is compared with.

    Returns:
        The batch, as wide as the contrast needs it where both run side by side; and the partners.

    Raises:
        InputError: No step has a partner, or a step is no token of the continuation.
        UnsupportedError: The contrast cannot run beside the batch on this model.
    """
    import torch

    first = contrasts[0]
    if any((one.evaluate, one.grad) != (first.evaluate, first.grad) for one in contrasts):
        raise InputError("contrast: evaluate and grad are the same for all prompts of a call.")
    pairings = [_pair(model, *each) for each in zip(batch.sequences, prompts, texts, contrasts, strict=True)]
    steps = batch.target_ids.shape[1]
    ids, paired = batch.target_ids.clone(), torch.zeros(len(pairings), steps, dtype=torch.bool)
    for row, one in enumerate(pairings):
        for step, partner in enumerate(one.partners):
            if partner is not None:
                ids[row, step], paired[row, step] = one.text.ids[partner], True
    itself = all(one.continuation is None and one.source is None for one in contrasts)
    record = tuple(_record(*each) for each in zip(pairings, contrasts, batch.sequences, strict=True))
    found = Foil(ids, paired, record=record, itself=itself)
    if first.evaluate == "main":
        return batch, found
    others = [_other(model, *each) for each in zip(batch.sequences, pairings, strict=True)]
    if first.grad == "main":
        beside = _collated(model, others, batch)
        logits = model.run(step_logits, run=run_data(model, beside), count=len(others))
        return batch, replace(found, logits=logits)
    if model.rows_interact:
        raise UnsupportedError(
            f"contrast: rows of {model.name} change each other, so the contrast cannot run beside the text. "
            "Take grad='main', or evaluate='main'."
        )
    wider = tuple(max(len(one.streams[k]) for one in others) for k in range(len(batch.widths)))
    main = _collated(model, batch.sequences, batch, wider)
    beside = _collated(model, others, batch, main.widths)
    maps = [torch.full((len(others), width), -1) for width in main.widths]
    for row, (one, other) in enumerate(zip(batch.sequences, others, strict=True)):
        for stream, pairs in enumerate(_shared(one, other)):
            mine, theirs = (_start(each, row, stream) for each in (main, beside))
            for own, its in pairs:
                maps[stream][row, theirs + its] = mine + own
    data = {"inputs": dict(beside.inputs), "query": beside.query, "maps": maps}
    return main, replace(found, beside=data, keep=beside.keep())


def only_paired(batch: Batch, foil: Foil) -> Batch:
    """The batch whose columns count the steps that have a partner; those that have none explain nothing.

    Raises:
        InputError: No step of a sequence has a partner.
    """
    columns = batch.columns * foil.paired[:, None, :].to(batch.columns)
    valid = batch.valid & (columns.sum(-1) > 0)
    if not bool(valid.any(-1).all()):
        raise InputError("contrast: no step of a text has a partner in the other; give align= the pairs of tokens.")
    return replace(batch, columns=columns, valid=valid)


def _pair(model: Model, sequence: Forced, prompt: Encoded, text: Encoded | None, contrast: Contrast) -> _Pairing:
    if text is None:
        raise InputError("contrast compares the tokens of a continuation, and steps='prompt' has none.")
    places = [query - _first_query(model, prompt) for query in sequence.query]
    if min(places) < 0:
        raise InputError("contrast compares the tokens of the continuation; steps has tokens of the prompt as well.")
    other_prompt = prompt if contrast.source is None else model.encode(contrast.source)
    if contrast.continuation is None:
        return _Pairing(other_prompt, text, tuple(places), {"alignment": {"rule": "same tokens"}})
    other = encode_continuation(
        model.tokenizer,
        contrast.continuation,
        prompt=other_prompt,
        vocab_size=model.vocab_size,
        encoder_decoder=model.encoder_decoder,
    )
    mine, theirs = text.tokens("prefix"), other.tokens("prefix")
    if contrast.align == "model":
        # Embeddings of one model are of any length, so that a softmax over their products tells little.
        found = align_steps(mine, theirs, model_embedder(model), method="mutual")
    else:
        found = align_steps(mine, theirs, contrast.align)
    return _Pairing(other_prompt, other, tuple(found.partner[k] for k in places), {"alignment": found.record})


def _first_query(model: Model, prompt: Encoded) -> int:
    """The position whose logits predict the first token of a continuation."""
    return 0 if model.encoder_decoder else len(prompt) - 1


def model_embedder(model: Model) -> MatrixEmbedder:
    """The model's own input embeddings, to align words with.

    Raises:
        ModelError: The model has no tokenizer.
    """
    rows = model.embedding_rows(range(model.vocab_size))
    return MatrixEmbedder(model.name, rows["decoder"]["rows"], require_tokenizer(model.tokenizer))


def _record(pairing: _Pairing, contrast: Contrast, sequence: Forced) -> dict[str, Any]:
    tokens = pairing.text.tokens("prefix")
    partners = [None if k is None else tokens[k] for k in pairing.partners]
    equal = [
        step
        for step, (own, foil) in enumerate(zip(sequence.targets, partners, strict=True))
        if contrast.evaluate == "main" and foil is not None and foil.id == own.id
    ]
    run = "this text's run" if contrast.grad == "main" or contrast.evaluate == "main" else "both runs together"
    return {
        "source": pairing.prompt.text if contrast.source is not None else None,
        "continuation": pairing.text.text if contrast.continuation is not None else None,
        "evaluate": contrast.evaluate,
        "grad": contrast.grad,
        "attributed": run,
        "foils": [None if one is None else one.text for one in partners],
        "unpaired": [step for step, one in enumerate(partners) if one is None],
        "foil_equal": equal,
        **pairing.notes,
    }


def _other(model: Model, sequence: Forced, pairing: _Pairing) -> Forced:
    """The contrast's text, asked at the partners of the steps; where there is none, at its first token."""
    start = model.decoder_start if model.encoder_decoder else None
    prompt, text = pairing.prompt, pairing.text
    laid = force(prompt, text, start, None, "" if start is None else model.token_name(start))
    first = _first_query(model, prompt)
    tokens = text.tokens("prefix")
    partners = [0 if k is None else k for k in pairing.partners]
    if first + min(partners) < 0:
        raise InputError("contrast: the other text's first token has nothing before it that could predict it.")
    steps = tuple((k,) for k in range(len(partners)))
    return replace(
        laid,
        query=tuple(first + k for k in partners),
        targets=tuple(tokens[k] for k in partners),
        columns=steps,
        labels=tuple(tokens[k] for k in partners),
    )


def _collated(model: Model, sequences: Sequence[Forced], like: Batch, least: Sequence[int] = ()) -> Batch:
    return collate(sequences, pad=model.pad_id, accepts=model.accepts, dtype=like.columns.dtype, least=least)


def _shared(one: Forced, other: Forced) -> list[list[tuple[int, int]]]:
    """For each stream, the places of both texts that hold the same variable: what they begin and end with alike.

    The prompts are compared from both ends, the continuations from their beginning.
    """
    found = []
    for stream, (mine, theirs) in enumerate(zip(one.streams, other.streams, strict=True)):
        decodes = stream == len(one.streams) - 1
        ends = [_prompt_length(each, stream) for each in (one, other)]
        pairs = alike(mine[: ends[0]], theirs[: ends[1]], both_ends=True)
        if decodes:
            more = alike(mine[ends[0] :], theirs[ends[1] :], both_ends=False)
            pairs += [(ends[0] + a, ends[1] + b) for a, b in more]
        found.append(pairs)
    return found


def _prompt_length(one: Forced, stream: int) -> int:
    """How many ids of a stream are the source."""
    source = sum(token.side == "source" for token in one.tokens)
    return source if stream == 0 else 0


def alike(first: Sequence[int], second: Sequence[int], *, both_ends: bool) -> list[tuple[int, int]]:
    """Pairs of places at which two sequences are equal, from the beginning, and then from the end."""
    most = min(len(first), len(second))
    head = next((k for k in range(most) if first[k] != second[k]), most)
    rest = most - head if both_ends else 0
    tail = next((k for k in range(rest) if first[-1 - k] != second[-1 - k]), rest)
    ends = [(len(first) - 1 - k, len(second) - 1 - k) for k in reversed(range(tail))]
    return [*((k, k) for k in range(head)), *ends]


def _start(batch: Batch, row: int, stream: int) -> int:
    """Where a stream of a sequence starts in its padded row."""
    first = sum(len(ids) for ids in batch.sequences[row].streams[:stream])
    return int(batch.slots[row][first]) - batch.offsets[stream]
