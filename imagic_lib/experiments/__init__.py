"""Around the method: other losses, a head that predicts distributions, and a new word learned by LoRA."""
