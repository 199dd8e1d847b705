"""`python -m wherry_guest.oci`: see `wherry_guest.oci.main`."""

from __future__ import annotations

import sys

from wherry_guest.oci.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
