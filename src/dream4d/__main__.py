"""``python -m dream4d`` is the command ``dream4d``."""

from dream4d.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
