"""Accuracy and time of MLPClassifier here and in scikit-learn, with the same settings and seeds.

    python benchmarks/accuracy.py [--data PATH] [--seeds 5] [--epochs 5] [--dtype float32]

On the digits, and with --data (a folder or archive of CIFAR-10) 3072-50-10 on its 50,000 training images. Each library
trains in a process of its own, on as many threads as OMP_NUM_THREADS says or the process may use, and they take turns.
"""

import argparse
import os
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

import dd2424fast as dd
from dd2424fast.metrics import half_interval

LIBRARIES = ("dd2424fast", "sklearn.neural_network")


def digits(path, dtype):
    (x, y), (x_test, y_test) = dd.data.load_digits()
    x, x_test = (images.reshape(len(images), -1) / 16 for images in (x, x_test))
    return x.astype(dtype), y, x_test.astype(dtype), y_test


def cifar10(path, dtype):
    (x, y), (x_test, y_test) = dd.data.load_cifar10(path)
    scale = dd.data.Standardizer()
    x = scale.fit_transform(x.reshape(len(x), -1)).astype(dtype)
    return x, y, scale.transform(x_test.reshape(len(x_test), -1)).astype(dtype), y_test


def load(task, path, dtype):
    """Once, in each library's process."""
    load.data = {"digits": digits, "CIFAR-10": cifar10}[task](path, dtype)


def trained(library, settings):
    """Seconds of a fit, and accuracy on the test data."""
    from importlib import import_module

    x, y, x_test, y_test = load.data
    classifier = import_module(library).MLPClassifier(**settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is told when to end
        started = time.perf_counter()
        classifier.fit(x, y)
        seconds = time.perf_counter() - started
    return seconds, classifier.score(x_test, y_test)


def compared(task, arguments, settings):
    """A line for each library."""
    found = {library: [] for library in LIBRARIES}
    processes = {
        library: ProcessPoolExecutor(1, get_context("spawn"), load, (task, arguments.data, arguments.dtype))
        for library in LIBRARIES
    }
    for seed in range(arguments.seeds):
        for library, process in processes.items():
            found[library].append(process.submit(trained, library, {**settings, "random_state": seed}).result())
    for process in processes.values():
        process.shutdown()
    seconds, accuracies = (np.array([[run[i] for run in found[library]] for library in LIBRARIES]) for i in (0, 1))
    print(f"{task}, {arguments.dtype}, {settings}, seeds 0 to {arguments.seeds - 1}")
    for library, times, scores in zip(LIBRARIES, seconds, accuracies, strict=True):
        print(
            f"  {library.partition('.')[0]:<12}{scores.mean():.4f} +- {half_interval(scores, 0.95):.4f} test accuracy, "
            f"{np.median(times):.3f} s a fit"
        )
    difference = accuracies[0] - accuracies[1]
    print(
        f"  difference {difference.mean():+.4f} +- {half_interval(difference, 0.95):.4f}; "
        f"{np.median(seconds[1] / seconds[0]):.2f} times as fast (median of {arguments.seeds} pairs)",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder or archive of CIFAR-10")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5, help="of CIFAR-10; ten times as many of the digits")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    arguments = parser.parse_args()
    if arguments.seeds < 2 or arguments.epochs < 1:
        parser.error("expected at least two seeds and one epoch")
    threads = str(dd.get_num_threads())
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads))
    epochs = {"tol": 0.0, "n_iter_no_change": 10**6}  # all that are asked for
    compared("digits", arguments, {"hidden_layer_sizes": (100,), "max_iter": 10 * arguments.epochs, **epochs})
    if arguments.data:
        settings = {"hidden_layer_sizes": (50,), "batch_size": 200, "max_iter": arguments.epochs, **epochs}
        compared("CIFAR-10", arguments, settings)


if __name__ == "__main__":
    main()
