"""One small tokenizer of every kind, trained on a few lines in many scripts; no network."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = (
    "Hello world, don't panic! The cat sat on the mat. naïve café 你好世界。 हिन्दी में नमस्ते 🤗🤗 "
    "price 3.5\n\n\tthe cat sat because he saw the bird"
)
SPECIALS = ["<pad>", "<s>", "</s>", "<unk>"]
PAD, BOS, EOS, UNK = range(4)
# Kinds that can write any text, so that nothing of it becomes an unknown word; and all kinds.
LOSSLESS = ("bytes", "trimmed", "fallback")
KINDS = (*LOSSLESS, "unigram", "wordpiece", "words")

# Enough to meet every kind of trouble in the texts below, times the kinds of tokenizers.
few = settings(max_examples=40, deadline=None)

_FRAGMENTS = [
    "Hello", " world", "the cat", "don't", "日", "本", "你好。", "हिन्दी", "é", "e\u0301", "½", "🤗", "👩‍👩‍👧", "❤️",
    " ", "  ", "\n", "\n\n", "\t", " \n ", "\u3000", ".", "3.5", "-", "x", "\u200b", "\x00",
]  # fmt: skip
texts = st.lists(
    st.sampled_from(_FRAGMENTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=14
).map("".join)


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a kind, with begin and end tokens around every text."""
    inner, trainer = _PARTS[kind]()
    if trainer is not None:
        inner.train_from_iterator([TEXT] * 4, trainer)
    ends = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)])
    trim = [processors.ByteLevel(add_prefix_space=False, trim_offsets=True)] if kind == "trimmed" else []
    inner.post_processor = processors.Sequence([*trim, ends])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def _bytes() -> tuple[Tokenizer, Any]:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": SPECIALS, "initial_alphabet": alphabet, "show_progress": False}
    return inner, trainers.BpeTrainer(vocab_size=330, **options)


def _fallback() -> tuple[Tokenizer, Any]:
    """As Llama 2: a space in front of every text, marks for spaces, bytes for unknown characters."""
    known = sorted(set("▁abcdefghijklmnoprstuw.,\n世好"))
    pieces = ["▁t", "he", "▁the", "▁h", "▁he"]
    names = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *known, *pieces]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "h"), ("▁", "he")]
    vocabulary = {name: number for number, name in enumerate(names)}
    inner = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    inner.add_special_tokens(SPECIALS)
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return inner, None


def _unigram() -> tuple[Tokenizer, Any]:
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    return inner, trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )


def _wordpiece() -> tuple[Tokenizer, Any]:
    inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    return inner, trainers.WordPieceTrainer(vocab_size=140, special_tokens=SPECIALS, show_progress=False)


def _words() -> tuple[Tokenizer, Any]:
    inner = Tokenizer(models.WordLevel(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return inner, trainers.WordLevelTrainer(vocab_size=60, special_tokens=SPECIALS, show_progress=False)


_PARTS = {
    "bytes": _bytes,
    "trimmed": _bytes,
    "fallback": _fallback,
    "unigram": _unigram,
    "wordpiece": _wordpiece,
    "words": _words,
}


class SlowTokenizer:
    """What a tokenizer written in Python offers: ids and decoding, no offsets. It counts what it decodes."""

    is_fast = False

    def __init__(self, fast: PreTrainedTokenizerFast) -> None:
        self.fast = fast
        self.all_special_ids = fast.all_special_ids
        self.chat_template = fast.chat_template
        self.decoded = 0

    def __call__(self, text: str | None = None, *, add_special_tokens: bool = True, text_target: str | None = None):
        # A target has a language tag in front (the padding token plays it), a source has not.
        if text_target is not None:
            return {"input_ids": [PAD, *self.fast(text_target, add_special_tokens=False)["input_ids"], EOS]}
        return {"input_ids": self.fast(text, add_special_tokens=add_special_tokens)["input_ids"]}

    def decode(self, ids: list[int], **options: bool) -> str:
        self.decoded += len(ids)
        return self.fast.decode(ids, **options)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return self.fast.convert_ids_to_tokens(ids)

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        return self.fast.apply_chat_template(messages, chat_template=self.chat_template, **options)
