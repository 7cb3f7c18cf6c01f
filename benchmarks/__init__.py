"""Measures Tidewire beside its peers on one machine; `python -m benchmarks` runs it."""
