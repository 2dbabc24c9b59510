"""What the commands share: errors as one line, options, output. Nothing here imports NumPy."""

import functools
import json
import sys
from pathlib import Path

import click


class Group(click.Group):
    """Commands, listed as they were added, that fail with one clear line, and with exit code 130 after Ctrl-C."""

    def list_commands(self, ctx):
        return list(self.commands)

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except (KeyboardInterrupt, click.Abort):
            say("interrupted")
            raise click.exceptions.Exit(130) from None
        except BrokenPipeError:  # the reader of a pipe has gone, as in `dd2424fast info | head -1`
            sys.stdout = None
            raise click.exceptions.Exit(1) from None
        except Exception as error:
            if ctx.meta.get(DEBUG):
                raise
            say(_one_line(error))
            raise click.exceptions.Exit(1) from None


DEBUG = "dd2424fast.debug"


def _one_line(error):
    expected = isinstance(error, OSError | ValueError | TypeError | ArithmeticError | ImportError | RuntimeError)
    text = " ".join(str(error).split()) or type(error).__name__
    return text if expected else f"{type(error).__name__}: {text} (--debug shows where)"


def say(text):
    """A message to standard error."""
    click.echo(f"dd2424fast: {text}", err=True)


def command(examples):
    """Make a command with --debug, its examples below its help."""
    epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples)

    def make(function):
        made = click.command(epilog=epilog)(function)
        made.params.append(
            click.Option(
                ["--debug"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_remember_debug,
                help="Show an error's traceback.",
            )
        )
        return made

    return make


def _remember_debug(ctx, option, value):
    ctx.meta[DEBUG] = value


def _use_threads(ctx, option, value):
    if value is not None:
        import threadpoolctl

        import dd2424fast as dd

        ctx.call_on_close(functools.partial(dd.set_num_threads, dd.get_num_threads()))
        dd.set_num_threads(value)
        # NumPy's own pool too: the definition should have no more cores than the kernels.
        ctx.with_resource(threadpoolctl.threadpool_limits(value, user_api="blas"))


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of all that is random."
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(1),
    expose_value=False,
    callback=_use_threads,
    help="CPU threads to use.  [default: all cores]",
)
MODEL_ARGUMENT = click.argument(
    "model_path", metavar="MODEL", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
DATA_HELP = "digits (part of scikit-learn), or CIFAR-10: a folder with its batch files or its archive (.tar.gz)."


def print_json(value):
    """One JSON object on standard output; null for what is no finite number."""
    from ..history import plain

    click.echo(json.dumps(plain(value), indent=1, allow_nan=False))


class OutputFile(click.Path):
    """A file to write: its folder must exist, so that hours of training do not end in an error."""

    def __init__(self):
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value, param, ctx):
        path = super().convert(value, param, ctx)
        if not path.parent.is_dir():
            self.fail(f"the folder {path.parent} does not exist", param, ctx)
        return path


class PlotFile(OutputFile):
    """A picture to write, in one of Matplotlib's formats."""

    def convert(self, value, param, ctx):
        from matplotlib.backend_bases import FigureCanvasBase

        path = super().convert(value, param, ctx)
        formats = FigureCanvasBase.get_supported_filetypes()
        if path.suffix.lstrip(".").lower() not in formats:
            self.fail(f"{path.name!r} should end with one of {', '.join(sorted(formats))}", param, ctx)
        return path


class Numbers(click.ParamType):
    """Positive integers separated by commas; `none` for no number at all, where that is allowed."""

    name = "n,n,.."

    def __init__(self, empty=False, highest=None):
        self.empty, self.highest = empty, highest

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        if self.empty and value == "none":
            return ()
        try:
            numbers = tuple(int(part) for part in value.split(","))
        except ValueError:
            numbers = (0,)
        if min(numbers) < 1 or (self.highest and max(numbers) > self.highest):
            limit = f"from 1 to {self.highest}" if self.highest else "of at least 1"
            self.fail(f"expected integers {limit} separated by commas, got {value!r}", param, ctx)
        return numbers
