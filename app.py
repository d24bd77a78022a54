"""The container's entry: `python app.py [--debug]` is `visiongate serve [--debug]`."""

import sys

from visiongate.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["serve"]
    main()
