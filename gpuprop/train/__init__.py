"""Training: the loop with its metrics, early stopping, checkpoints and curves, and the main job around it."""

from .callbacks import Checkpoint, EarlyStopping, EpochLog
from .metrics import Accuracy, Metric, RegressionFit
from .report import draw_curves
from .trainer import Callback, Trainer

__all__ = [
    "Accuracy",
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "EpochLog",
    "Metric",
    "RegressionFit",
    "Trainer",
    "draw_curves",
]
