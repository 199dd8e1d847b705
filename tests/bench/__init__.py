"""The benchmarks: `python -m tests.bench` measures, prints, and writes docs/benchmarks.md.

Runs from a checkout, installed or not: the source roots and the test helpers are put on the path
here. Each module in `groups` measures one thing and yields its rows; nothing else prints.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

for _name in ("host", "guest-agent", "vm-images", "tests"):
    if (_path := str(ROOT / _name)) not in sys.path:
        sys.path.append(_path)
