"""What a user may give as a prompt, and how it becomes ids: text, chat messages, ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from whence.core.errors import InputError, ModelError
from whence.text.encoded import Encoded, check_ids, encode_ids, encode_text

Messages = Sequence[Mapping[str, str]]
PromptLike = str | Messages | Sequence[int]


def is_batch(prompt: Any) -> bool:
    """Whether this is a list of prompts rather than one prompt (text, chat messages or ids)."""
    if isinstance(prompt, str | Mapping):
        return False
    if hasattr(prompt, "ndim"):
        return prompt.ndim > 1
    return not (_is_ids(prompt) or _is_chat(prompt))


def encode_prompt(tokenizer: Any, prompt: Any, vocab_size: int) -> Encoded:
    """Turn one prompt into ids.

    Args:
        tokenizer: A transformers tokenizer; None is allowed when the prompt is ids already.
        prompt: A string; chat messages (``[{"role": ..., "content": ...}, ...]``), which go through the
            tokenizer's chat template and become one segment per message; or ids.
        vocab_size: Rows of the model's embedding matrix.

    Returns:
        The encoded prompt.

    Raises:
        InputError: The prompt is empty, of another kind, or has ids outside the vocabulary.
        ModelError: Text was given, but the model has no tokenizer, or a chat and no chat template.
    """
    if hasattr(prompt, "tolist"):
        prompt = prompt.tolist()
    if isinstance(prompt, str):
        if not prompt.strip():
            raise InputError("the prompt is empty. Give some text, chat messages or ids.")
        encoded = encode_text(require_tokenizer(tokenizer), prompt)
    elif _is_chat(prompt):
        encoded = _encode_chat(require_tokenizer(tokenizer), prompt)
    elif _is_ids(prompt):
        encoded = encode_ids(tokenizer, prompt)
    else:
        raise InputError(
            f"a prompt is a string, chat messages or a list of ids, not {type(prompt).__name__}: {prompt!r:.80}"
        )
    if not encoded.ids:
        raise InputError("the prompt is empty. Give some text, chat messages or ids.")
    check_ids(encoded.ids, vocab_size, "prompt")
    return encoded


def require_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer, or the error that says how to give one.

    Raises:
        ModelError: There is none.
    """
    if tokenizer is None:
        raise ModelError(
            "this model has no tokenizer, so it cannot read text. Load it with "
            "whence.load(model, tokenizer=...), or give the prompt and the continuation as lists of ids."
        )
    return tokenizer


def _is_ids(prompt: Any) -> bool:
    return (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, str)
        and len(prompt) > 0
        and all(isinstance(i, int) and not isinstance(i, bool) for i in prompt)
    )


def _is_chat(prompt: Any) -> bool:
    return (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, str)
        and len(prompt) > 0
        and all(isinstance(message, Mapping) for message in prompt)
    )


def _encode_chat(tokenizer: Any, messages: Messages) -> Encoded:
    for message in messages:
        if not {"role", "content"} <= set(message) or not isinstance(message["content"], str):
            raise InputError(f"a chat message needs 'role' and 'content' as strings, not {message!r:.80}")
    if not tokenizer.chat_template:
        raise ModelError(
            "this model's tokenizer has no chat template. Set tokenizer.chat_template, or give the prompt as text."
        )
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    encoded = encode_text(tokenizer, text, special_tokens=False)
    named: list[tuple[int, int, str]] = []
    seen: dict[str, int] = {}
    end = 0
    for message in messages:
        content = message["content"].strip()
        start = text.find(content, end)
        if start < 0 or not content:
            continue
        end = start + len(content)
        role = message["role"]
        seen[role] = seen.get(role, 0) + 1
        named.append((start, end, role if seen[role] == 1 else f"{role} {seen[role]}"))
    segments = []
    for span in encoded.spans:
        first = -1 if span is None else first_character(text, span)
        segments.append(next((name for a, b, name in named if a <= first < b), "template"))
    return replace(encoded, segments=tuple(segments))


def first_character(text: str, span: tuple[int, int]) -> int:
    """Place of the first character of a span that is not white space (its last one if all are)."""
    start, stop = span
    while start < stop - 1 and text[start].isspace():
        start += 1
    return start
