"""A batch of teacher-forced sequences: what the model reads, and which of its answers are asked about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whence.core.errors import InputError, UnsupportedError
from whence.core.tokens import Token, join_tokens
from whence.text.encoded import Encoded, whole_number

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

Span = tuple[int, int]


@dataclass(frozen=True)
class Forced:
    """One prompt with its continuation, the whole of it known.

    Attributes:
        streams: What each stack reads: the source for an encoder, then what the decoder reads. The last
            token of the text is explained but never read.
        tokens: The token axis: one entry for every id read, streams one after another.
        query: For each step, the position of the last stream whose logits predict it.
        targets: The explained tokens.
        columns: For each column, the steps it sums.
        labels: What to call each column.
    """

    streams: tuple[tuple[int, ...], ...]
    tokens: tuple[Token, ...]
    query: tuple[int, ...]
    targets: tuple[Token, ...]
    columns: tuple[tuple[int, ...], ...]
    labels: tuple[Token, ...]

    @property
    def spans(self) -> bool:
        """Whether some column sums several steps."""
        return any(len(column) > 1 for column in self.columns)


def force(prompt: Encoded, continuation: Encoded | None, start: int | None, steps: Any, start_name: str = "") -> Forced:
    """Lay out one sequence for one teacher-forced pass.

    Args:
        prompt: The source or prompt.
        continuation: The text to be explained; None to explain only the prompt of a decoder-only model.
        start: Id with which the decoder of an encoder-decoder model begins, else None.
        steps: Which tokens to explain (see `whence.attribute.attribute`).
        start_name: What to call that id.

    Returns:
        The sequence.

    Raises:
        InputError: ``steps`` selects nothing, or places outside the text.
    """
    source = prompt.tokens("source")
    prefix = continuation.tokens("prefix") if continuation is not None else ()
    if start is not None:
        begin = Token(start, start_name, None, None, "prefix", "prefix", special=True)
        streams = (prompt.ids, (start, *(token.id for token in prefix[:-1])))
        read, text, first, moved = (*source, begin, *prefix[:-1]), prefix, 0, 0
        lowest = 0
    else:
        text = (*source, *prefix)
        streams = (tuple(token.id for token in text[:-1]),)
        read, first, moved = text[:-1], len(source), -1
        lowest = 1
    spans = select_steps(steps, first, len(text), lowest)
    places = sorted({place for span in spans for place in range(*span)})
    step_at = {place: step for step, place in enumerate(places)}
    columns = tuple(tuple(step_at[place] for place in range(*span)) for span in spans)
    targets = tuple(text[place] for place in places)
    return Forced(
        streams,
        read,
        tuple(place + moved for place in places),
        targets,
        columns,
        tuple(_joined([targets[k] for k in column]) for column in columns),
    )


def select_steps(steps: Any, first: int, length: int, lowest: int) -> list[Span]:
    """Places of the text to explain, as end-exclusive spans; a span of several is one column.

    Args:
        steps: See `whence.attribute.attribute`.
        first: Place of the first token of the continuation.
        length: Length of the whole text.
        lowest: First place that can be predicted.

    Returns:
        One span per column.

    Raises:
        InputError: Nothing is selected, or something outside the text.
    """
    steps = steps.tolist() if hasattr(steps, "tolist") else steps
    if steps is None:
        steps = "generated"
    if isinstance(steps, str) and steps == "whole":
        chosen = [(first, length)] if first < length else []
    elif isinstance(steps, str):
        chosen = _singles(*_named(steps, first, length, lowest))
    elif isinstance(steps, Mapping):
        chosen = _singles(*_absolute(steps, length, lowest))
    else:
        parts = steps if isinstance(steps, list | range) else [steps]
        chosen = [span for part in parts for span in _relative(part, first, length)]
        if any(low < lowest for low, _ in chosen):
            raise InputError(
                "steps: the first token of a text has nothing before it that could predict it, so it is not explained."
            )
    if not chosen:
        raise InputError("steps selects no token, so there is nothing to explain.")
    if len(set(chosen)) != len(chosen):
        twice = next(span for span in chosen if chosen.count(span) > 1)
        raise InputError(f"steps: the same step is asked for twice, at {twice[0] - first} of the continuation.")
    return chosen


def _singles(low: int, high: int) -> list[Span]:
    return [(place, place + 1) for place in range(low, high)]


def _named(word: str, first: int, length: int, lowest: int) -> Span:
    if word == "generated":
        return max(first, lowest), length
    if word not in ("prompt", "all"):
        raise InputError(f'steps: the words are "generated", "whole", "prompt" and "all", not {word!r}.')
    if first < lowest + (word == "prompt") or first == 0:
        raise InputError(
            f"steps={word!r}: the prompt has no token that something before it predicts "
            "(an encoder reads its source at once; a decoder needs at least two tokens)."
        )
    return lowest, first if word == "prompt" else length


def _absolute(steps: Mapping[Any, Any], length: int, lowest: int) -> Span:
    if not set(steps) <= {"start", "stop"}:
        raise InputError(f"steps: positions in the whole text are {{'start': .., 'stop': ..}}, not {steps!r}.")
    given = {key: value for key, value in steps.items() if value is not None}
    low, high = whole_number(given.get("start", lowest)), whole_number(given.get("stop", length))
    if low is None or high is None:
        raise InputError(f"steps: 'start' and 'stop' are whole numbers, not {steps!r}.")
    if not (lowest <= low <= length and 0 <= high <= length):
        raise InputError(
            f"steps: {steps!r} lies outside the text, whose places go from {lowest} to {length} here "
            "(the first token of a text has nothing before it that could predict it)."
        )
    return low, high


def _relative(part: Any, first: int, length: int) -> list[Span]:
    count = length - first
    if isinstance(part, slice):
        try:
            return [(first + k, first + k + 1) for k in range(*part.indices(count))]
        except (TypeError, ValueError) as error:
            raise InputError(f"steps: {part!r} is no slice of tokens: {error}") from None
    if isinstance(part, tuple):
        ends = [whole_number(end) for end in part]
        if len(ends) != 2 or ends[0] is None or ends[1] is None:
            raise InputError(f"steps: a span is (start, stop), not {part!r}.")
        low, high = (end + count if end < 0 else end for end in ends if end is not None)
        if not 0 <= low <= high <= count:
            raise InputError(f"steps: the span {part!r} lies outside the {count} tokens of the continuation.")
        if low == high:
            raise InputError(f"steps: the span {part!r} is empty.")
        return [(first + low, first + high)]
    index = whole_number(part)
    if index is None:
        raise InputError(
            "steps is None, an index, a slice, a (start, stop) span, a list of these, "
            f"'generated', 'prompt', 'all' or {{'start': .., 'stop': ..}}, not {part!r}."
        )
    if not -count <= index < count:
        raise InputError(f"steps: there is no step {index}; the continuation has {count} tokens.")
    place = first + index % count
    return [(place, place + 1)]


def _joined(tokens: Sequence[Token]) -> Token:
    if len(tokens) == 1:
        return tokens[0]
    return join_tokens(tokens, "".join(token.text for token in tokens))


@dataclass(frozen=True)
class Batch:
    """Sequences side by side, padded: on the left for a decoder alone, on the right for an encoder-decoder.

    Attributes:
        sequences: The sequences.
        inputs: Keyword arguments of the model's forward.
        widths: Padded length of each stream.
        slots: For each sequence, where its tokens stand on the padded token axis.
        query: Position, in the last stream, whose logits predict each step.
        target_ids: The token at each step.
        columns: Weight of each step in each column.
        valid: Which columns a sequence has.
    """

    sequences: tuple[Forced, ...]
    inputs: Mapping[str, Tensor]
    widths: tuple[int, ...]
    slots: tuple[Int[Tensor, " token"], ...]
    query: Int[Tensor, "example step"]
    target_ids: Int[Tensor, "example step"]
    columns: Float[Tensor, "example column step"]
    valid: Bool[Tensor, "example column"]

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each stream starts on the padded token axis."""
        return tuple(sum(self.widths[:k]) for k in range(len(self.widths)))

    @property
    def width(self) -> int:
        """Length of the padded token axis."""
        return sum(self.widths)

    def mask(self, flags: Sequence[Sequence[bool]]) -> Bool[Tensor, "example token"]:
        """Flags of the tokens of each sequence, on the padded token axis; padding is False."""
        import torch

        whole = torch.zeros(len(self.sequences), self.width, dtype=torch.bool)
        for row, (given, slots) in enumerate(zip(flags, self.slots, strict=True)):
            whole[row, slots] = torch.tensor(given, dtype=torch.bool)
        return whole

    def last_seen(self) -> Int[Tensor, "example column"]:
        """The last padded token that any step of a column can see, in the last stream."""
        import torch

        seen = torch.where(self.columns > 0, self.query[:, None, :], torch.tensor(-1)).amax(-1)
        return seen + self.offsets[-1]

    def keep(self) -> int:
        """How many of the last positions of the last stream need logits."""
        return self.widths[-1] - int(self.query.min())


