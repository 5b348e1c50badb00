"""Models that are served by NDIF, or by any server that speaks its protocol."""
