"""The commands of `indextts-launch`: one file per place where a job can run."""
