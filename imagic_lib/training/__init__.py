"""How stages 1 and 2 are run: the loop, checkpoints, strategies for little memory, and the memory plan."""
