"""The other end of a remote model: a server for one model on one machine, which speaks NDIF's protocol.

It runs the Python code that clients send. Nothing of whence is imported in this package, and its modules import
each other relatively: copied elsewhere, it runs where whence is not installed (``python -m serving PATH``).
What clients send must not depend on whence being there. The protocol is that of nnsight 0.8.1.
"""
