"""Results saved by Inseq 0.7: its JSON, per-token or raw, of decoder-only and encoder-decoder models.

Every object in such a file is ``{"__instance_type__": [module, class], "attributes": {...}}``, or its attributes alone;
every array is a safetensors file as base64 with tokens on the first axis and generated tokens on the second. Nothing in
a file is executed or imported. The record of single steps, which Inseq itself cannot read back, is left out.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from safetensors import deserialize

from whence.core.errors import FileFormatError
from whence.core.tokens import Token
from whence.scores.array import Axis, Scores
from whence.scores.attribution import Attribution
from whence.scores.attributions import Attributions
from whence.scores.inseq_tokens import Piece, tokens_of

# What lies behind tokens and generated tokens; of the methods of the model's internals, and of all others.
_BEHIND = {True: ("layer", "head"), False: ("unit",)}
_INTERNALS = frozenset({"attention", "value_zeroing"})
# Inseq's step functions that are no means over a span.
_MERGES = {
    **dict.fromkeys(("probability", "contrast_prob", "mc_dropout_prob_avg"), "prod"),
    **dict.fromkeys(("logit", "entropy", "crossentropy", "pcxmi", "kl_divergence", "in_context_pvi"), "sum"),
    "perplexity": "geometric",
}


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _Token(_Part):
    id: int | str
    token: str


class _Sequence(_Part):
    source: list[_Token]
    target: list[_Token]
    source_attributions: str | None = None
    target_attributions: str | None = None
    step_scores: dict[str, str] | None = None
    sequence_scores: dict[str, str] | None = None
    attr_pos_start: int = 0
    attr_pos_end: int | None = None


class _Output(_Part):
    sequence_attributions: list[_Sequence]
    info: dict[str, Any]


def is_inseq(found: Any) -> bool:
    """Whether parsed JSON is a result of Inseq."""
    return isinstance(found, dict) and "sequence_attributions" in (found.get("attributes") or found)


def from_inseq(found: Any) -> Attributions:
    """One attribution per sequence of a file.

    Args:
        found: The parsed JSON.

    Returns:
        Scores as they were saved: per token where they were aggregated, else with axes of units, or of layers and
        heads. Texts are those that the tokens stand for, found in the texts of the record where they are there.
        ``info["inseq"]`` is the file's own record.

    Raises:
        FileFormatError: Arrays and tokens do not fit together, or an array is damaged.
        ValidationError: A field is missing or of another kind.
    """
    output = _Output.model_validate(_bare(found))
    return Attributions(tuple(_one(k, each, output.info) for k, each in enumerate(output.sequence_attributions)))


def _bare(value: Any) -> Any:
    """Objects as their attributes."""
    if isinstance(value, list):
        return [_bare(item) for item in value]
    if isinstance(value, dict):
        inner = value["attributes"] if "__instance_type__" in value and "attributes" in value else value
        return {key: _bare(item) for key, item in inner.items()} if isinstance(inner, dict) else inner
    return value


def _one(number: int, given: _Sequence, info: Mapping[str, Any]) -> Attribution:
    method = str(info.get("attribution_method") or "")
    decoder_only = given.source_attributions is None and given.target[: len(given.source)] == given.source
    start = given.attr_pos_start
    stop = len(given.target) if given.attr_pos_end is None else given.attr_pos_end
    if not 0 <= start <= stop <= len(given.target):
        raise FileFormatError(
            f"the explained tokens {start} to {stop} do not lie within the {len(given.target)} tokens"
        )
    pieces = [Piece(one.id if isinstance(one.id, int) else -1, one.token) for one in given.target]
    sources = [Piece(one.id if isinstance(one.id, int) else -1, one.token) for one in given.source]
    text = _text(info, "generated_texts", number)
    if decoder_only:
        everything = tokens_of(pieces, text, split=len(sources))
        source, target = everything[: len(sources)], everything[len(sources) :]
        steps = everything[start:stop]
        # A step never looks at itself or beyond, so the last explained token has no scores of its own.
        seen = everything[: max(stop - 1, len(sources))]
    else:
        source, target = (
            tokens_of(sources, _text(info, "input_texts", number), split=len(sources)),
            tokens_of(pieces, text, split=0),
        )
        steps = target[start:stop]
        seen = (*source, *(target[: max(stop - 1, 0)] if given.target_attributions is not None else ()))
    scores = _scores(given, method, source if not decoder_only else (), seen, steps)
    step_scores = {
        name: _array(text, f"step score {name}").reshape(-1) for name, text in (given.step_scores or {}).items()
    }
    internals = method in _INTERNALS
    return Attribution(
        scores=scores,
        tokens=seen,
        steps=tuple(_step(token) for token in steps),
        step_scores=step_scores,
        info={
            "method": method,
            "target": None if internals else str(info.get("attributed_fn") or "").removesuffix("_fn"),
            "model": info.get("model_name"),
            "default_view": {"unit": "l2", "head": "mean", "layer": "mean"},
            "additive": False,
            "signed": bool((scores.values < 0).any()),
            "join": "l2" if method == "saliency" else "sum",
            "merges": {name: _MERGES[name] for name in step_scores if name in _MERGES},
            "inseq": dict(info),
        },
        extras=_extras(given, method, source, target),
    )


def _step(token: Token) -> Token:
    """A step as whence has it: of the text that is explained, also where Inseq counts it as prompt."""
    return replace(token, side="prefix", segment="prefix")


def _scores(
    given: _Sequence, method: str, source: tuple[Token, ...], seen: tuple[Token, ...], steps: tuple[Token, ...]
) -> Scores:
    """Both arrays of a sequence on one token axis, steps first; NaN where there is none."""
    arrays: list[np.ndarray] = []
    for name, text, rows, kept in (
        ("source_attributions", given.source_attributions, len(given.source), len(source)),
        ("target_attributions", given.target_attributions, len(given.target), len(seen) - len(source)),
    ):
        if text is None:
            continue
        values = _array(text, name)
        if values.ndim < 2 or values.shape[:2] != (rows, len(steps)):
            raise FileFormatError(
                f"{name} has shape {values.shape}, but there are {rows} tokens and {len(steps)} steps"
            )
        if not np.isnan(values[kept:]).all():
            raise FileFormatError(f"{name} has scores of tokens that no step can see")
        arrays.append(np.swapaxes(values[:kept], 0, 1))
    if not arrays:
        arrays = [np.full((len(steps), len(seen)), np.nan)]
    if len({values.shape[2:] for values in arrays}) > 1:
        raise FileFormatError("source_attributions and target_attributions have different axes")
    return _named(np.concatenate(arrays, axis=1), method, steps, seen)


def _extras(given: _Sequence, method: str, source: tuple[Token, ...], target: tuple[Token, ...]) -> dict[str, Scores]:
    """Scores within the encoder and within the decoder."""
    found: dict[str, Scores] = {}
    for name, text in (given.sequence_scores or {}).items():
        tokens = source if name.startswith("encoder") else target
        values = _array(text, name)
        if values.ndim >= 2 and values.shape[:2] == (len(tokens), len(tokens)):
            short = name.removesuffix("_attentions").removesuffix("_scores")
            found[short] = _named(np.swapaxes(values, 0, 1), method, tokens, tokens)
    return found


def _named(values: np.ndarray, method: str, steps: tuple[Token, ...], tokens: tuple[Token, ...]) -> Scores:
    behind = _BEHIND[method in _INTERNALS]
    if values.ndim - 2 > len(behind):
        raise FileFormatError(f"scores of {method} have {values.ndim} axes; at most {2 + len(behind)} are known")
    labels = [tuple(token.text for token in steps), tuple(token.text for token in tokens)]
    labels += [tuple(map(str, range(size))) for size in values.shape[2:]]
    axes = tuple(Axis(name, texts) for name, texts in zip(("step", "token", *behind), labels, strict=False))
    return Scores(values, axes)


def _text(info: Mapping[str, Any], key: str, number: int) -> str | None:
    texts = info.get(key)
    found = texts[number] if isinstance(texts, list) and number < len(texts) else None
    return found if isinstance(found, str) else None


def _array(text: str, name: str) -> np.ndarray:
    """An array of 32, 16 or 8 bits per number."""
    parts = dict(deserialize(base64.b64decode(text, validate=True)))
    if set(parts) != {"attribution"}:
        raise FileFormatError(f"{name} holds {', '.join(parts) or 'nothing'}, not 'attribution'")
    one = parts["attribution"]
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
    if one["dtype"] in kinds:
        values = np.frombuffer(bytes(one["data"]), dtype=kinds[one["dtype"]])
    elif one["dtype"] == "F8_E4M3":
        values = _eight_bits(np.frombuffer(bytes(one["data"]), dtype=np.uint8))
    else:
        raise FileFormatError(f"{name} is of type {one['dtype']}, not one of {', '.join(kinds)}, F8_E4M3")
    return values.astype(np.float32).reshape(one["shape"])


def _eight_bits(codes: np.ndarray) -> np.ndarray:
    """Numbers of one sign, four exponent and three fraction bits, without infinities (OCP 8-bit E4M3)."""
    exponent, fraction = (codes >> 3) & 15, codes & 7
    sizes = np.where(exponent == 0, fraction * 2.0**-9, (8 + fraction) * 2.0 ** (exponent.astype(np.float64) - 10))
    sizes = np.where((exponent == 15) & (fraction == 7), np.nan, sizes)
    return np.where(codes >> 7, -sizes, sizes)
