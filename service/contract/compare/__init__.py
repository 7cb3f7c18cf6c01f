"""Compares two versions of a contract: what breaks publishers, what breaks subscribers, and which rights are widened."""
