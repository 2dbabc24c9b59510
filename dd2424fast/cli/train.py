"""`dd2424fast train`: one command for every kind of network."""

import click

from .common import Group
from .train_images import convnet, linear, mlp, patchify, resnet
from .train_text import lm

EXAMPLES = """\b
Examples:
  dd2424fast train mlp --data digits --hidden 50 --batch-norm --output digits.safetensors
  dd2424fast train linear --data digits --epochs 40
  dd2424fast train convnet --data ~/cifar-10-batches-py --batch-norm --flip --shift 4 --output cifar.safetensors
  dd2424fast train lm --text shakespeare.txt --cell lstm --output shakespeare.safetensors
  dd2424fast train lm --epochs 50 --checkpoint run.safetensors             (Ctrl-C saves)
  dd2424fast train lm --epochs 50 --checkpoint run.safetensors --resume    (goes on, bit for bit)
"""


@click.group(cls=Group, epilog=EXAMPLES)
def train():
    """Train a network, and test it.

    After Ctrl-C or SIGTERM the checkpoint and the model are saved as they are.
    """


for _command in (mlp, linear, convnet, patchify, resnet, lm):
    train.add_command(_command)
