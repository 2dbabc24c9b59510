"""The result of a benchmark: numbers, ratios, and the tables that show them."""

import json
import math
import re
import statistics
from pathlib import Path

from .workloads import KINDS, LIBRARIES, PEERS, REFERENCE

FORMAT = 1

_TIMED = (*KINDS, "kernels")  # in the order of the report

# Above these shares of a CPU, something else disturbs the library whose turn it is.
DISTURBING = {"idle_cpu": 0.05, "others_cpu": 0.1}


class Report:
    """What was measured, on which machine.

    Attributes
    ----------
    machine : dict
        cpu, cores, threads used, system, date, load average before the run, versions and compiler.
    settings : dict
        threads, rounds, seconds.
    peaks : dict
        From a number of threads, as text, to {"float32": GFLOP/s, "float64": GFLOP/s, "copy": GB/s}.
    training, ragged, generation, inference, fits, scaling, kernels : list of dict
        One row a workload of the kind or kernel case: name, gflop, gbytes, threads; libraries, from a library to
        {"median_ms", "q1_ms", "q3_ms", "p10_ms", "runs", "rounds_ms"}, {"missing": module} or {"error": text};
        disturbance, what others took of the CPUs meanwhile. A workload's besides: tokens of a run, sizes, beside.
    memory : list of dict
        What updates hold, and must hold: name, model; held_bytes and kept_bytes, or error.
    overheads : dict
        Seconds and bytes that a user pays apart from arithmetic.
    """

    def __init__(self, machine=None, settings=None):
        self.machine, self.settings = machine or {}, settings or {}
        self.peaks, self.memory, self.overheads = {}, [], {}
        for kind in _TIMED:
            setattr(self, kind, [])

    def rows(self, kind):
        """The list of this kind of rows."""
        return getattr(self, kind)

    def timed_rows(self):
        """All rows that hold times."""
        return [row for kind in _TIMED for row in self.rows(kind)]

    # ---- arithmetic ------------------------------------------------------------------------------------------------

    def ratios(self, row):
        """What a row says about our speed; None where a number is wanting.

        Returns
        -------
        dict
            ours_ms; peer, the fastest of the peers, and against_peer, its median over ours: above 1 we are faster;
            against_twin and against_reference, the same of these; slower_than, all libraries faster than ours; gflops
            and gbytes per second; of_peak, the share of the machine's largest rate of arithmetic; of_bound, the time
            that the machine's peaks would allow over the time taken; tokens per second; seconds_per_token.
        """
        timed = {library: result for library, result in row["libraries"].items() if "median_ms" in result}
        medians = {library: result["median_ms"] for library, result in timed.items()}
        ours = medians.get("fast")
        peers = {library: ms for library, ms in medians.items() if library in (*PEERS, "blas")}
        tokens, peaks = row.get("tokens"), self.peaks.get(str(row["threads"]))
        gflops = row["gflop"] / ours * 1e3 if ours else None
        peer = min(peers, key=peers.get, default=None)

        def over_ours(library):
            return medians[library] / ours if ours and library in medians else None

        return {
            "ours_ms": ours,
            "peer": peer,
            "against_peer": over_ours(peer),
            "against_twin": over_ours("numpy"),
            "against_reference": over_ours(REFERENCE),
            "slower_than": [library for library, ms in medians.items() if ours and ms < ours],
            "gflops": gflops,
            "gbytes": row["gbytes"] / ours * 1e3 if ours else None,
            "of_peak": gflops / peaks[row.get("dtype", "float32")] if ours and peaks else None,
            "of_bound": self.bound_ms(row) / ours if ours and peaks else None,
            "tokens": tokens / ours * 1e3 if ours and tokens else None,
            "seconds_per_token": ours / tokens / 1e3 if ours and tokens else None,
        }

    def per_token(self, row):
        """From each library to its time per token over that of the row's `beside`; {} where it has none."""
        other = next((one for one in self.timed_rows() if row.get("beside") and one["name"] == row["beside"]), None)
        if other is None:
            return {}
        times = [
            {name: r["median_ms"] / one["tokens"] for name, r in one["libraries"].items() if "median_ms" in r}
            for one in (row, other)
        ]
        return {name: ms / times[1][name] for name, ms in times[0].items() if name in times[1]}

    def exponents(self, library="fast"):
        """How a library's time grows with each size of the `scaling` rows, the others as most rows have them: the slope
        of the line through the logarithms, 1 where time is proportional to the size."""
        rows = [row for row in self.scaling if "median_ms" in row["libraries"].get(library, {})]
        found = {}
        for size in rows[0]["sizes"] if rows else ():
            base = {name: statistics.mode(row["sizes"][name] for row in rows) for name in rows[0]["sizes"]}
            series = [row for row in rows if {**row["sizes"], size: None} == {**base, size: None}]
            if len(series) > 1:
                x = [math.log(row["sizes"][size]) for row in series]
                y = [math.log(row["libraries"][library]["median_ms"]) for row in series]
                found[size] = statistics.linear_regression(x, y).slope
        return found

    def bound_ms(self, row):
        """The least time the machine allows, for arithmetic or for memory; None where no peak was measured."""
        peaks = self.peaks.get(str(row["threads"]))
        if not peaks:
            return None
        return max(row["gflop"] / peaks[row.get("dtype", "float32")], row["gbytes"] / peaks["copy"]) * 1e3

    # ---- as data ---------------------------------------------------------------------------------------------------

    def to_json(self):
        """The report as JSON text; `Report.from_json` reads it."""
        content = {"format": FORMAT, "machine": self.machine, "settings": self.settings, "peaks": self.peaks}
        for kind in _TIMED:
            rows = self.rows(kind)
            content[kind] = [{**row, "ratios": {**self.ratios(row), "per_token": self.per_token(row)}} for row in rows]
        content["exponents"] = self.exponents()
        return json.dumps({**content, "memory": self.memory, "overheads": self.overheads}, indent=1)

    @classmethod
    def from_json(cls, text):
        content = json.loads(text)
        if content.get("format") != FORMAT:
            raise ValueError(f"report: expected format {FORMAT}, got {content.get('format')}")
        report = cls(content["machine"], content["settings"])
        report.peaks, report.overheads = content["peaks"], content["overheads"]
        report.memory = content.get("memory", [])
        for kind in _TIMED:
            rows = content.get(kind, [])  # an old report lacks some
            setattr(report, kind, [{name: row[name] for name in row if name != "ratios"} for row in rows])
        return report

    def save(self, path):
        """Write JSON or Markdown, by the suffix; into a folder both, named after day and CPU. Returns the paths."""
        path = Path(path)
        if path.suffix not in (".json", ".md"):
            path.mkdir(parents=True, exist_ok=True)
            cpu = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(.*?\)", "", self.machine["cpu"]).lower()).strip("-")
            name = f"{self.machine['date'][:10]}-{cpu}-{self.settings['threads']}-threads"
            return [self.save(path / f"{name}{suffix}")[0] for suffix in (".json", ".md")]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((self.to_json() if path.suffix == ".json" else self.to_markdown()) + "\n")
        return [path]

    # ---- as tables -------------------------------------------------------------------------------------------------

    def table(self):
        """The report as text."""
        return "\n\n".join(self._sections(_text_table))

    def to_markdown(self):
        """The report as Markdown."""
        return "\n\n".join(self._sections(_markdown_table))

    def _sections(self, lay_out):
        yield "\n".join(self._heading())
        notes = []
        for kind in KINDS:
            if self.rows(kind):
                cells = self._scaling_cells if kind == "scaling" else self._workload_cells
                yield lay_out(cells(kind, notes))
        if self.memory:
            yield lay_out(self._memory_cells(notes))
        if self.kernels:
            yield lay_out(self._kernel_cells(notes))
        if self.overheads:
            yield lay_out([("overhead", "measured"), *((name, str(value)) for name, value in self.overheads.items())])
        if notes or self.timed_rows():
            yield "\n".join([*self._verdict(), *notes])

    def _heading(self):
        m, s = self.machine, self.settings
        yield f"{m.get('cpu', 'unknown CPU')}, {m.get('cores', '?')} cores, {m.get('date', '')}"
        yield f"load average before: {m.get('load', '?')}"
        yield ", ".join(f"{name} {version}" for name, version in m.get("versions", {}).items())
        yield f"threads for every library: {s.get('threads')}; {s.get('rounds')} turns of {s.get('seconds')} s each"
        yield "medians in ms, +- half the interquartile range"
        for threads, peak in self.peaks.items():
            yield (
                f"peak on {threads} thread{'s' if threads != '1' else ''}: {peak['float32']:.0f} GFLOP/s float32, "
                f"{peak['float64']:.0f} float64; copy {peak['copy']:.1f} GB/s"
            )

    def _workload_cells(self, kind, notes):
        rows = self.rows(kind)
        shown = _libraries_in(rows)
        speed = (f"{_COUNTED.get(kind, 'tokens')}/s",) if any(row.get("tokens") for row in rows) else ()
        ratios = ("against the fastest peer", "against course", "GFLOP/s", "of peak", "of bound")
        yield (KINDS[kind], *map(_name, shown), *ratios, *speed)
        for row in rows:
            r = self.ratios(row)
            yield (
                row["name"],
                *(_time_cell(row, library, notes) for library in shown),
                _against(r["against_peer"], r["peer"]),
                _times(r["against_reference"]),
                *(_number(r[name], form) for name, form in _SHARES),
                *(_number(r["tokens"], ",.0f") for _ in speed),
            )
            compared = ", ".join(f"{_name(library)} {_times(ratio)}" for library, ratio in self.per_token(row).items())
            if compared:
                notes.append(f"{row['name']}: the time of a token over that in {row['beside']}: {compared}")
            _note_disturbance(row, notes)

    def _scaling_cells(self, kind, notes):
        rows = self.rows(kind)
        shown = _libraries_in(rows)
        yield (KINDS[kind], *rows[0]["sizes"], *map(_name, shown), "us a token", "GFLOP/s", "of peak", "of bound")
        for row in rows:
            r = self.ratios(row)
            yield (
                row["name"],
                *map(str, row["sizes"].values()),
                *(_time_cell(row, library, notes) for library in shown),
                _number(r["seconds_per_token"] and 1e6 * r["seconds_per_token"], ".3g"),
                *(_number(r[name], form) for name, form in _SHARES),
            )
        for library in shown:
            grows = ", ".join(f"{size}^{exponent:.2f}" for size, exponent in self.exponents(library).items())
            if grows:
                notes.append(f"{_name(library)}: an update's time grows as {grows}")
        _note_disturbance({**rows[0], "name": kind}, notes)  # they took turns

    def _memory_cells(self, notes):
        yield ("memory of an update, MB", "held", "must be kept", "ratio")
        for row in self.memory:
            if "error" in row:
                notes.append(f"ERROR: memory of {row['name']}: {row['error']}")
                yield (row["name"], "ERROR", "", "")
                continue
            held, kept = row["held_bytes"], row["kept_bytes"]
            yield (row["name"], f"{held / 1e6:.2f}", f"{kept / 1e6:.2f}", f"{held / kept:.2f}")

    def _kernel_cells(self, notes):
        shown = _libraries_in(self.kernels)
        ratios = ("against the twin", "against the fastest peer", "GFLOP/s", "GB/s", "of bound")
        yield ("kernel", "threads", *map(_name, shown), *ratios)
        for row in self.kernels:
            r = self.ratios(row)
            yield (
                row["name"],
                str(row["threads"]),
                *(_time_cell(row, library, notes) for library in shown),
                _times(r["against_twin"]),
                _against(r["against_peer"], r["peer"]),
                _number(r["gflops"] if row["gflop"] else None, ".1f"),
                _number(r["gbytes"], ".1f"),
                _number(r["of_bound"], ".0%"),
            )
            _note_disturbance(row, notes)

    def _verdict(self):
        for row in self.timed_rows():
            r = self.ratios(row)
            if r["slower_than"]:
                times = {other: row["libraries"][other]["median_ms"] for other in r["slower_than"]}
                others = ", ".join(f"{_name(other)} ({ms:.3g} ms)" for other, ms in times.items())
                yield f"SLOWER: {row['name']} ({r['ours_ms']:.3g} ms) than {others}"


