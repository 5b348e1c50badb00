"""What every other room stands on: errors, registries, axis names, the contract. No torch at import."""
