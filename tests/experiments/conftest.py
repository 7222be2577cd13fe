"""Makes `run_script` importable by the tests beside it, which are modules of no package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
