"""Sends webhooks over HTTP, signed as Standard Webhooks say."""
