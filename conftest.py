"""`pytest` runs the tests, `pytest --benchmark` the benchmarks."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


def pytest_addoption(parser):
    parser.addoption("--benchmark", action="store_true", help="run benchmarks/ instead of tests/")


def pytest_configure(config):
    # Paths on the command line win over the option.
    if config.getoption("--benchmark") and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(BENCHMARKS)]
