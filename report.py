"""Several models on one page: `python report.py teacher_resnet34 distill_resnet18` (see `python report.py --help`)."""

import sys

from compresslens.cli.report import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
