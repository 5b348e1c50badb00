"""Between ids and words: prompts, continuations, segments. Ids are the truth, text is a view of them."""
