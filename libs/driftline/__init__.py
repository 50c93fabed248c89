"""
Real-time machine learning on Kafka that closes its own loop. These names are all that a pipeline file needs.
"""

from __future__ import annotations

from driftline import f
from driftline.declaration import Budget, Gate, Label, LightGBM, Logistic, Pipeline, Retrain, Rollout, Stream, View

__all__ = ["Budget", "Gate", "Label", "LightGBM", "Logistic", "Pipeline", "Retrain", "Rollout", "Stream", "View", "f"]
