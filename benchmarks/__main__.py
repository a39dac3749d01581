"""`python -m benchmarks` is `gpuprop bench`."""

import sys

from gpuprop.cli import main

if __name__ == "__main__":  # not in the processes that it starts
    sys.argv[1:1] = ["bench"]
    main()
