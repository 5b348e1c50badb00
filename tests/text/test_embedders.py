"""Embedders: a small encoder of random weights against its own forward pass, and a cache made by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from text.small_tokenizers import KINDS, TEXT, tokenizer_of
from tiny_models import tiny_model, tiny_tokenizer
from whence.core.errors import InputError, ModelError, UnknownNameError, UnsupportedError
from whence.text.alignment import align
from whence.text.embedders import LABSE, EncoderEmbedder, MatrixEmbedder, embed, load_embedder

LAYERS = 9
WORDS = ["the", "cat", "sat", ".", "mat", "the", "你"]


def bert_tokenizer():
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=False)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=names, show_progress=False)
    inner.train_from_iterator([TEXT] * 4, trainer)
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(3)
    tokenizer = bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
        initializer_range=0.3,
    )
    return BertModel(config).eval(), tokenizer


@pytest.fixture(scope="module")
def folder(bert, tmp_path_factory):
    place = tmp_path_factory.mktemp("encoder")
    for part in bert:
        part.save_pretrained(place)
    return place


def states(bert, text, layer):
    """Hidden states of a text as the tokenizer itself prepares it, and the word of each."""
    encoder, tokenizer = bert
    batch = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder(**batch, output_hidden_states=True).hidden_states[layer][0]
    words = batch.word_ids()
    inside = [place for place, word in enumerate(words) if word is not None]
    return hidden[inside].double().numpy(), [words[place] for place in inside]


@pytest.mark.parametrize("layer", [0, 1, 8, LAYERS])
def test_vectors_are_hidden_states_of_the_text(bert, folder, layer):
    vectors, places = load_embedder(folder, layer=layer)(WORDS)
    expected, words = states(bert, " ".join(WORDS), layer)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert places == words
    assert len(places) > len(WORDS)


def test_a_long_text_is_read_in_parts_that_follow_each_other(bert):
    embedder = EncoderEmbedder("bert", *bert, layer=8)
    room = 40 - 2 - 2
    vectors, places = embedder(["cat"] * (2 * room + 5))
    assert places == list(range(2 * room + 5))
    np.testing.assert_allclose(vectors[room : 2 * room], vectors[:room])
    np.testing.assert_allclose(vectors[:room], embedder(["cat"] * room)[0])
    np.testing.assert_allclose(vectors[2 * room :], embedder(["cat"] * 5)[0])
    assert not np.allclose(vectors[0], vectors[1])


def test_words_that_the_tokenizer_drops_have_no_vector(bert):
    embedder = EncoderEmbedder("bert", *bert)
    vectors, places = embedder(["\ufffd", "cat"])
    assert set(places) == {1}
    assert vectors.shape == (len(places), 16)
    assert embedder(["\ufffd"])[0].shape == (0, 16)
    assert align("\ufffd cat", "\ufffd", embedder=embedder).pairs == ()


def test_a_model_without_begin_and_end_is_an_encoder_too(tmp_path):
    gpt2, tokenizer = tiny_model("gpt2"), tiny_tokenizer("gpt2")
    gpt2.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    vectors, places = load_embedder(str(tmp_path), layer=1)(["the", "cat"])
    ids = torch.tensor([tokenizer("the cat", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        expected = gpt2(ids, output_hidden_states=True).hidden_states[1][0]
    np.testing.assert_allclose(vectors, expected.double().numpy(), atol=1e-6)
    assert places == [0, 1]


def test_a_folder_aligns_texts(bert, folder):
    found = align("the cat sat", "sat the mat", embedder=folder, layer=2, method="mutual")
    (one, row_words), (other, column_words) = states(bert, "the cat sat", 2), states(bert, "sat the mat", 2)
    cosines = [[v @ w / np.sqrt((v @ v) * (w @ w)) for w in other] for v in one]
    columns = list(zip(*cosines, strict=True))
    pairs = set()
    for i, row in enumerate(cosines):
        j = int(np.argmax(row))
        if int(np.argmax(columns[j])) == i:
            pairs.add((row_words[i], column_words[j]))
    assert found.pairs == tuple(sorted(pairs))
    assert found.record["embedder"] == str(folder)
    assert found.record["layer"] == 2


# What cannot be loaded.


def test_layers_that_are_not_there(folder):
    for layer in (-1, LAYERS + 1):
        with pytest.raises(InputError, match=f"hidden states 0 to {LAYERS}"):
            load_embedder(folder, layer=layer)


def test_a_decoder_is_refused(tmp_path):
    tiny_model("t5").save_pretrained(tmp_path)
    tiny_tokenizer("t5").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="give an encoder"):
        load_embedder(tmp_path)


def test_folders_without_an_encoder(tmp_path):
    with pytest.raises(ModelError, match="could not be loaded"):
        load_embedder(tmp_path)
    with pytest.raises(ModelError, match="no such folder"):
        load_embedder(tmp_path / "missing")
    with pytest.raises(ModelError, match="neither a folder nor a hub id"):
        load_embedder("some/encoder of mine")
    with pytest.raises(UnknownNameError, match="Did you mean 'labse'"):
        load_embedder("lapse")


def test_without_the_extra_the_message_has_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'whence\[align\]'"):
        load_embedder("labse")
    found = align("the red house", "the old house")
    assert found.record["rule"] == "diff"
    assert "pip install 'whence[align]'" in found.record["warnings"][0]


def test_what_is_not_in_the_cache_is_fetched_only_where_it_may_be():
    with pytest.raises(ModelError, match=r"load_embedder\('no/such-encoder'\) fetches it"):
        load_embedder("no/such-encoder", download=False)
    with pytest.raises(ModelError, match="cannot be asked"):
        load_embedder("no/such-encoder")


# LaBSE itself is too large for a test: an encoder stands in its place in a cache of the hub.
CACHED = """
import json, sys
from whence.core.tokens import Token
from whence.text.step_alignment import align_steps
from whence.text.alignment import align