def collate(
    sequences: Sequence[Forced], *, pad: int, accepts: frozenset[str], dtype: Any, least: Sequence[int] = ()
) -> Batch:
    """Pad sequences into one batch.

    Args:
        sequences: The sequences; all for the same model.
        pad: Id that fills; it is masked everywhere.
        accepts: Names of the model's forward arguments.
        dtype: Floating-point type of the column weights.
        least: For each stream, the length it is padded to at least.

    Returns:
        The batch.

    Raises:
        UnsupportedError: The model takes no attention mask, so lengths may not differ.
    """
    import torch

    count = len(sequences)
    streams = len(sequences[0].streams)
    left = streams == 1
    widths = tuple(max([*(len(one.streams[k]) for one in sequences), *least[k : k + 1]]) for k in range(streams))
    if "attention_mask" not in accepts and any(len(o.streams[0]) != widths[0] for o in sequences):
        raise UnsupportedError("this model takes no attention mask; attribute texts of different length one by one.")
    ids = [torch.full((count, width), pad) for width in widths]
    masks = [torch.zeros(count, width, dtype=torch.long) for width in widths]
    slots = []
    offset = [sum(widths[:k]) for k in range(streams)]
    shifts = [widths[-1] - len(one.streams[-1]) if left else 0 for one in sequences]
    for row, one in enumerate(sequences):
        where = []
        for k, stream in enumerate(one.streams):
            place = slice(shifts[row], shifts[row] + len(stream))
            ids[k][row, place] = torch.tensor(stream)
            masks[k][row, place] = 1
            where.append(torch.arange(place.start, place.stop) + offset[k])
        slots.append(torch.cat(where))
    steps = max(len(one.query) for one in sequences)
    wide = max(len(one.columns) for one in sequences)
    # Padding repeats the first step, whose values are finite, at weight zero.
    query = (
        torch.tensor([[*one.query, *[one.query[0]] * (steps - len(one.query))] for one in sequences])
        + torch.tensor(shifts)[:, None]
    )
    target_ids = torch.tensor(
        [[*(t.id for t in one.targets), *[one.targets[0].id] * (steps - len(one.targets))] for one in sequences]
    )
    columns = torch.zeros(count, wide, steps, dtype=dtype)
    valid = torch.zeros(count, wide, dtype=torch.bool)
    for row, one in enumerate(sequences):
        valid[row, : len(one.columns)] = True
        for column, members in enumerate(one.columns):
            columns[row, column, list(members)] = 1.0
    inputs = {"input_ids": ids[0], "attention_mask": masks[0]}
    if not left:
        inputs |= {"decoder_input_ids": ids[1]}
        if "decoder_attention_mask" in accepts:
            inputs["decoder_attention_mask"] = masks[1]
    elif "position_ids" in accepts:
        inputs["position_ids"] = (masks[0].cumsum(-1) - 1).clamp_min(0)
    inputs = {name: value for name, value in inputs.items() if name in accepts}
    return Batch(tuple(sequences), inputs, widths, tuple(slots), query, target_ids, columns, valid)
