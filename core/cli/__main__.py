"""``python -m sixfold.core.cli``: the command ``sixfold`` of this Python, wherever scripts are."""

import sys

from sixfold.core.cli import main

sys.exit(main())
