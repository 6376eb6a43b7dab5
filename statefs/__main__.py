"""`python -m statefs`: the command line."""

from statefs.cli import main

if __name__ == "__main__":
    main()
