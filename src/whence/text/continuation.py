"""The text that is explained: forced by the user, or generated; in both cases ids first."""

from __future__ import annotations

from typing import Any

from whence.core.errors import InputError
from whence.text.encoded import Encoded, check_ids, check_text, encode_ids, whole_numbers
from whence.text.prompt import require_tokenizer


def encode_continuation(
    tokenizer: Any, continuation: Any, *, prompt: Encoded, vocab_size: int, encoder_decoder: bool
) -> Encoded:
    """Turn a given continuation into ids that follow the prompt's.

    Args:
        tokenizer: A transformers tokenizer; None is allowed when the continuation is ids already.
        continuation: Text, or ids. Text is tokenised on its own, so begin it with the space that
            separates it from the prompt. For encoder-decoder models it is tokenised as a target
            text, with the tokens a target has (language tag, end).
        prompt: The encoded prompt in front of it.
        vocab_size: Rows of the model's embedding matrix.
        encoder_decoder: Whether the continuation is read by a decoder of its own.

    Returns:
        The encoded continuation.

    Raises:
        InputError: The continuation is empty, of another kind, or has ids outside the vocabulary.
        ModelError: Text was given, but the model has no tokenizer.
    """
    if isinstance(continuation, str):
        check_text(continuation, "continuation")
        made = require_tokenizer(tokenizer)
        if not continuation:
            ids = []
        elif encoder_decoder:
            ids = made(text_target=continuation)["input_ids"]
        else:
            ids = _following_ids(made, continuation, prompt)
    else:
        ids = whole_numbers(continuation)
        if ids is None:
            raise InputError(
                "a continuation is a string or a list of ids (whole numbers), "
                f"not {type(continuation).__name__}: {continuation!r:.80}"
            )
    if not ids:
        raise InputError(
            "the continuation is empty, so there is nothing to explain. Leave it out to let the model "
            'generate, or explain the prompt\'s own tokens with steps="prompt".'
        )
    check_ids(ids, vocab_size, "continuation")
    return encode_generated(tokenizer, ids, prompt=prompt, encoder_decoder=encoder_decoder)


def encode_generated(tokenizer: Any, ids: Any, *, prompt: Encoded, encoder_decoder: bool) -> Encoded:
    """View generated ids as text; they are never tokenised again.

    Args:
        tokenizer: A transformers tokenizer, or None.
        ids: The generated ids.
        prompt: The prompt they follow.
        encoder_decoder: Whether they start a text of their own.

    Returns:
        The encoded continuation.
    """
    return encode_ids(tokenizer, ids, before=() if encoder_decoder else prompt.ids, segment="prefix")


def _following_ids(tokenizer: Any, text: str, prompt: Encoded) -> list[int]:
    """Ids of a text that follows the prompt, whose first space is there once."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not text.startswith(" ") or not text.strip():
        return ids
    if encode_ids(tokenizer, ids, before=prompt.ids).text != f" {text}":
        return ids
    # The tokenizer puts a space of its own in front of every text: Llama 2 reads " he" as "▁", "▁he".
    bare = tokenizer(text[1:], add_special_tokens=False)["input_ids"]
    return bare if encode_ids(tokenizer, bare, before=prompt.ids).text == text else ids
