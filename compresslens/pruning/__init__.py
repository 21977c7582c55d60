"""Pruning: single weights (unstructured and N:M) and channels. No Lightning; torch-pruning only where channels go."""
