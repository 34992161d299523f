"""Everything observed in a run, on disk, append-only; the only input of the judge."""
