"""Old and new clients and nodes together; see README.md."""
