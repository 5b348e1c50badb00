"""Methods made of variants of the input."""
