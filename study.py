"""Experiments × seeds, then the report: `python study.py --config study_resnet18.yaml` (`--help` says more)."""

import sys

from compresslens.cli.study import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
