"""How the cost grows with nodes, channels, users, events and tenants: `python -m benchmarks.growth`."""
