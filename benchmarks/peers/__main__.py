"""``python -m duplex.benchmarks.peers``."""

import sys

from duplex.benchmarks.peers import main

sys.exit(main())
