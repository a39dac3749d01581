"""`python -m gpuprop` is the command `gpuprop`."""

from .cli import main

if __name__ == "__main__":
    main()
