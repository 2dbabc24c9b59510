"""Running the command line in tests; the fixture `start` runs it in a process of its own."""

import time

from click.testing import CliRunner

from dd2424fast.cli import main


def run(*args):
    """The result of a command in this process."""
    return CliRunner().invoke(main, [str(arg) for arg in args])


def wait_for(path, process):
    """Wait until a process has written a file."""
    end = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
