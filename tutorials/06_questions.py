# %% [markdown]
# # Asking the right question
#
# "Why this word?" is not one question. Why is it so probable? Why this one *and not that one*? What is different when
# the prompt is? The number that is explained says which of them is asked, and aggregation makes the answer short.
#
# The story has two facts, the color that somebody loves and the places that have colors. They decide where he goes.

# %%
import numpy as np

import whence
from whence import Op, Pipeline

model = whence.load("whence/stories")
decisive = "He loved the color red."
prompt = (
    f"Once upon a time there lived a monk named Rowan. {decisive} Near the village there was a blue meadow and a red "
    "harbor. After dinner he went to the favorite place, the"
)
ask = {"prompt": prompt, "continuation": " red harbor. From then on Rowan was always happy.", "progress": False}

# %% [markdown]
# ## Numbers for every step
#
# A step function makes one number of the model's logits at each step. `step_scores` reports as many as are named, with
# their options; the method `none` does nothing else. The color and the place are certain. How Rowan feels is not,
# because the story leaves it open.

# %%
out = model.attribute(**ask, method="none", step_scores=["probability", "entropy:base=2", "rank", "logprob"])
steps = [step.text.strip() for step in out.steps]
red, harbor, happy = (steps.index(word) for word in ("red", "harbor", "happy"))
bits = out.step_scores["entropy:base=2"]
assert (out.step_scores["rank"][[red, harbor]] == 1).all()
assert max(bits[red], bits[harbor]) < 0.2 < 3 < bits[happy]
[(word, round(float(value), 2)) for word, value in zip(steps, bits, strict=True)]

# %% [markdown]
# Several tokens can be one step, a *span*. Every function has its own rule for that: probabilities multiply, logprobs
# and entropies add up, and of ranks the worst counts.

# %%
span = model.attribute(**ask, method="none", steps=(red, harbor + 1), step_scores=list(out.step_scores))
for name, rule in (("probability", np.prod), ("entropy:base=2", np.sum), ("rank", np.max), ("logprob", np.sum)):
    assert np.allclose(span.step_scores[name], rule(out.step_scores[name][[red, harbor]]), rtol=1e-4)
span.info["merges"]

# %% [markdown]
# ## A number of your own
#
# Between how many words does the model hesitate? One over the sum of the squared probabilities is 1 if it is certain,
# and $n$ if $n$ words are equally probable.


# %%
@whence.step_function(unit="tokens", merge="mean")
def choices(inputs):
    """How many equally probable tokens would be as uncertain as these."""
    return 1 / inputs.logits.softmax(-1).square().sum(-1)


# %% [markdown]
# Its name now works wherever the name of a step function does, so it can also be explained. Which sentence takes the
# doubt away? The one with the lowest score, which is the unfinished one right before "red".

# %%
out = model.attribute(
    **ask, method="occlusion", target="choices", segments="sentence", steps=[red, happy], step_scores=["choices"]
)
assert out.step_scores["choices"][0] < 1.1 < 5 < out.step_scores["choices"][1]
lowest = out.tokens[int(np.nanargmin(out.scores.values[0]))]
assert lowest.text.strip().startswith("After dinner")
out.show()

# %% [markdown]
# ## Why red, and not blue?
#
# Which sentence decides the color? For the probability of "red", two of them count the same: without the last sentence
# no color would follow at all, and without the one about the color the wrong one would.


# %%
def ranked(out, step=0):
    """What the step could see, highest score first."""
    return [(token.text.strip(), round(score, 2)) for token, score in out.top(len(out.tokens))[step]]


why = {"prompt": prompt, "continuation": " red harbor.", "steps": 0, "progress": False}
versus = {"target": "contrast_prob_diff", "contrast": " blue meadow."}
plain = ranked(model.attribute(**why, method="occlusion", target="probability", segments="sentence"))
assert plain[0][0].startswith("After dinner")
assert plain[1][0] == decisive
assert plain[1][1] > 0.9 * plain[0][1]
plain

# %% [markdown]
# `contrast_prob_diff` is the probability of the word less that of another in its place, the *foil* (Yin and Neubig
# 2022). Now the sentence that decides *between the two* comes first, and scores twice as much as the next.

# %%
found = ranked(model.attribute(**why, **versus, method="occlusion", segments="sentence"))
assert found[0][0] == decisive
assert found[0][1] > 1.9 * found[1][1]
found

# %% [markdown]
# The same word by word, with integrated gradients. The word "place" does most for the logprob of "red", but it is no
# reason for "red" instead of "blue".

# %%
plain = ranked(model.attribute(**why, method="integrated_gradients", target="logprob", segments="word"))
found = ranked(model.attribute(**why, **versus, method="integrated_gradients", segments="word"))
assert plain[0][0] == "place"
assert found[0][0] == "red"
assert found[0][1] > 5 * found[1][1]
assert "place" not in [word for word, _ in found[:10]]
plain[:3], found[:3]

# %% [markdown]
# The example of the paper needs a larger model, so it is not run here:
#
# ```python
# gpt2 = whence.load("gpt2")
# gpt2.attribute("Can you stop the dog from", " barking", target="contrast_prob_diff", contrast=" crying").show()
# ```
#
# The sentence as a whole makes a word in -ing probable. What should speak for barking rather than crying is the dog.
#
# ## Il or la?
#
# In Italian a manager is *il direttore* or *la direttrice*. The foil can be a whole translation, and here it is
# shorter than the text: *direttrice* and *stanca* are two tokens each.

