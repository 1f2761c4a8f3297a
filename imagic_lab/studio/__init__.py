"""The studio: an edit with the mouse."""
