"""What a training update of a recurrent model holds besides the model and the optimizer, and what it must hold.

Each is measured in a process of its own: `python -m dd2424fast.bench.memory NAME` does it for one workload and prints
the row as JSON.
"""

import dataclasses
import json
import sys
import tracemalloc

from .processes import printed_by

NAMES = ("lstm_b64", "gru_b64", "rnn_b256")
UPDATES = 2  # the state is carried between two sets of buffers

# Numbers that back-propagation through time holds for each row and unit of a layer (docs/kernels/recurrent.md): the
# state and its gradient; an LSTM's gates and cell; a GRU's gates, candidate, and its gates' second gradient.
KEPT = {"rnn": 2, "lstm": 2 + 4 + 1, "gru": 2 + 3 + 1 + 3}


def kept_bytes(task):
    """Bytes of float32 that an update must hold at once: KEPT for every unit, and the logits."""
    return 4 * task.tokens * (KEPT[task.cell] * task.hidden * task.layers + task.vocab)


def measure_memory(environment):
    """The rows of all NAMES.

    Returns
    -------
    list of dict
        name, model, held_bytes, kept_bytes; or name, model and error.
    """
    from .workloads import workloads

    rows = []
    for name in NAMES:
        row = {"name": name, "model": workloads()[name].model}
        try:
            row |= json.loads(printed_by([sys.executable, "-m", f"{__package__}.memory", name], environment))
        except RuntimeError as error:
            row["error"] = str(error)
        rows.append(row)
    return rows


def measure(task):
    """Peak of the memory taken by the first updates, less parameters, gradients and the optimizer's vectors."""
    dataclasses.replace(task, hidden=3, batch=2, time=2).ours()()  # what is imported and made once a process
    batches = task.batches()
    batch = next(batches)
    tracemalloc.start()
    trainer = task.trainer()
    for _ in range(UPDATES):
        trainer.step(*batch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    vectors = [trainer.model.parameters, trainer.model.gradients, *trainer.optimizer.state.values()]
    return {"held_bytes": peak - sum(a.nbytes for a in vectors), "kept_bytes": kept_bytes(task)}


if __name__ == "__main__":
    from .workloads import workloads

    print(json.dumps(measure(workloads()[sys.argv[1]].task)))
