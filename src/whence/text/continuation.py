"""The text that is explained: forced by the user, or generated; in both cases ids first."""

from __future__ import annotations

from typing import Any

from whence.core.errors import InputError
from whence.text.encoded import Encoded, check_ids, encode_ids
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
    if hasattr(continuation, "tolist"):
        continuation = continuation.tolist()
    if isinstance(continuation, str):
        made = require_tokenizer(tokenizer)
        if encoder_decoder:
            ids = made(text_target=continuation)["input_ids"]
        else:
            ids = made(continuation, add_special_tokens=False)["input_ids"]
        empty = not continuation
    elif isinstance(continuation, list | tuple) and all(isinstance(i, int) for i in continuation):
        ids, empty = continuation, not continuation
    else:
        raise InputError(f"a continuation is a string or a list of ids, not {continuation!r:.80}")
    if empty or not ids:
        raise InputError(
            "the continuation is empty, so there is nothing to explain. Leave it out to let the model "
            'generate, or explain the prompt\'s own tokens with steps="prompt".'
        )
    check_ids(ids, vocab_size, "continuation")
    return encode_generated(tokenizer, ids, prompt=prompt, encoder_decoder=encoder_decoder)


def encode_generated(
    tokenizer: Any, ids: Any, *, prompt: Encoded, encoder_decoder: bool
) -> Encoded:
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