# %%
translator = whence.load("whence/en-it")
she, he = (f"Yesterday the manager said that {word} was tired." for word in ("she", "he"))
masculine = "Ieri il direttore ha detto che era stanco."
question = {"method": "integrated_gradients", "segments": "word", "progress": False}
out = translator.attribute(she, **question, target="contrast_prob_diff", contrast=masculine)
foils = out.info["contrast"]["foils"]
pieces = [step.text.strip() for step in out.steps]
article = pieces.index("la")
assert foils[article].strip() == "il"
list(zip(pieces, foils, strict=True))

# %% [markdown]
# Where both texts have the same token there is nothing to compare, so the scores are 0. At the article the pronoun
# comes first, which it does not for the logprob.

# %%
logprob = translator.attribute(she, **question, target="logprob")
assert ranked(out, article)[0][0] == "she"
assert ranked(logprob, article)[0][0] != "she"
assert np.allclose(out.scores.values[0][out.scores.defined[0]], 0, atol=1e-6)
ranked(out, article)[:3], ranked(logprob, article)[:3]

# %% [markdown]
# The texts were paired as in a diff. What that leaves over is paired from the right: *rice* with *il*, and the *a* of
# *stanca* with *stanco*. `align` takes pairs of places instead, and only what they change is different.

# %%
partners = [0, 1, 2, 2, 3, 4, 5, 6, 7, 7, 8, 9]
given = {"continuation": masculine, "align": list(enumerate(partners))}
aligned = translator.attribute(she, **question, target="contrast_prob_diff", contrast=given)
differs = [new != old for new, old in zip(aligned.info["contrast"]["foils"], foils, strict=True)]
assert [piece for piece, one in zip(pieces, differs, strict=True) if one] == ["rice"]
rest = ~np.array(differs)
assert np.allclose(aligned.scores.values[rest], out.scores.values[rest], atol=1e-6, equal_nan=True)
aligned.info["contrast"]["alignment"]["rule"]

# %% [markdown]
# ## Another source, another prompt
#
# What is compared may also be the *input*. Here the same Italian text is read as a translation of the sentence with
# "he". `kl_divergence` says how far apart the two predictions of each token are: far where a word has a gender, else
# not.

# %%
out = translator.attribute(
    she, **question, target="kl_divergence", contrast={"source": he}, step_scores=["kl_divergence"]
)
nats = out.step_scores["kl_divergence"]
far = [piece for piece, value in zip(pieces, nats, strict=True) if value > 0.5]
assert far == ["la", "dirett", "rice", "stanc", "a"]
assert ranked(out, article)[0][0] == "she"
assert out.info["contrast"]["attributed"] == "this text's run"
list(zip(pieces, nats.round(1), strict=True))

# %% [markdown]
# "This text's run": the other one is a constant, and gets no scores. So `pcxmi`, the difference of the logprobs of
# both, has the scores of `logprob`. As a step score it says by how much a context helps, here the sentence about the
# color.

# %%
pcxmi = translator.attribute(she, **question, target="pcxmi:context=main", contrast={"source": he})
assert np.allclose(pcxmi.scores.values, logprob.scores.values, atol=1e-4, equal_nan=True)
without = {"source": prompt.replace(decisive + " ", "")}
out = model.attribute(
    prompt, " red harbor.", method="none", contrast=without, step_scores=["pcxmi:context=main"], progress=False
)
helps = out.step_scores["pcxmi:context=main"]
assert helps[0] > 3
assert max(helps[1:]) < 1
helps

# %% [markdown]
# With another continuation in a run of its own, the words of the prompt are one variable in both runs, and the scores
# say what they do in both. As one span, whole phrases are compared: this is the logarithm of the ratio of their
# probabilities.

# %%
own = {"continuation": " blue meadow.", "evaluate": "own"}
whole = {"steps": "whole", "segments": "sentence", "method": "occlusion", "progress": False}
out = model.attribute(prompt, " red harbor.", target="contrast_prob_diff:log=true", contrast=own, **whole)
assert out.info["contrast"]["attributed"] == "both runs together"
assert ranked(out)[0][0] == decisive
ranked(out)

# %% [markdown]
# ## Fewer numbers
#
# Attention has a number for every layer and head. `aggregate` makes a new result of it, and writes down what it did.
# Text and objects are the same, and the file of a result keeps what was not aggregated.

# %%
out = model.attribute(prompt, " red harbor.", method="attention", progress=False)
chain = Pipeline(Op("reduce", "head", "mean"), Op("select", "layer", -1), "words", Op("normalize"))
seen = out.aggregate("head:mean,layer:-1,words,normalize")
assert seen.equals(out.aggregate(chain))
assert seen.scores.names == ("step", "token")
assert np.allclose(np.nansum(seen.scores.values, axis=1), 1)
out.save("attention.json")
again = whence.load_attribution("attention.json")
assert again.scores.names == ("step", "token", "layer", "head")
assert again.aggregate(chain).equals(seen)
seen.info["ops"]

# %% [markdown]
# Results can be subtracted. Had Rowan loved blue, the model would look less at the harbor, and more at the meadow.

# %%
blue = model.attribute(prompt.replace("color red", "color blue"), " red harbor.", method="attention", progress=False)
place = ranked(seen - blue.aggregate(chain), harbor)
assert (place[0][0], place[-1][0]) == ("harbor", "meadow")
place[0], place[-1]
