"""CIFAR-10 from its official files: five batches of training images and one of test images.

A batch file is a pickle, and a pickle is a program. `pickle.Unpickler` is not safe to run a stranger's with, however
strict its `find_class`: in Python 3.11 nine bytes make its memo take 32 GB, and a deeply nested tuple as a dict key
overflows the C stack. `_run` is a machine with only the operations that batch files use: it calls nothing, and its
memory is bounded by the file's size and the number of operations.
"""

import io
import operator
import os
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
_MD5 = "c58f30108f718f92721af3b95e74349a"
_ARCHIVE = "cifar-10-python.tar.gz"
_FOLDER = "cifar-10-batches-py"
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = "test_batch"

# The official files hold 31 MB and 31,000 operations; Python 3 at protocol 2 writes up to 62 MB and 110,000.
_MAX_FILE = 64 * 2**20
_MAX_STEPS = 500_000
_MAX_ARCHIVE = 512 * 2**20
_MAX_MEMBERS = 100


def load_cifar10(path=None, *, batches=(1, 2, 3, 4, 5), download=False):
    """Load the CIFAR-10 images and labels.

    Parameters
    ----------
    path : str or path-like, optional
        A folder with the batch files (or with the subfolder ``cifar-10-batches-py``, or with
        ``cifar-10-python.tar.gz``), or such an archive itself, which is read without being unpacked to disk.
        In a folder whose batch files lack some, the archive goes before them.
        Default: the environment variable ``DD2424FAST_DATA``, else the user's cache folder,
        ``pooch.os_cache("dd2424fast")``.
    batches : sequence of int
        Which of the training batches 1 to 5 to load, in this order.
    download : bool
        Fetch the official archive (170 MB, checked by its MD5) into the folder, unless the files asked for are
        already there.

    Returns
    -------
    (x, y), (x_test, y_test) : tuples of ndarray
        Images, uint8 of shape (n, 32, 32, 3), C-contiguous; labels, int64 of shape (n,), which index
        `CIFAR_CLASSES`. The caller owns them.

    Raises
    ------
    FileNotFoundError
        There is nothing at `path`, no training batch that was asked for, or no test batch. That last file is always
        needed: a test set of no images would give a meaningless accuracy far from its cause.
    ValueError
        A file is truncated, damaged or not a CIFAR-10 batch file (the message names it), or `batches` is wrong.

    Warns
    -----
    UserWarning
        Some of the training batches asked for are missing; the others are loaded.

    Notes
    -----
    The files are pickles. A small interpreter reads them and runs no code from them, so that a stranger's file is safe.
    At its peak, loading holds the images twice (370 MB for all of them).

    References
    ----------
    A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    https://www.cs.toronto.edu/~kriz/cifar.html

    Examples
    --------
    >>> (x, y), (x_test, y_test) = load_cifar10("cifar-10-batches-py", batches=(1, 2))  # doctest: +SKIP
    >>> x.shape, x.dtype, CIFAR_CLASSES[y[0]]  # doctest: +SKIP
    ((20000, 32, 32, 3), dtype('uint8'), 'frog')
    """
    train = _train_names(batches)
    place = _default_place() if path is None else _as_path(path)
    names = (*train, _TEST)
    source = _find(place, names)
    if download and not _is_complete(source, names):
        source = _fetch(place)
    if source is None:
        error = FileNotFoundError(f"no CIFAR-10 files at {place}")
        error.add_note(  # of no use at a shell's prompt, where no traceback shows it
            "Call load_cifar10(download=True) to fetch them (170 MB), or give path= (or the environment variable "
            f"DD2424FAST_DATA) a folder that holds data_batch_1 ... test_batch or {_ARCHIVE}."
        )
        raise error
    read = _read_folder if source.is_dir() else _read_archive
    loaded = {name: _parse(program, where) for name, where, program in read(source, names)}

    found = [name for name in train if name in loaded]
    if not found:
        raise FileNotFoundError(f"{source}: no training batch, expected at least one of {', '.join(train)}")
    if _TEST not in loaded:
        raise FileNotFoundError(f"{source}: no {_TEST}, the one file of test images; put it beside {', '.join(found)}")
    if len(found) < len(train):
        missing = ", ".join(name for name in train if name not in loaded)
        warnings.warn(f"{source}: loaded without the missing {missing}", stacklevel=2)
    x, y = (np.concatenate(parts) for parts in zip(*(loaded[name] for name in found), strict=True))
    return (x, y), loaded[_TEST]


def _train_names(batches):
    try:
        numbers = [operator.index(number) for number in batches]
    except TypeError:
        numbers = []
    if not numbers or len(set(numbers)) < len(numbers) or not set(numbers) <= {1, 2, 3, 4, 5}:
        raise ValueError(f"batches: expected different integers from 1 to 5, got {batches!r}")
    return tuple(_TRAIN[number - 1] for number in numbers)


