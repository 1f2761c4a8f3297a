"""Training for stages 1 and 2: the loop, its checkpoint, and strategies for little memory."""
