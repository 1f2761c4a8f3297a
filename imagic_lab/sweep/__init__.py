"""Many edits: on this machine, on Slurm, on a Ray cluster. How to start them: docs/cluster.md.

`table` checks the table, `work` does one job, `engines` start the workers, `report` shows the results.
"""

from imagic_lab.sweep.run import Summary, sweep
from imagic_lab.sweep.table import Faults, Job, read_table

__all__ = ["Faults", "Job", "Summary", "read_table", "sweep"]
