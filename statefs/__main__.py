"""`statefs` and `python -m statefs`: the command line."""

import sys

EXIT_INTERRUPTED = 130
"""As statefs.cli.app has it, which cannot be imported yet."""


def main() -> None:
    """Import the command line and run it; Ctrl-C in that third of a second ends it silently."""
    try:
        from statefs.cli import main as command_line
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    command_line()


if __name__ == "__main__":
    main()
