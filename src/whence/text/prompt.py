"""What a user may give as a prompt, and how it becomes ids: text, chat messages, ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from whence.core.errors import InputError, ModelError
from whence.core.grouping import first_character
from whence.text.encoded import Encoded, check_ids, encode_ids, encode_text, whole_number, whole_numbers

Messages = Sequence[Mapping[str, str]]
PromptLike = str | Messages | Sequence[int]

# Stands for the first message's content while a template is taken apart, its successors for the next ones:
# private characters that no template writes.
_MARK = 0xF0000


def is_batch(prompt: Any) -> bool:
    """Whether this is a list of prompts rather than one prompt (text, chat messages or ids)."""
    if isinstance(prompt, Iterator):
        return True
    items = _listed(prompt)
    return _is_list(items) and len(items) > 0 and all(_is_text_or_list(item) for item in items)


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
    if isinstance(prompt, str):
        encoded = encode_text(require_tokenizer(tokenizer), prompt) if prompt.strip() else None
    elif _is_chat(_listed(prompt)):
        encoded = _encode_chat(require_tokenizer(tokenizer), _listed(prompt))
    else:
        ids = whole_numbers(prompt)
        if ids is None:
            raise _refusal(_listed(prompt))
        check_ids(ids, vocab_size, "prompt")
        encoded = encode_ids(tokenizer, ids)
    if encoded is None or not encoded.ids:
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


def _listed(prompt: Any) -> Any:
    """An array or a tensor as lists; everything else as it is."""
    return prompt.tolist() if hasattr(prompt, "tolist") else prompt


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


def _is_text_or_list(value: Any) -> bool:
    return isinstance(value, str) or _is_list(_listed(value))


def _is_chat(prompt: Any) -> bool:
    return _is_list(prompt) and len(prompt) > 0 and all(isinstance(message, Mapping) for message in prompt)


def _refusal(prompt: Any) -> InputError:
    """The error for what is no prompt, with the way to say what was probably meant."""
    kinds = f"a prompt is a string, chat messages or a list of ids, not {type(prompt).__name__}: {prompt!r:.80}"
    if isinstance(prompt, Mapping):
        if "input_ids" in prompt:
            return InputError("a prompt of ids is the list of them: give prompt['input_ids'], not the whole mapping.")
        return InputError(f"{kinds}. One chat message stands in a list of its own: [{{'role': .., 'content': ..}}].")
    if not _is_list(prompt):
        return InputError(kinds)
    if is_batch(prompt):
        return InputError(f"{kinds}. This is a list of prompts; here is room for one of them.")
    odd = next(k for k, value in enumerate(prompt) if whole_number(value) is None)
    value = prompt[odd]
    return InputError(
        f"{kinds}. Ids are whole numbers, chat messages are mappings, several prompts are strings or lists; "
        f"place {odd} holds {type(value).__name__}: {value!r:.40}"
    )


def _encode_chat(tokenizer: Any, messages: Messages) -> Encoded:
    for message in messages:
        if not {"role", "content"} <= set(message) or not all(
            isinstance(message[key], str) for key in ("role", "content")
        ):
            raise InputError(
                f"a chat message needs 'role' and 'content' as strings (no lists of parts), not {message!r:.80}"
            )
    if not tokenizer.chat_template:
        raise ModelError(
            "this model's tokenizer has no chat template. Set tokenizer.chat_template, or give the prompt as text."
        )
    encoded = encode_text(tokenizer, _render(tokenizer, messages), special_tokens=False)
    names = _message_names([message["role"] for message in messages])
    spans = _contents(tokenizer, messages, encoded.text)
    segments: list[str] = []
    following = "template"
    for span, special in zip(reversed(encoded.spans), reversed(encoded.special), strict=True):
        if span is None:
            # Part of the character that the next token completes.
            segments.append("template" if special else following)
            continue
        first = first_character(encoded.text, span)
        name = next((names[k] for start, stop, k in spans if start <= first < stop), "template")
        segments.append(name)
        following = name
    return replace(encoded, segments=tuple(reversed(segments)))


def _render(tokenizer: Any, messages: Messages) -> str:
    plain = [dict(message) for message in messages]
    try:
        return tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    except Exception as error:
        # Templates refuse roles and orders with errors of jinja2, or stumble over them with any other.
        raise InputError(f"the tokenizer's chat template cannot render these messages: {error}") from error


def _message_names(roles: Sequence[str]) -> list[str]:
    """One name per message: its role, numbered from the second of a role on."""
    names: list[str] = []
    for index, role in enumerate(roles):
        number = roles[: index + 1].count(role)
        name = role if number == 1 else f"{role} {number}"
        while name in names or name == "template":
            number += 1
            name = f"{role} {number}"
        names.append(name)
    return names


def _contents(tokenizer: Any, messages: Messages, text: str) -> list[tuple[int, int, int]]:
    """Start, stop and number of the message, for every place of the text that holds a message's content."""
    marked = [
        {**message, "content": chr(_MARK + k) if message["content"].strip() else message["content"]}
        for k, message in enumerate(messages)
    ]
    try:
        frame = _render(tokenizer, marked)
    except InputError:
        # Some templates read the content, and refuse a mark in its place.
        return _searched(messages, text)
    found = _framed(messages, frame, text)
    return _searched(messages, text) if found is None else found


def _framed(messages: Messages, frame: str, text: str) -> list[tuple[int, int, int]] | None:
    """Where contents stand, given the text that the template writes around marks; None if it differs here."""
    marks = [place for place, char in enumerate(frame) if 0 <= ord(char) - _MARK < len(messages)]
    around = [frame[a + 1 : b] for a, b in zip([-1, *marks], [*marks, len(frame)], strict=True)]
    if not text.startswith(around[0]):
        return None
    found = []
    place = len(around[0])
    for mark, after in zip(marks, around[1:], strict=True):
        number = ord(frame[mark]) - _MARK
        content = messages[number]["content"]
        forms = (content, content.strip(), content.lstrip(), content.rstrip())
        length = next((len(form) for form in forms if text.startswith(form + after, place)), None)
        if length is not None:
            stop = place + length
        elif after and after in text[place:]:
            # Templates may shorten a content, such as the reasoning of earlier answers.
            stop = text.index(after, place)
        else:
            return None
        found.append((place, stop, number))
        place = stop + len(after)
    return found if place == len(text) else None


def _searched(messages: Messages, text: str) -> list[tuple[int, int, int]]:
    found = []
    place = 0
    for number, message in enumerate(messages):
        for form in (message["content"], message["content"].strip()):
            start = text.find(form, place)
            if form.strip() and start >= 0:
                place = start + len(form)
                found.append((start, place, number))
                break
    return found
