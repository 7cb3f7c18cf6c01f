"""Real proxies before real nodes on a real Redis, each configured from what the chart renders for its preset."""
