"""`dd2424fast info`: what is installed, what it was built for, what it runs on."""

import os
import platform

import click

from .common import command, json_option, print_json, threads_option

PACKAGES = ("numpy", "scipy", "numba", "scikit-learn", "safetensors", "matplotlib", "torch", "jax")


@command(["dd2424fast info", "dd2424fast info --json"])
@threads_option
@json_option
def info(as_json):
    """Show versions, the build, the CPU and the threads in use."""
    import dd2424fast as dd

    facts = {
        "build": dict(dd.show_config()),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": {"model": _cpu(), "cores_usable": _usable_cores(), "cores": os.cpu_count()},
        "threads": {
            "kernels": dd.get_num_threads(),
            "blas": _blas(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        },
        "files": {"package": os.path.dirname(dd.__file__), "numba_cache": _numba_cache()},
    }
    if as_json:
        print_json(facts)
        return
    for title, rows in facts.items():
        click.echo(title)
        for name, value in rows.items():
            click.echo(f"  {name:<16} {value}")


def _version(package):
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _usable_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _blas():
    import threadpoolctl

    pools = {
        pool["internal_api"]: pool["num_threads"]
        for pool in threadpoolctl.threadpool_info()
        if pool["user_api"] == "blas"
    }
    return ", ".join(f"{name} {count}" for name, count in pools.items()) or "none"


def _numba_cache():
    from dd2424fast.kernels.jit import cache_folder

    return str(cache_folder())
