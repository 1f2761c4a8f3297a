"""Around the method: other losses, a head that predicts distributions, a new word learned by LoRA, other methods."""
