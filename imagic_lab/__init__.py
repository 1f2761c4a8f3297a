"""Everything around the method: the drawn world, the classroom, the studio, other methods, sweeps, and every number."""
