"""A package, or IPython 7 puts its own `tests` in this one's place: its extensions stand in the path."""
