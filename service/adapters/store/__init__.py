"""Code that all stores share: settings, limits of calls, retries, and pure parts of the ports."""
