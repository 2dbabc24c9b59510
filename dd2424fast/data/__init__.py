"""Data sets, and what prepares them for training."""

from dd2424fast.data.augmentation import Augment
from dd2424fast.data.cifar10 import CIFAR_CLASSES, load_cifar10
from dd2424fast.data.course import course_parameters, from_columns, load_course_parameters, to_columns
from dd2424fast.data.digits import load_digits
from dd2424fast.data.preparation import Standardizer, train_validation_split
from dd2424fast.data.text import TextCorpus, python_topics, speakers
from dd2424fast.data.tokenizers import BPE, Char, Tokenizer, Word

__all__ = [
    "BPE",
    "CIFAR_CLASSES",
    "Augment",
    "Char",
    "Standardizer",
    "TextCorpus",
    "Tokenizer",
    "Word",
    "course_parameters",
    "from_columns",
    "load_cifar10",
    "load_course_parameters",
    "load_digits",
    "python_topics",
    "speakers",
    "to_columns",
    "train_validation_split",
]
