"""The table of architectures: rows fit their models; others are recognised, or refused with reasons."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers

from tiny_models import DECODER_ONLY, ENCODER_DECODER, FAMILIES, VARIANTS, tiny_inputs, tiny_model
from whence.core.errors import ModelError, UnknownNameError
from whence.models.components import architecture
from whence.models.families import FAMILIES as TABLE
from whence.models.families import known_model_types
from whence.models.family import Family, Stack

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

BLOCK = """
resid_pre ln1 attn.q attn.k attn.v attn.scores attn.pattern attn.z attn.result attn_out resid_mid
ln2 mlp.pre mlp.post mlp_out resid_post
"""
CROSS_BLOCK = """
resid_pre ln1 attn.q attn.k attn.v attn.scores attn.pattern attn.z attn.result attn_out resid_mid
ln_cross cross_attn.q cross_attn.k cross_attn.v cross_attn.scores cross_attn.pattern cross_attn.z
cross_attn.result cross_attn_out resid_mid_cross
ln2 mlp.pre mlp.post mlp_out resid_post
"""


def foreign_model(model_type: str) -> transformers.PreTrainedModel:
    """A tiny model of a type that the table does not have."""
    config = transformers.AutoConfig.for_model(model_type, **SMALL)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def renamed(family: str) -> transformers.PreTrainedModel:
    """A tiny model whose configuration calls it something unheard of."""
    model = tiny_model(family)
    model.config = copy.deepcopy(model.config)
    model.config.__dict__["model_type"] = "unheard_of"
    return model


def test_every_model_type_of_the_table_is_tested():
    tested = {tiny_model(family).config.model_type for family in FAMILIES}
    assert set(known_model_types()) - tested == {"gemma3"}  # the same row as gemma3_text, with a vision tower


def test_no_model_type_has_two_rows():
    types = [model_type for family in TABLE for model_type in family.model_types]
    assert len(types) == len(set(types))


@pytest.mark.parametrize("family", FAMILIES + VARIANTS)
def test_sites_are_ordered_plain_data(family: str):
    model = tiny_model(family)
    found = architecture(model)
    assert found.encoder_decoder == model.config.is_encoder_decoder
    assert [site.order for site in found.sites.values()] == list(range(len(found.sites)))
    assert all(site.name == name for name, site in found.sites.items())
    assert {site.name.rpartition(".")[2] for site in found.sites.values() if site.cut} >= {
        "embed",
        "resid_pre",
        "resid_post",
    }
    assert all("resid" in site.name or "embed" in site.name for site in found.sites.values() if site.cut)
    specs = {name: site.spec for name, site in found.sites.items()}
    assert json.loads(json.dumps(specs)) == specs
    for stack, count in found.n_layers.items():
        layers = {site.layer for site in found.sites.values() if site.stack == stack}
        assert layers - {None} == set(range(count))
    assert json.dumps(dict(found.paths))
    embed = model.get_submodule(found.paths["embed"]["decoder"])
    assert embed.weight.shape[0] == model.get_output_embeddings().weight.shape[0]
    assert model.get_submodule(found.paths["unembed"]) is model.get_output_embeddings()


def test_names_are_those_that_users_know():
    found = architecture(tiny_model("llama"))
    names = ["embed", *(f"blocks.{layer}.{name}" for layer in (0, 1) for name in BLOCK.split())]
    assert list(found.sites) == [*names, "ln_final", "unembed", "logits"]
    assert found.site("blocks.1.attn.k").axes == ("batch", "position", "kv_head", "unit")


def test_names_of_encoder_decoder_models():
    found = architecture(tiny_model("t5"))
    assert found.n_layers == {"encoder": 2, "decoder": 3}
    names = [name.removeprefix("decoder.blocks.2.") for name in found.sites if "decoder.blocks.2." in name]
    assert names == CROSS_BLOCK.split()
    assert found.site("decoder.blocks.0.cross_attn.v").axes == ("batch", "source", "kv_head", "unit")
    assert found.site("encoder.blocks.0.resid_mid").stack == "encoder"
    assert {"encoder.embed", "decoder.embed", "encoder.ln_final", "decoder.ln_final"} <= set(found.sites)


@pytest.mark.parametrize("family", ["llama", "t5", "falcon_new"])
def test_weights_are_not_needed(family: str):
    model = tiny_model(family)
    expected = architecture(model)
    assert architecture(model.to("meta")) == expected


@pytest.mark.parametrize("family", [f for f in FAMILIES + VARIANTS if f != "opt_post_norm"])
def test_structure_alone_gives_the_same_sites(family: str):
    assert architecture(renamed(family)) == architecture(tiny_model(family))


@pytest.mark.parametrize(("model_type", "row"), [("olmo", "llama"), ("exaone4", "olmo2"), ("gemma", "llama")])
def test_other_models_of_a_known_structure(model_type: str, row: str):
    assert architecture(foreign_model(model_type)).family == row


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        (
            "cohere",
            "decoder.ln2 ('post_attention_layernorm' in model.layers.0)",
        ),  # parallel branches, one norm
        (
            "granite",
            "model.layers.0 has no line 'hidden_states = residual + hidden_states'",
        ),  # scaled branches
        ("glm4", "model.layers.0.post_self_attn_layernorm has no place"),  # norms that no row names
    ],
)
def test_a_model_that_only_looks_alike_is_refused(model_type: str, reason: str):
    with pytest.raises(ModelError, match=f"does not know the architecture '{model_type}'") as error:
        architecture(foreign_model(model_type))
    assert reason in str(error.value)
    assert "the nearest family is 'llama'" in str(error.value)


def test_a_post_norm_that_the_source_does_not_show_is_refused():
    with pytest.raises(ModelError, match="does not call its parts in the order"):
        architecture(renamed("opt_post_norm"))


def test_a_row_of_ones_own():
    model = foreign_model("cohere")
    row = {
        "like": "llama",
        "name": "mine",
        "decoder": {"order": "resid_pre ln1 attn mlp resid_post", "ln2": ""},
    }
    found = architecture(model, family=row)
    assert found.family == "mine"
    assert "blocks.1.mlp.post" in found.sites
    assert "blocks.0.resid_mid" not in found.sites
    same = Family("mine", decoder=Stack(order="resid_pre ln1 attn mlp resid_post", ln2=""))
    assert list(architecture(model, family=same).sites) == list(found.sites)


def test_a_row_may_replace_one_quoted_line():
    row = {"like": "gpt2", "decoder": {"attention": {"call": "attn = attend("}}}
    found = architecture(tiny_model("gpt2"), family=row)
    assert found.site("blocks.0.attn.q").spec["text"] == "attn = attend("
    assert found.site("blocks.0.attn.q").spec["softmax"] == "own"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"decoder": {"block": "model.layers"}}, r"decoder\.block: .*a stack has embed, blocks"),
        ({"like": "llama", "unembedding": "head"}, r"unembedding: .*A family has name"),
        ({"decoder": {"embed": 3}}, r"decoder\.embed: .*string"),
        ({"like": "lama"}, "no row like 'lama'; known: .*llama"),
        ({"like": "llama", "decoder": {"attention": {"soft": 1}}}, r"decoder\.attention\.soft"),
    ],
)
def test_a_wrong_row_is_explained(row: dict, message: str):
    with pytest.raises(ModelError, match=message):
        architecture(tiny_model("llama"), family=row)


def test_a_row_that_does_not_fit_is_explained():
    with pytest.raises(ModelError, match=r"does not fit the family 'gpt2'; it lacks decoder\.embed") as error:
        architecture(tiny_model("llama"), family={"like": "gpt2", "name": "gpt2"})
    assert "decoder.blocks ('transformer.h')" in str(error.value)


def test_a_configuration_without_the_number_of_heads_is_explained():
    with pytest.raises(ModelError, match="has no 'heads_of_it'"):
        architecture(tiny_model("llama"), family={"like": "llama", "decoder": {"heads": "heads_of_it"}})


def test_one_embedding_module_for_both_stacks_is_refused():
    model = tiny_model("bart")
    model.set_input_embeddings(model.get_input_embeddings())
    with pytest.raises(ModelError, match="are one module"):
        architecture(model)
    model.model.decoder.embed_tokens = copy.copy(model.model.decoder.embed_tokens)
    assert architecture(model) == architecture(tiny_model("bart"))


def test_unknown_sites_list_the_nearest():
    found = architecture(tiny_model("llama"))
    with pytest.raises(UnknownNameError, match=r"Did you mean 'blocks\.1\.attn\.pattern'"):
        found.site("blocks.1.attn.patterns")


@pytest.mark.parametrize(
    ("family", "name", "reason"),
    [
        ("gptj", "blocks.0.resid_mid", "attention and MLP run side by side"),
        ("gpt_neox", "blocks.1.resid_mid", "attention and MLP run side by side"),
        ("falcon", "blocks.0.ln2", "no such norm"),
        ("olmo2", "blocks.0.ln1", "no norm before"),
        ("gpt_oss", "blocks.0.mlp.pre", "mixture of experts"),
        ("qwen3_moe_mixed", "blocks.1.mlp.post", "mixture of experts"),
        ("bart", "encoder.ln_final", "no norm after its last block"),
    ],
)
def test_absent_sites_say_why(family: str, name: str, reason: str):
    found = architecture(tiny_model(family))
    assert name not in found.sites
    with pytest.raises(UnknownNameError, match=reason):
        found.site(name)


def test_layers_of_one_model_may_differ():
    found = architecture(tiny_model("qwen3_moe_mixed"))
    assert "blocks.0.mlp.pre" in found.sites
    assert "blocks.1.mlp_out" in found.sites


@pytest.mark.parametrize("family", DECODER_ONLY + ENCODER_DECODER)
def test_tiny_models_are_the_same_every_time_and_not_degenerate(family: str):
    inputs = tiny_inputs(family)
    with torch.no_grad():
        first, second = (tiny_model(family)(**inputs, use_cache=False).logits for _ in range(2))
    assert torch.equal(first, second)
    assert 0.3 < first.std() < 3
    assert (first[:, 0] - first[:, -1]).abs().max() > 0.1
