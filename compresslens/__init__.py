"""compresslens: does a compressed CNN still look at the right thing, and is it still as hard to fool?"""

__version__ = "0.1.0"
