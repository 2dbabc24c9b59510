"""The command line: `dd2424fast demo | train | generate | evaluate | gradcheck | bench | profile | info`.

One file a command. They import what computes only when they run, so that `dd2424fast --help` answers at once.
"""

import click

from .bench import bench
from .common import Group
from .demo import demo
from .evaluate import evaluate
from .generate import generate
from .gradcheck import gradcheck
from .info import info
from .profile import profile
from .train import train

EXAMPLES = """\b
Examples:
  dd2424fast demo
  dd2424fast train mlp --data digits --batch-norm --output digits.safetensors
  dd2424fast evaluate digits.safetensors --data digits
  dd2424fast train lm --text shakespeare.txt --output shakespeare.safetensors
  dd2424fast generate shakespeare.safetensors --prompt ROMEO: --length 500

Results go to standard output, progress and messages to standard error.

\b
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM.
"""


@click.group(cls=Group, epilog=EXAMPLES)
@click.version_option(package_name="dd2424fast", message="dd2424fast %(version)s")
def main():
    """Small neural networks, trained fast on the CPU."""


for _command in (demo, train, generate, evaluate, gradcheck, bench, profile, info):
    main.add_command(_command)
