"""Compare methods on edits whose ground truth is known.

`measuring` makes one edit by one method and measures it, `rows` keeps the results and chooses each method's knob,
`tables` prints them, and `jobs` runs many edits as a sweep. The command: `python -m imagic_lab.benchmark --help`.
"""

from imagic_lab.benchmark.measuring import counted, measure_edit
from imagic_lab.benchmark.rows import at_value, best_value, current_rows, measured_rows, numbers_in, success_times_kept
from imagic_lab.benchmark.tables import markdown_table, mean_and_interval, method_tables
from imagic_lab.benchmark.versions import versions_of

__all__ = ["at_value", "best_value", "counted", "current_rows", "markdown_table", "mean_and_interval", "measure_edit",
           "measured_rows", "method_tables", "numbers_in", "success_times_kept", "versions_of"]  # fmt: skip
