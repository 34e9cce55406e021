"""The commands of `indextts-job`: one file each, with its arguments and what it does."""
