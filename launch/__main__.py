"""`python -m indextts_launch`; in a clone `python -m launch`."""

import sys

from .cli import main

sys.exit(main())
