"""What HTTP requests to the backend have in common: signatures, and a client that follows nothing and reads little."""
