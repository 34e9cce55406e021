"""`python -m indextts_job`."""

import sys

from indextts_job.cli import main

sys.exit(main())
