"""scikit-learn estimators."""

from .images import ConvNetClassifier
from .mlp import MLPClassifier, MLPRegressor

__all__ = ["ConvNetClassifier", "MLPClassifier", "MLPRegressor"]
