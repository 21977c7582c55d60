"""The command line. Nothing heavy is imported until the configuration files have been found and read."""

from compresslens.cli.main import main

__all__ = ["main"]