def _default_place():
    place = os.environ.get("DD2424FAST_DATA")
    if not place:
        import pooch

        place = pooch.os_cache("dd2424fast")
    return _as_path(place)


def _as_path(path):
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected a str or a path-like object, got {type(path).__name__}")
    return Path(path).expanduser()


def _find(place, names):
    """Return the folder of batch files or the archive that `place` stands for, the most complete one, or None."""
    if place.is_file():
        return place
    folders, archive = (place, place / _FOLDER), place / _ARCHIVE
    complete = [folder for folder in folders if _is_complete(folder, names)]
    partial = [folder for folder in folders if any((folder / name).is_file() for name in names)]
    return next(iter([*complete, *([archive] if archive.is_file() else []), *partial]), None)


def _is_complete(source, names):
    return source is not None and (source.is_file() or all((source / name).is_file() for name in names))


def _fetch(place):
    import pooch

    folder, name = (place.parent, place.name) if place.suffix == ".gz" else (place, _ARCHIVE)
    return Path(pooch.retrieve(URL, known_hash=f"md5:{_MD5}", path=folder, fname=name))


def _read_folder(folder, names):
    """Yield (name, where, content) of the batch files in a folder."""
    for name in names:
        file = folder / name
        if file.is_file():
            with file.open("rb") as stream:
                yield name, str(file), _at_most(stream.read(_MAX_FILE + 1), file)


def _read_archive(path, names):
    """Yield (name, where, content) of the batch files in a .tar.gz, in the archive's order."""
    import gzip
    import tarfile
    import zlib

    wanted = {PurePosixPath(_FOLDER, name) for name in names}
    try:
        with gzip.open(path) as unpacked:
            stream = _Limited(unpacked, _MAX_ARCHIVE)
            with tarfile.open(fileobj=stream, mode="r|", bufsize=2**20) as archive:
                for count, member in enumerate(archive):
                    if count == _MAX_MEMBERS:
                        raise ValueError(f"more than {_MAX_MEMBERS} members")
                    if member.isreg() and (name := PurePosixPath(member.name)) in wanted:
                        where = f"{path}: {name}"
                        yield name.name, where, _at_most(archive.extractfile(member).read(_MAX_FILE + 1), where)
            while stream.read(2**20):
                pass  # gzip compares its checksum at the very end, and tarfile takes a damaged header for the end
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a sound CIFAR-10 archive (.tar.gz): {error}") from error


class _Limited:
    """Read a stream up to a limit: a small .gz file can unpack to terabytes, or have a member that claims to.

    What is asked for counts, not what comes: tarfile seeks by reading, and goes on at the end of the stream.
    """

    def __init__(self, stream, limit):
        self.stream, self.left = stream, limit

    def read(self, size):
        self.left -= size
        if self.left < 0:
            raise ValueError(f"unpacks to more than {_MAX_ARCHIVE >> 20} MiB")
        return self.stream.read(size)


def _at_most(content, where):
    if len(content) > _MAX_FILE:
        raise ValueError(f"{where}: larger than any CIFAR-10 batch file ({_MAX_FILE >> 20} MiB)")
    return content


def _parse(program, where):
    """Return the images, uint8 (n, 32, 32, 3), and the labels, int64 (n,), of a batch file's content."""
    try:
        batch = _run(program)
        if type(batch) is not dict or not {b"data", b"labels"} <= batch.keys():
            raise ValueError("expected a dict with the keys b'data' and b'labels'")
        pixels, labels = _pixels(batch[b"data"]), batch[b"labels"]
        if type(labels) is not list or not all(type(label) is int and 0 <= label <= 9 for label in labels):
            raise ValueError("b'labels': expected a list of integers from 0 to 9")
        if len(labels) != len(pixels):
            raise ValueError(f"b'labels': expected {len(pixels)}, one per image, got {len(labels)}")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: not a sound CIFAR-10 batch file: {error}") from error
    # A row holds the red, the green and the blue plane, each by rows: (3, 32, 32).
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), np.array(labels, np.int64)


def _pixels(data):
    """Return the array of shape (n, 3072) that a pickled ndarray describes, a view of its bytes."""
    match data:
        # An ndarray's state: version, shape, dtype, Fortran order or not, bytes.
        case _Object(_, _, (_, (int(rows), 3072), _Object("numpy dtype", (b"u1", *_), _), False, bytes(raw))):
            if raw and len(raw) == 3072 * rows:
                return np.frombuffer(raw, np.uint8).reshape(-1, 3072)
    raise ValueError("b'data': expected a C-ordered uint8 array of shape (n, 3072), n > 0, and all its bytes")


@dataclass(eq=False)
class _Object:
    """What a pickle asks to build: described, never built."""

    name: str
    arguments: tuple
    state: object = None


