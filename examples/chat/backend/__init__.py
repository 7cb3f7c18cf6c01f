"""The backend of the chat. `app.py` puts it together; each other file has one subject."""
