"""What the notebooks are furnished with: figures, widgets, and checks of exercises."""
