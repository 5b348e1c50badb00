# %% [markdown]
# # Translation: one English word decides the Italian ones
#
# "The manager" says nothing about gender, and Italian has to choose: *il direttore* or *la direttrice*. If the
# sentence goes on with "she", the choice is made. `whence/en-it` is a small encoder-decoder model that learned just
# that.

# %%
import whence

model = whence.load("whence/en-it")
ask = {"method": "integrated_gradients", "n_steps": 20, "target": "logprob"}
she = model.attribute("The manager said that she was tired.", **ask)
he = model.attribute("The manager said that he was tired.", **ask)
assert she.generated != he.generated
she.generated, he.generated

# %% [markdown]
# ## Which word decides the article?
#
# An encoder-decoder model reads the source as a whole, so every step sees all of it, and the Italian text written
# so far. For the first word there is no Italian text yet: the evidence is in the source.

# %%
she.show()


# %%
def best_source_words(out, step):
    words = [(token.text.strip(), score) for token, score in out.top(len(out.tokens))[step] if token.side == "source"]
    return [word for word, _ in words[:3]]


assert "she" in best_source_words(she, 0)
assert "he" in best_source_words(he, 0)
best_source_words(she, 0), best_source_words(he, 0)

# %% [markdown]
# ## Source or what is written already?
#
# The later a word, the more the Italian text decides: the participle agrees with the article and the noun, which
# are there already. `out.source` and `out.prefix` are the two parts of the token axis.

# %%
import numpy as np

source = np.nansum(np.abs(she.source.values), axis=1)
prefix = np.nansum(np.abs(she.prefix.values), axis=1)
share = source / (source + prefix)
assert share[0] > share[-1]
[(step.text, round(float(part), 2)) for step, part in zip(she.steps, share, strict=True)]

# %% [markdown]
# ## Many sentences at once
#
# A list is one batch, and gives what each sentence gives alone.

# %%
texts = ["The doctors arrived.", "The manager said that she was tired."]
batch = model.attribute(texts, **ask)
assert batch[1].generated == she.generated
assert np.nanmax(np.abs(batch[1].scores.values - she.scores.values)) < 1e-3
[out.generated for out in batch]

# %% [markdown]
# ## Texts with known evidence
#
# The grammar behind the model is public: it gives sentences in which the evidence of every determined word is
# marked. How often is it among the best three words?

# %%
from whence.models.bundled import determined_tokens, examples

hits = []
for example in examples("en-it", n=5, seed=1):
    tokens = determined_tokens(example, model.tokenizer)
    out = model.attribute(example.prompt, example.continuation, method="integrated_gradients", n_steps=20)
    n_source = len(out.source.axis("token"))
    for token in tokens:
        # The decoder begins with a token of its own.
        gold = {index if side == "source" else n_source + 1 + index for side, index in token.evidence}
        best = [out.tokens.index(found) for found, _ in out.top(3)[token.step]]
        hits.append(bool(gold & set(best)))
assert sum(hits) > 0.6 * len(hits)
f"{sum(hits)} of {len(hits)}"
