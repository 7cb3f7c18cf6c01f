"""What the stores have in common, whatever the technology: settings, bounded calls, retries, and pure parts of the ports."""
