# %% [markdown]
# # Three kinds of methods
#
# Gradients ask how the prediction changes with the input, internals look at what the model does by itself, and
# perturbation asks what happens when something is taken away. This tutorial puts one question to all three, on a text
# where it is known which words decide.

# %%
import numpy as np

import whence

model = whence.load("whence/stories")
prompt = "One day a witch named Sawyer came to the village. Sawyer put the drum in the jar. The goose that"
ask = {"prompt": prompt, "continuation": " waited by the stone was sleepy.", "segments": "word", "progress": False}

# %% [markdown]
# ## What there is
#
# `whence.explain` prints all about a method: its formula, paper, cost, options, and where it runs.

# %%
whence.explain("occlusion")

# %% [markdown]
# ## One question, three answers
#
# The verb "was" agrees with "goose". Which words did it come from?


# %%
def best(out, word, k=3):
    """The words with the highest scores for one generated word."""
    row = next(k for k, step in enumerate(out.steps) if step.text.strip() == word)
    return [token.text.strip() for token, _ in out.top(k)[row]]


answers = {}
for method in ("integrated_gradients", "deeplift", "attention_rollout", "alti", "occlusion", "shapley_sampling"):
    out = model.attribute(**ask, method=method)
    answers[method] = best(out, "was")
answers

# %% [markdown]
# ## What an internal method returns
#
# Attention keeps its layers and heads: nothing is averaged unless you ask. It explains no number of the output, so a
# target would be refused.

# %%
out = model.attribute(**ask, method="attention")
assert out.scores.names == ("step", "token", "layer", "head")
last = out.scores.select("layer", len(out.scores.axis("layer")) - 1)
np.testing.assert_allclose(np.nansum(last.values, axis=1), 1, atol=1e-4)

# %% [markdown]
# ## Taking things away
#
# `removal` says how: replaced by the baseline, deleted, or hidden from the attention of all other tokens. Leaving out
# one word at a time misses what two words do only together; Shapley values share it between them, and add up to the
# whole difference.

# %%
shares = model.attribute(**ask, method="kernel_shap", n_samples=512, target="logprob")
assert next(check for check in shares.checks if check.name == "completeness").passed
for removal in ("replace", "delete", "knockout"):
    print(removal, best(model.attribute(**ask, method="occlusion", removal=removal), "was"))

# %% [markdown]
# ## Sentences and documents
#
# For a long prompt, whole sentences are the better question. `contextcite` leaves out random halves of them and fits a
# sparse model; the answer as a whole is explained.

# %%
cited = model.attribute(
    prompt=prompt, continuation=ask["continuation"], method="contextcite", n_samples=128, progress=False
)
assert len(cited.steps) == 1
[(token.text, round(float(score), 2)) for token, score in zip(cited.tokens, cited.view().values[0], strict=False)]
