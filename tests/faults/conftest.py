"""The battery is a script of several files that stand beside one another; here they are found as they find each other."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
