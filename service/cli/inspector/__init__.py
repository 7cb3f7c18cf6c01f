"""The demo's inspector: a small cluster for each visitor, behind a network that breaks when the visitor says so.

`network.py` is the faulty network, `lab.py` a cluster with what is published to it, `routes.py` what the page asks for.
docs/adr/0057-the-inspector.md says why.
"""
