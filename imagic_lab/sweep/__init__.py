"""Run many edits on this machine, on Slurm, or on a Ray cluster. docs/cluster.md says how to start them.

`table` checks the table, `work` does one job, `engines` start the workers, and `report` shows the results.
"""

from imagic_lab.sweep.run import Summary, sweep
from imagic_lab.sweep.table import Faults, Job, read_table

__all__ = ["Faults", "Job", "Summary", "read_table", "sweep"]
