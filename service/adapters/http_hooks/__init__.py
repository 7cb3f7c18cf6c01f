"""Asks hooks of the backend over HTTP, signed as Standard Webhooks say."""
