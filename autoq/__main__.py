"""``python -m autoq`` is ``autoq``."""

from autoq.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
