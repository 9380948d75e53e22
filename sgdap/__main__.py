"""`python -m sgdap` is the command `sgdap`."""

import sys

from sgdap.cli import main

sys.exit(main())
