"""What can go wrong, provoked: how often each promise of SECURITY.md was tried, and how often it was kept.

``make reliability`` tries all of it, ``make test`` less of it. ``--promises FILE`` writes the tables in Markdown.
"""

import os

LONG = os.environ.get("NORTON_DET_RELIABILITY") == "long"
