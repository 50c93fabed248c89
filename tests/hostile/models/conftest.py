"""The modules of the zoo import one another by name, as they do when it is run as a script."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
