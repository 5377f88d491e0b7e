"""`python -m docs.generator`: write the pages. `--check`: say which are out of date, and change nothing."""

from __future__ import annotations

import sys

from docs.generator import pages

if __name__ == "__main__":
    sys.exit(pages.main(sys.argv[1:]))
