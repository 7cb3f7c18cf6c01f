"""Requests of the backend API: built and judged without I/O, sent by a sync or an async transport."""
