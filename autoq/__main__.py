"""``python -m autoq`` is ``autoq``."""

import sys


def run() -> int:
    """The command line. Ctrl-C ends it with one line also while its libraries are being loaded."""
    try:
        from autoq.cli import main

        return main()
    except KeyboardInterrupt:
        exec("")  # as in autoq.cli, so that Python ends with the exit code and not with the signal
        sys.stderr.write("autoq: interrupted\n")
        return 130


if __name__ == "__main__":
    raise SystemExit(run())
