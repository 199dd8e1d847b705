"""`python -m wherry` is `wherry`."""

from __future__ import annotations

from wherry.cli.main import main

if __name__ == "__main__":
    main()
