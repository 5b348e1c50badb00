"""Measurements of whence that take longer than a test."""
