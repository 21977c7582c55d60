"""Lightning callbacks: probes, results, checkpoints."""

from callbacks.accuracy import Accuracy
from callbacks.cam import ClassActivationMaps
from callbacks.carlini_wagner import CarliniWagner
from callbacks.checkpoint import BestCheckpoint, LastCheckpoint
from callbacks.curves import Curves
from callbacks.export import Export
from callbacks.footprint import Footprint
from callbacks.honesty import Honesty
from callbacks.predictions import Predictions
from callbacks.results import Results
from callbacks.tsne import TSNE

__all__ = [
    "TSNE",
    "Accuracy",
    "BestCheckpoint",
    "CarliniWagner",
    "ClassActivationMaps",
    "Curves",
    "Export",
    "Footprint",
    "Honesty",
    "LastCheckpoint",
    "Predictions",
    "Results",
]
