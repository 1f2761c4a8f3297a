"""Experiments with the method: other losses, a head that predicts distributions, and a new word taught with LoRA."""
