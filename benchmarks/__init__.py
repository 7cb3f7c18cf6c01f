"""Compares Tidewire with other servers on one machine: `python -m benchmarks`."""
