"""The scripts behind every number in this repository: `python -m imagic_lab.numbers.NAME --help`, see README.md."""
