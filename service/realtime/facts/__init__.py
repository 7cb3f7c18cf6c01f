"""Facts: what holds for a while in the cluster, and whose begin and end an endpoint of webhooks is told.

docs/adr/0065-what-webhooks-tell.md explains why a fact is told once, whichever node dies.
"""
