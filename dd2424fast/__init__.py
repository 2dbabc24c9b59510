"""dd2424fast: small neural networks trained on the CPU by fast kernels that equal a NumPy definition.

Everything below is imported when it is first used: `import dd2424fast` costs little more than `import numpy`.
"""

import importlib

_MODULES = {
    "bench", "callbacks", "cli", "data", "kernels", "losses", "metrics", "models", "nn", "optim", "plots", "schedules",
    "transfer",
}  # fmt: skip
_NAMES = {
    "Batch": "batches",
    "ConvNetClassifier": "estimators",
    "Ensemble": "ensembles",
    "Trainer": "training",
    "TrainingDiverged": "errors",
    "History": "history",
    "coarse_to_fine": "search",
    "fit_many": "fleet",
    "successive_halving": "search",
    "MLPClassifier": "estimators",
    "MLPRegressor": "estimators",
    "backend": "config",
    "get_backend": "config",
    "get_matrix_unit": "config",
    "get_num_threads": "config",
    "get_winograd": "config",
    "set_backend": "config",
    "set_matrix_unit": "config",
    "set_num_threads": "config",
    "set_winograd": "config",
    "show_config": "config",
    "generate": "generation",
    "gradcheck": "gradients",
    "gradcheck_function": "gradients",
    "gradient_flow": "monitors",
    "layer_statistics": "layer_numbers",
    "predict_proba": "ensembles",
    "profile": "profiling",
    "side_by_side": "threads",
}

__all__ = sorted([*_MODULES, *_NAMES, "__version__"])


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _NAMES:
        value = getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
        globals()[name] = value
        return value
    if name == "__version__":
        from importlib.metadata import version

        return version("dd2424fast")
    raise AttributeError(f"module 'dd2424fast' has no attribute {name!r}")


def __dir__():
    return __all__