_COUNTED = {"inference": "images"}  # by a row's `tokens`

_SHARES = (("gflops", ".1f"), ("of_peak", ".0%"), ("of_bound", ".0%"))


def _libraries_in(rows):
    """Those that have a result in one of the rows, in the order of LIBRARIES; BLAS behind the twin."""
    timed = {library for row in rows for library in row["libraries"]}
    order = dict.fromkeys(("fast", "numpy", "blas", *LIBRARIES))
    return [library for library in order if library in timed]


def _name(library):
    return LIBRARIES.get(library, "BLAS" if library == "blas" else library)


def _time_cell(row, library, notes):
    result = row["libraries"].get(library)
    if result is None:
        return ""
    if "missing" in result:
        return "not installed"
    if "error" in result:
        notes.append(f"ERROR: {row['name']}, {_name(library)}: {result['error']}")
        return "ERROR"
    spread = (result["q3_ms"] - result["q1_ms"]) / 2 / result["median_ms"]
    return f"{result['median_ms']:.3g} +-{spread:.0%}"


def _note_disturbance(row, notes):
    says = {
        "idle_cpu": "a library that should have waited took {:.0%} of a CPU",
        "others_cpu": "in a turn other processes took {:.0%} of the CPUs",
    }
    for what, share in row.get("disturbance", {}).items():
        if share > DISTURBING[what]:
            notes.append(f"DISTURBED: {row['name']}: {says[what].format(share)}{_advice(row, what)}")


def _advice(row, what):
    """Threads that wait for each other suffer most from another program on one of their cores."""
    return "; try --threads 1" if what == "others_cpu" and row.get("threads", 1) > 1 else ""


def _against(ratio, peer):
    if ratio is None:
        return ""
    return f"{_times(ratio)} {_name(peer)}{'' if ratio >= 1 else ' SLOWER'}"


def _times(ratio):
    return "" if ratio is None else f"{ratio:.2f}x"


def _number(value, form):
    return "" if value is None else format(value, form)


def _text_table(rows):
    rows = [tuple(row) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in lines)


def _markdown_table(rows):
    first, *others = rows
    lines = [first, ("---", *["---:"] * (len(first) - 1)), *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