_NAMES = {
    "numpy.core.multiarray _reconstruct",  # NumPy 1
    "numpy._core.multiarray _reconstruct",  # NumPy 2
    "numpy ndarray",
    "numpy dtype",
    "_codecs encode",  # how Python 3 writes bytes at protocol 2
}
_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
# Operations that a little-endian number follows: under which name they run, and the bytes of the number.
_FORMS = {
    pickle.PROTO: (pickle.PROTO, 1),
    pickle.FRAME: (pickle.PROTO, 8),  # both only announce what comes
    pickle.BININT: (pickle.BININT, 4),
    pickle.BININT1: (pickle.BININT, 1),
    pickle.BININT2: (pickle.BININT, 2),
    pickle.BINPUT: (pickle.BINPUT, 1),
    pickle.LONG_BINPUT: (pickle.BINPUT, 4),
    pickle.BINGET: (pickle.BINGET, 1),
    pickle.LONG_BINGET: (pickle.BINGET, 4),
    pickle.SHORT_BINSTRING: (pickle.BINBYTES, 1),
    pickle.BINSTRING: (pickle.BINBYTES, 4),
    pickle.SHORT_BINBYTES: (pickle.BINBYTES, 1),
    pickle.BINBYTES: (pickle.BINBYTES, 4),
    pickle.SHORT_BINUNICODE: (pickle.BINUNICODE, 1),
    pickle.BINUNICODE: (pickle.BINUNICODE, 4),
}


def _operations(program):
    """Yield the operations of a pickle and their arguments, the short and the long forms under one name."""
    stream = io.BytesIO(program)

    def take(size):
        piece = stream.read(size)
        if len(piece) < size:
            raise ValueError("it is truncated")
        return piece

    for _ in range(_MAX_STEPS):
        code = take(1)
        op, width = _FORMS.get(code, (code, 0))
        argument = int.from_bytes(take(width), "little")  # no file has a negative number that matters
        if op == pickle.BINBYTES:
            argument = take(argument)
        elif op == pickle.BINUNICODE:
            op, argument = pickle.BINBYTES, take(argument).decode().encode("latin-1")
        elif op == pickle.GLOBAL:
            module, name = stream.readline(), stream.readline()
            argument = f"{module.decode().rstrip()} {name.decode().rstrip()}"
        yield op, argument


def _run(program):
    """Run a batch file's pickle (protocols 2 to 4) and return its value.

    The value is made of bytes, int, bool, None, list, tuple, dict with bytes keys, and `_Object`. Strings of every kind
    become bytes, so that a str on the stack is always the name of a global.
    """
    stack, marks, memo = [], [], {}

    def since(start):
        values = stack[start:]
        del stack[start:]
        return values

    for op, argument in _operations(program):
        if op in (pickle.BINBYTES, pickle.BININT):
            stack.append(argument)
        elif op == pickle.BINPUT:
            memo[argument] = stack[-1]
        elif op == pickle.MEMOIZE:
            memo[len(memo)] = stack[-1]
        elif op == pickle.BINGET:
            stack.append(memo[argument])
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op == pickle.EMPTY_LIST:
            stack.append([])
        elif op == pickle.EMPTY_DICT:
            stack.append({})
        elif op == pickle.MARK:
            marks.append(len(stack))
        elif op == pickle.TUPLE:
            stack.append(tuple(since(marks.pop())))
        elif op in _TUPLES:
            stack.append(tuple(since(-_TUPLES[op])))
        elif op in (pickle.APPEND, pickle.APPENDS):
            items = since(-1 if op == pickle.APPEND else marks.pop())
            list.extend(stack[-1], items)
        elif op in (pickle.SETITEM, pickle.SETITEMS):
            items = since(-2 if op == pickle.SETITEM else marks.pop())
            _set_items(stack[-1], items[::2], items[1::2])
        elif op == pickle.GLOBAL:
            stack.append(_allowed(argument))
        elif op == pickle.STACK_GLOBAL:
            module, name = since(-2)
            stack.append(_allowed(f"{module.decode()} {name.decode()}"))
        elif op == pickle.REDUCE:
            stack.append(_reduce(*since(-2)))
        elif op == pickle.BUILD:
            state = stack.pop()
            stack[-1].state = state
        elif op == pickle.STOP:
            return stack.pop()
        elif op != pickle.PROTO:
            raise ValueError(f"operation {op!r} of its pickle has no place in one")
    raise ValueError(f"it has more than {_MAX_STEPS:,} operations")


def _set_items(target, keys, values):
    # A key of another type could be a tuple nested so deep that hashing it overflows the C stack.
    if not all(type(key) is bytes for key in keys):
        raise ValueError("expected strings as keys")
    dict.update(target, zip(keys, values, strict=True))


def _allowed(name):
    if name not in _NAMES:
        raise ValueError(f"its pickle names {name[:80]!r}, which has no place in one")
    return name


def _reduce(function, arguments):
    if type(function) is not str or type(arguments) is not tuple:
        raise ValueError("its pickle calls something that is not a function")
    return arguments[0] if function == "_codecs encode" else _Object(function, arguments)
