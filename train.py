"""Train, validate or test: `python train.py --config distill_resnet18.yaml` (see `python train.py --help`)."""

import sys

from compresslens.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
