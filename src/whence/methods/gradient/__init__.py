"""Methods made of derivatives."""
