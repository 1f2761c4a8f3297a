"""How stages 1 and 2 are run, with the training, its checkpoint, and strategies for little memory."""
