"""`python -m indextts_job`."""

from indextts_job.entry import entry

entry()
