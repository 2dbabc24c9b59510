"""`dd2424fast bench`: this library against NumPy, PyTorch and JAX."""

from pathlib import Path

import click

from .common import command, json_option, say

KINDS = ("training", "ragged", "generation", "inference", "fits", "scaling", "kernels", "memory", "overheads")


@command(
    [
        "dd2424fast bench",
        "dd2424fast bench training --libraries fast,numpy,torch --seconds 2",
        "dd2424fast bench mlp lstm_b64 ragged --threads 1",
        "dd2424fast bench scaling memory",
        "dd2424fast bench kernels --output results --json",
    ]
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--workloads", help="More names, separated by commas.")
@click.option(
    "--libraries",
    help="Only these, separated by commas, of fast, numpy (the twins), numpy32 (a fast script), torch, torch_lean, "
    "jax, sklearn, course (a float64 script).  [default: all that are installed]",
)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="CPU threads of each library.")
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="How often each library takes its turn."
)
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=0.5, show_default=True, help="Length of a turn."
)
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default="dd2424fast-bench", show_default=True,
    help="Folder of the results, as JSON and Markdown.",
)  # fmt: skip
@json_option
def bench(names, workloads, libraries, threads, rounds, seconds, output, as_json):
    """Time training updates, texts, or single kernels, of every library on this machine.

    NAME is a workload (mlp, lstm_b64, ...) or all of a kind: training, ragged (a batch of unequal sequences, against a
    full one), generation, inference (images a second in use), fits (of estimators, against scikit-learn), scaling (an
    update's time against time steps, batch and units), kernels, memory (what an update holds, against what it must),
    overheads (what Python, import and first use cost); or all. A NAME that is none is answered by a list of them.
    Without a NAME: training, ragged, generation, inference and fits.

    Each library runs in a process of its own, from the same weights and on the same batches, and the libraries take
    turns. Close other programs first.
    """
    from dd2424fast import bench as benchmarks

    named = [*names, *(_listed(workloads) or [])]
    report = benchmarks.run(
        KINDS if "all" in named else named or None,
        _listed(libraries),
        threads=threads,
        rounds=rounds,
        seconds=seconds,
        progress=_progress,
    )
    paths = report.save(output)
    click.echo(report.to_json() if as_json else report.table())
    for path in paths:
        say(f"wrote {path}")


def _listed(names):
    return [name.strip() for name in names.split(",")] if names else None


def _progress(done, total, what):
    say(f"{done}/{total} {what}")
