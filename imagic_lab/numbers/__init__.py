"""The scripts behind every number of the repository: `python -m imagic_lab.numbers.NAME`."""
