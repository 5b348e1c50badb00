"""load(): folders, models in memory, dtypes, tokenizers, and what it says when something is missing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from tiny_models import tiny_model, tiny_tokenizer
from whence.models.components import Site

PROMPT, CONTINUATION = [7, 21, 9], [17, 8]


@pytest.fixture(scope="module", params=["gpt2", "bart"])
def folder(request, tmp_path_factory):
    where = tmp_path_factory.mktemp("checkpoints") / request.param
    tiny_model(request.param).save_pretrained(where)
    tiny_tokenizer(request.param).save_pretrained(where)
    return where


def test_a_local_folder_gives_the_same_scores_as_the_model_in_memory(folder):
    loaded = whence.load(folder)
    assert loaded.tokenizer is not None
    assert loaded.encoder_decoder == (folder.name == "bart")
    in_memory = whence.load(tiny_model(folder.name))
    a, b = (m.attribute(PROMPT, CONTINUATION).scores.values for m in (loaded, in_memory))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (None, torch.float32),
        ("float64", torch.float64),
        (torch.bfloat16, torch.bfloat16),
        ("auto", torch.float16),
    ],
)
def test_dtype_is_the_asked_one_and_float32_on_a_cpu_by_default(tmp_path, dtype, expected):
    tiny_model("llama").half().save_pretrained(tmp_path)
    model = whence.load(tmp_path, dtype=dtype, device="cpu")
    assert model.dtype == expected
    assert model.info["dtype"] == str(expected).removeprefix("torch.")


def test_half_precision_gives_finite_scores_near_those_of_float32(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    exact = whence.load(tmp_path).attribute(PROMPT, CONTINUATION, target="logit")
    rough = whence.load(tmp_path, dtype="bfloat16").attribute(PROMPT, CONTINUATION, target="logit")
    assert rough.verified
    assert exact.scores.equals(rough.scores, atol=0.1 * np.nanmax(np.abs(exact.scores.values)))


def test_a_tokenizer_can_be_given_as_object_or_path(folder):
    hf = tiny_model(folder.name)
    text = folder.name
    given = whence.load(hf, tokenizer=tiny_tokenizer(folder.name))
    by_path = whence.load(tiny_model(folder.name), tokenizer=folder)
    assert given.encode(text).ids == by_path.encode(text).ids


def test_a_folder_without_a_tokenizer_still_loads(tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path)
    model = whence.load(tmp_path)
    assert model.tokenizer is None
    assert model.attribute(PROMPT, CONTINUATION).scores.shape == (2, 4)


def test_a_model_in_training_mode_is_put_into_evaluation_mode():
    hf = tiny_model("gpt2").train()
    whence.load(hf)
    assert not hf.training


def test_the_same_model_can_be_loaded_twice():
    hf = tiny_model("gpt2")
    first, second = whence.load(hf), whence.load(hf)
    a, b = (m.attribute(PROMPT, CONTINUATION).scores for m in (first, second))
    assert a.equals(b)


@pytest.mark.parametrize(
    ("what", "options", "error", "message"),
    [
        ("./nowhere", {}, "ModelError", "no such folder"),
        ("/nowhere/at/all", {}, "ModelError", "no such folder"),
        ("nobody/no-such-model", {}, "ModelError", "nobody/no-such-model could not be loaded"),
        ("whence/story", {}, "UnknownNameError", "Did you mean 'whence/stories'"),
        (object(), {}, "InputError", "a transformers model that generates"),
        ("whence/stories", {"dtype": "float8"}, "UnknownNameError", "unknown dtype"),
        ("whence/stories", {"dtype": "nf5"}, "UnknownNameError", "'nf4'"),
        ("whence/stories", {"remote": "ndfi"}, "UnknownNameError", "Did you mean 'ndif'"),
        ("whence/stories", {"remote": "127.0.0.1:8077"}, "RemoteError", "begins with http://"),
        ("whence/stories", {"remote": "ftp://127.0.0.1"}, "RemoteError", "begins with http://"),
        ("whence/stories", {"remote": "ndif", "dtype": "nf4"}, "InputError", "the place decides"),
        ("whence/stories", {"remote": "ndif", "peers": ["x"]}, "InputError", "remote='petals'"),
        ("whence/stories", {"remote": "petals"}, "InputError", "needs peers="),
        ("whence/stories", {"api_key": "x"}, "InputError", "give remote="),
        (object(), {"remote": "ndif"}, "InputError", "the name of a model"),
        ("whence/en-it", {"tokenizer": "./nowhere"}, "ModelError", "no tokenizer could be loaded"),
    ],
)
def test_what_cannot_be_loaded_says_why(what, options, error, message):
    with pytest.raises(getattr(whence, error), match=message):
        whence.load(what, **options)


def test_loading_options_do_not_apply_to_a_model_in_memory():
    with pytest.raises(whence.InputError, match="revision"):
        whence.load(tiny_model("gpt2"), revision="main")


def test_sites_are_listed_with_their_axes():
    model = whence.load(tiny_model("llama"))
    sites = {site.name: site for site in model.sites()}
    assert all(isinstance(site, Site) for site in sites.values())
    assert sites["blocks.1.attn.pattern"].axes == ("batch", "head", "query", "key")
    assert sites["embed"].cut
    assert [site.order for site in model.sites()] == sorted(site.order for site in model.sites())


def test_internals_have_their_names_inside_a_trace():
    import nnsight

    model = whence.load(tiny_model("llama"), tokenizer=tiny_tokenizer("llama"))
    with model.trace(PROMPT):
        pattern = nnsight.save(model.blocks[1].attn.pattern)
        model.blocks[1].mlp_out = model.blocks[1].mlp_out * 0
        after = nnsight.save(model.blocks[1].resid_post)
        middle = nnsight.save(model.output.logits)
    assert pattern.shape == (1, 4, 3, 3)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(1, 4, 3))
    with model.trace(PROMPT):
        clean = nnsight.save(model.output.logits)
    assert after.shape == (1, 3, 16)
    assert not torch.allclose(clean, middle)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom", "t5", "marian"])
def test_generation_equals_transformers_and_stops_at_the_end_token(family):
    # transformers sizes a cache by the encoder's layers, so both stacks must have as many to generate.
    hf = tiny_model(family, **({"num_decoder_layers": 2} if family == "t5" else {}))
    model = whence.load(hf, tokenizer=tiny_tokenizer(family))
    prompts = [[7, 21, 9, 33], [12, 8]]
    together = model.generate(prompts, max_new_tokens=6)
    for prompt, made in zip(prompts, together, strict=True):
        with torch.no_grad():
            raw = hf.generate(input_ids=torch.tensor([prompt]), max_new_tokens=6, do_sample=False, pad_token_id=0)
        expected = raw[0, 1 if model.encoder_decoder else len(prompt) :].tolist()
        assert list(made.ids) == expected
        end = hf.generation_config.eos_token_id
        assert end not in made.ids[:-1]
    eos = together[0].ids[2]
    cut = model.generate(prompts[0], max_new_tokens=6, eos_token_id=eos)
    assert list(cut.ids) == list(together[0].ids[: together[0].ids.index(eos) + 1])


def test_sampling_follows_the_seed():
    model = whence.load(tiny_model("gpt2"), tokenizer=tiny_tokenizer("gpt2"))
    made = [model.generate(PROMPT, seed=seed, do_sample=True, max_new_tokens=12).ids for seed in (1, 1, 2)]
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_embedding_rows_include_scaling_inside_the_module():
    for family in ("gemma3", "gpt2", "bart"):
        hf = tiny_model(family)
        model = whence.load(hf)
        for stack, found in model.embedding_rows([5, 9]).items():
            module = hf.get_encoder().get_input_embeddings() if stack == "encoder" else None
            module = module or hf.get_decoder().get_input_embeddings() if hf.config.is_encoder_decoder else module
            module = module or hf.get_input_embeddings()
            everything = module(torch.arange(hf.get_input_embeddings().weight.shape[0])).detach()
            torch.testing.assert_close(found["rows"], everything[[5, 9]])
            torch.testing.assert_close(found["mean"], everything.mean(0), rtol=1e-4, atol=1e-6)
            assert found["median_norm"] == pytest.approx(float(everything.norm(dim=1).median()), rel=1e-4)


def test_a_copy_is_the_same_model_and_a_deep_one_is_refused():
    import copy

    model = whence.load(tiny_model("llama"))
    again = copy.copy(model)
    assert again.nn is model.nn
    a, b = (one.attribute(PROMPT, CONTINUATION).scores for one in (model, again))
    assert a.equals(b)
    with pytest.raises(whence.UnsupportedError, match="load it again"):
        copy.deepcopy(model)