def tokens(text):
    return [Token(len(word), " " + word, None, None, "prefix") for word in text.split()]

steps = align_steps(tokens("the cat sat"), tokens("the bird saw it"), "auto")
texts = align("the cat sat", "the bird saw it")
print(json.dumps([steps.partner, steps.record, texts.pairs, texts.record]))
"""


def test_auto_is_labse_where_it_is_in_the_cache(bert, tmp_path):
    entry = tmp_path / f"models--{LABSE.replace('/', '--')}"
    place = entry / "snapshots" / "0123"
    place.mkdir(parents=True)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("0123")
    for part in bert:
        part.save_pretrained(place)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    (place / "modules.json").write_text(json.dumps(modules))
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CACHED], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    partner, of_steps, pairs, of_texts = json.loads(done.stdout.splitlines()[-1])
    assert of_steps["rule"] == of_texts["rule"] == "embedder"
    assert of_steps["embedder"] == of_texts["embedder"] == LABSE
    assert of_steps["layer"] == 8
    assert of_steps["warnings"] == []
    expected = align("the cat sat", "the bird saw it", embedder=EncoderEmbedder("bert", *bert))
    assert [tuple(pair) for pair in pairs] == list(expected.pairs)
    assert len(partner) == 3


@pytest.fixture
def library(bert, monkeypatch):
    """What is asked of sentence-transformers, which has the small encoder under every name."""
    asked = []

    class Loaded(list):
        def __init__(self, where, **options):
            asked.append((where, options["local_files_only"]))
            # As after training, when dropout is on.
            super().__init__([type("Transformer", (), {"auto_model": bert[0].train()})])
            self.tokenizer = bert[1]

    stand_in = type("Library", (), {"SentenceTransformer": Loaded})
    monkeypatch.setattr("whence.text.embedders.require", lambda name, extra: stand_in)
    yield asked
    bert[0].eval()


def test_a_folder_of_sentence_transformers_is_read_by_it(bert, tmp_path, library):
    (tmp_path / "modules.json").write_text("[]")
    found = load_embedder(tmp_path)
    assert library == [(str(tmp_path), True)]
    np.testing.assert_allclose(found(WORDS)[0], states(bert, " ".join(WORDS), 8)[0], atol=1e-6)


@pytest.mark.parametrize("cached", [True, False])
def test_what_the_cache_has_is_not_asked_for_at_the_hub(cached, library, monkeypatch):
    calls = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: "config.json" if cached else None)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, name, **_: calls.append(name))
    assert load_embedder("some/encoder").name == "some/encoder"
    assert library == [("some/encoder", cached)]
    assert calls == ([] if cached else ["some/encoder"])


# The rows of a matrix.


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_the_tokens_as_they_stand_in_a_text(kind):
    tokenizer = tokenizer_of(kind)
    matrix = np.random.default_rng(0).normal(size=(len(tokenizer), 6))
    vectors, places = MatrixEmbedder("model", matrix, tokenizer)(["the", "cat"])
    inside = tokenizer(" the cat", add_special_tokens=False)["input_ids"]
    first = tokenizer("the", add_special_tokens=False)["input_ids"]
    second = tokenizer(" cat", add_special_tokens=False)["input_ids"]
    assert len(vectors) == len(places) <= min(len(inside), len(first) + len(second))
    if kind in ("bytes", "trimmed", "wordpiece", "words", "unigram"):
        np.testing.assert_array_equal(vectors, matrix[inside])
    assert places == sorted(places)
    assert set(places) == {0, 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_matrix_may_be_a_tensor(dtype):
    tokenizer = tokenizer_of("bytes")
    matrix = torch.randn(len(tokenizer), 6, requires_grad=True).to(dtype)
    embedder = MatrixEmbedder("model", matrix, tokenizer)
    ids = tokenizer(" cat", add_special_tokens=False)["input_ids"]
    vectors, _ = embed(embedder, ["cat"])
    np.testing.assert_array_equal(vectors, matrix[ids].detach().double().numpy())
    found = align("the cat sat", "sat the mat", embedder=embedder)
    assert found.record["embedder"] == "model"
    assert found.pairs


# What embedders may not return.


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.zeros((2, 3)), "a pair"),
        ((np.zeros(2), [0, 1]), r"shape \(2,\)"),
        ((np.zeros((2, 3)), [0]), "for each the place"),
        ((np.zeros((2, 3)), [0, 2]), "word 2, but words are counted from 0 to 1"),
        ((np.zeros((2, 3)), [0, 0.5]), "for each the place"),
        ((np.full((2, 3), np.nan), [0, 1]), "infinite or none"),
    ],
)
def test_answers_of_another_form_are_refused(answer, message):
    with pytest.raises(InputError, match=message):
        embed(lambda words: answer, ["a", "b"])
