"""Files: safetensors with a format version in the header, written whole or not at all,
never pickled."""

import hashlib
import json
import os
import secrets
from pathlib import Path

import numpy as np

FORMAT = "1"


def write_atomically(path, content):
    """Put bytes at `path` so that a crash or a full disk at any moment leaves either the old file or the new one.

    Raises OSError, with the old file untouched, where the new one cannot be written.
    """
    path = _checked(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: the folder {path.parent} does not exist")
    temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder):
    """Make the rename itself durable, where the system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path, kind, tensors, header):
    """Write named arrays, and a header that JSON can hold, as a file of this kind ("model" or "checkpoint")."""
    tensors, header = {name: np.ascontiguousarray(a) for name, a in tensors.items()}, json.dumps(header)
    metadata = {"dd2424fast": FORMAT, "kind": kind, "header": header, "sha256": _digest(tensors, header)}
    write_atomically(path, in_order(tensors, metadata))


def in_order(tensors, metadata):
    """The bytes of a safetensors file, the same for the same content: safetensors orders metadata by chance."""
    from safetensors.numpy import save

    content = save(tensors, metadata)
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(content)[start:]))


def _digest(tensors, header):
    """Stands for all that a file says: safetensors itself notices no changed number."""
    digest = hashlib.sha256(header.encode())
    for name, a in sorted(tensors.items()):
        digest.update(f"{name} {a.dtype} {a.shape} ".encode())
        digest.update(a.data)
    return digest.hexdigest()


def _checked(path):
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path: expected a str or a path-like object, got {type(path).__name__}")
    return Path(path)


def read(path, kind):
    """Return (tensors, header) of a file that `write` wrote as this kind,
    or raise ValueError that says what it is instead."""
    path, tensors, metadata = opened(path)
    found = metadata.get("dd2424fast")
    if found is None:
        raise ValueError(
            f"{path}: dd2424fast did not write this file (transfer.load_weights reads its tensors into a model)"
        )
    if found != FORMAT:
        raise ValueError(f"{path}: written in format {found} of dd2424fast; this version reads format {FORMAT}")
    if metadata.get("kind") != kind:
        raise ValueError(f"{path}: holds a {metadata.get('kind')}, expected a {kind}")
    header = metadata.get("header", "")
    if metadata.get("sha256") != _digest(tensors, header):
        raise ValueError(f"{path}: damaged: its content does not fit its checksum")
    return tensors, json.loads(header)


def read_tensors(path):
    """Return the named arrays of a safetensors file, whoever wrote it: a model's of `write`, or a state_dict.
    bfloat16 comes as float32."""
    path, tensors, metadata = opened(path)
    return read(path, "model")[0] if metadata.get("dd2424fast") else tensors


def opened(path):
    """Return (path, tensors, metadata) of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    path = _checked(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no file {path}")
    try:
        with safe_open(path, "numpy") as file:
            tensors = {
                name: _bfloat16(path, name) if file.get_slice(name).get_dtype() == "BF16" else file.get_tensor(name)
                for name in file.keys()
            }
            return path, tensors, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or damaged ({error})") from None


def _bfloat16(path, name):
    """A tensor of bfloat16, which NumPy lacks, as float32: the upper half of its bits. The file was checked before."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        start, stop = entry["data_offsets"]
        file.seek(8 + length + start)
        bits = np.frombuffer(file.read(stop - start), "<u2")
    return (bits.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
