"""Descriptions of a contract for other programs: pure functions of a loaded contract."""
