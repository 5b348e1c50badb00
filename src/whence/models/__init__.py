"""A language model with named internals, wherever it runs."""
