"""Models whose blocks are in a Petals swarm: a client of Petals' protocol over hivemind."""
