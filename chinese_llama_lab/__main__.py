"""`python -m chinese_llama_lab`, for launchers that start modules."""

import sys

from chinese_llama_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
