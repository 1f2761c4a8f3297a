"""Methods compared on edits whose right answer is known."""
