"""The studio: edit a picture with the mouse."""
