"""CIFAR-10 files: every way to write them loads the same, damaged and hostile ones raise ValueError and do no more."""

import gzip
import io
import pickle
import struct
import subprocess
import sys
import tarfile
import traceback
from pathlib import Path

import numpy as np
import pooch
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dd2424fast.data import CIFAR_CLASSES, cifar10, load_cifar10

TRAIN = [f"data_batch_{number}" for number in range(1, 6)]
OFFICIAL = Path(__file__).parents[3] / "shared/data/cifar10/cifar-10-python-subset.tar.gz"


def make_batch(seed, n=3):
    """Rows as the files hold them, and their labels."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3072), np.uint8), rng.integers(0, 10, n).tolist()


def pickled(rows, labels, protocol=2):
    filenames = [f"train/cat/{number:04d}.jpg".encode() for number in range(len(labels))]
    batch = {b"batch_label": b"some", b"labels": labels, b"data": rows, b"filenames": filenames}
    return pickle.dumps(batch, protocol=protocol)


def pickled_by_python2(rows, labels):
    """The same, operation for operation as Python 2 and NumPy 1 wrote the official files."""
    return b"".join(
        [
            b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x04someq\x03U\x06labelsq\x04]q\x05(",
            b"".join(b"K" + bytes([label]) for label in labels),
            b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09",
            b"(K\x01J" + struct.pack("<i", len(rows)) + b"M\x00\x0c\x86cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b",
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
            + struct.pack("<i", rows.size)
            + rows.tobytes(),
            b"tbr\x0c\x00\x00\x00u.",
        ]
    )


WRITERS = {"python2": pickled_by_python2}
WRITERS |= {f"protocol{p}": lambda rows, labels, p=p: pickled(rows, labels, p) for p in (2, 3, 4)}


def write_folder(folder, names=(*TRAIN, "test_batch")):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        seed = (*TRAIN, "test_batch").index(name)
        (folder / name).write_bytes(pickled_by_python2(*make_batch(seed)))
    return folder


def write_archive(file, members):
    """Write a .tar.gz of (TarInfo or name, content)."""
    with tarfile.open(file, "w:gz") as archive:
        for member, content in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(f"cifar-10-batches-py/{member}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


def official_members():
    return [(name, pickled_by_python2(*make_batch(seed))) for seed, name in enumerate((*TRAIN, "test_batch"))]


def expected(*seeds):
    rows, labels = zip(*(make_batch(seed) for seed in seeds), strict=True)
    return np.concatenate(rows).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.concatenate(labels)


def assert_loaded(got, ref):
    """Compare (x, y) pairs: values, and the promised dtypes and layout."""
    (x, y), (ref_x, ref_y) = got, ref
    assert (x.dtype, y.dtype) == (np.uint8, np.int64)
    assert x.flags.c_contiguous
    assert x.flags.writeable
    assert np.array_equal(x, ref_x)
    assert np.array_equal(y, ref_y)


# What loads


@pytest.mark.parametrize("writer", WRITERS)
def test_every_way_to_write_a_batch_loads_the_same(tmp_path, writer):
    for name, seed in (("data_batch_1", 0), ("test_batch", 5)):
        (tmp_path / name).write_bytes(WRITERS[writer](*make_batch(seed)))
    train, test = load_cifar10(tmp_path, batches=(1,))
    assert_loaded(train, expected(0))
    assert_loaded(test, expected(5))


def test_pixels_are_rows_columns_channels(tmp_path):
    rows = np.zeros((1, 3072), np.uint8)
    rows[0, [0, 1024 + 1, 2048 + 32]] = 10, 20, 30  # red at (0, 0), green at (0, 1), blue at (1, 0)
    for name in ("data_batch_1", "test_batch"):
        (tmp_path / name).write_bytes(pickled_by_python2(rows, [6]))
    (x, y), _ = load_cifar10(tmp_path, batches=(1,))
    assert [x[0, 0, 0].tolist(), x[0, 0, 1].tolist(), x[0, 1, 0].tolist()] == [[10, 0, 0], [0, 20, 0], [0, 0, 30]]
    assert x.sum() == 60
    assert CIFAR_CLASSES[y[0]] == "frog"


def test_batches_come_in_the_order_asked_for(tmp_path):
    train, _ = load_cifar10(write_folder(tmp_path), batches=[3, np.int64(1)])
    assert_loaded(train, expected(2, 0))


def test_places(tmp_path, monkeypatch):
    """A folder, the one above it, an archive and the folder that holds it; by argument, environment and default."""
    folder = write_folder(tmp_path / "a" / "cifar-10-batches-py")
    (tmp_path / "b").mkdir()
    archive = write_archive(tmp_path / "b" / "cifar-10-python.tar.gz", official_members())
    ref = expected(0, 1, 2, 3, 4)
    for place in (folder, str(folder), folder.parent, archive, archive.parent):
        assert_loaded(load_cifar10(place)[0], ref)
        monkeypatch.setenv("DD2424FAST_DATA", str(place))
        assert_loaded(load_cifar10()[0], ref)
    for unset in (lambda: monkeypatch.setenv("DD2424FAST_DATA", ""), lambda: monkeypatch.delenv("DD2424FAST_DATA")):
        unset()
        monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / {"dd2424fast": "b"}[project])
        assert_loaded(load_cifar10()[0], ref)


def test_archive_of_python_tar_with_dot_names(tmp_path):
    members = [(tarfile.TarInfo(f"./cifar-10-batches-py/{name}"), content) for name, content in official_members()]
    assert_loaded(load_cifar10(write_archive(tmp_path / "x.tar.gz", members))[1], expected(5))


@pytest.mark.parametrize("archive", [False, True])
def test_missing_batches_are_named_and_the_others_loaded(tmp_path, archive):
    names = ["data_batch_2", "data_batch_4", "test_batch"]
    members = [member for member in official_members() if member[0] in names]
    place = write_archive(tmp_path / "x.tar.gz", members) if archive else write_folder(tmp_path, names)
    with pytest.warns(UserWarning, match="without the missing data_batch_1, data_batch_3, data_batch_5$") as caught:
        train, test = load_cifar10(place)
    assert caught[0].filename == __file__
    assert_loaded(train, expected(1, 3))
    assert_loaded(test, expected(5))


def test_nothing_there_says_what_to_do(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"nowhere|no CIFAR-10 files") as caught:
            load_cifar10(place)
        assert str(caught.value) == f"no CIFAR-10 files at {place}"
        for hint in ("download=True", "path=", "DD2424FAST_DATA"):
            assert hint in "".join(traceback.format_exception(caught.value))


def test_without_training_or_test_batch(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no training batch, expected at least one of data_batch_2, data_batch_3"
    ):
        load_cifar10(write_folder(tmp_path / "a", ["data_batch_1", "test_batch"]), batches=(2, 3))
    with pytest.raises(FileNotFoundError, match="no test_batch"):
        load_cifar10(write_folder(tmp_path / "b", TRAIN))


@pytest.mark.parametrize("batches", [(), (0,), (6,), (1, 1), 1, "12", (1.0,), None])
def test_wrong_batches(tmp_path, batches):
    with pytest.raises(ValueError, match="batches: expected different integers from 1 to 5, got"):
        load_cifar10(tmp_path, batches=batches)


def test_wrong_path():
    with pytest.raises(TypeError, match="path: expected a str or a path-like object, got int"):
        load_cifar10(5)


# Downloading


@pytest.fixture
def retrieve(tmp_path, monkeypatch):
    """Stand in for pooch.retrieve: copy a local archive, and record the calls."""
    calls = []

    def fake(url, known_hash, path, fname):
        calls.append((url, known_hash))
        Path(path).mkdir(parents=True, exist_ok=True)
        return str(write_archive(Path(path) / fname, official_members()))

    monkeypatch.setattr(pooch, "retrieve", fake)
    return calls


def test_download_only_on_request_and_once(tmp_path, retrieve):
    place = tmp_path / "data"
    with pytest.raises(FileNotFoundError):
        load_cifar10(place)
    assert retrieve == []
    for _ in range(2):
        assert_loaded(load_cifar10(place, download=True)[0], expected(0, 1, 2, 3, 4))
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert retrieve == [(url, "md5:c58f30108f718f92721af3b95e74349a")]
    assert_loaded(load_cifar10(place)[1], expected(5))


def test_download_completes_a_folder_that_lacks_batches(tmp_path, retrieve):
    write_folder(tmp_path, ["data_batch_1", "test_batch"])
    load_cifar10(tmp_path, batches=(1,), download=True)
    assert retrieve == []
    for download in (True, False, True):
        assert_loaded(load_cifar10(tmp_path, batches=(1, 2), download=download)[0], expected(0, 1))
    assert len(retrieve) == 1


def test_download_to_a_named_archive(tmp_path, retrieve):
    load_cifar10(tmp_path / "mine.tar.gz", download=True)
    assert (tmp_path / "mine.tar.gz").is_file()


# Damaged and hostile batch files


class Call:
    """Pickles to a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


ROWS, LABELS = make_batch(0)
GOOD = pickled_by_python2(ROWS, LABELS)
DATA = GOOD.index(b"cnumpy.core")
OPENING, ARRAY = b"\x80\x02}(U\x06labels](K\x00eU\x04data", GOOD[DATA:-7]


def with_data(data):
    """A batch file of one image whose array is written by these operations."""
    return OPENING + data + b"u."


HOSTILE = {
    "empty": (b"", "truncated"),
    "cut": (GOOD[:-1], "truncated"),
    "cut in the pixels": (GOOD[:-1000], "truncated"),
    "text": (b"<html>404</html>", "operation"),
    "random": (np.random.default_rng(0).bytes(5000), "operation|truncated"),
    "protocol 0": (pickle.dumps({b"labels": [1]}, protocol=0), "operation"),
    "not a dict": (pickle.dumps([1, 2], protocol=2), "expected a dict"),
    "no labels": (pickle.dumps({b"data": ROWS}, protocol=2), "keys b'data' and b'labels'"),
    "no data": (pickle.dumps({b"labels": LABELS}, protocol=2), "keys b'data' and b'labels'"),
    "data of bytes": (pickle.dumps({b"labels": LABELS, b"data": ROWS.tobytes()}, protocol=3), "b'data': expected"),
    "float data": (pickled(ROWS.astype(np.float32), LABELS), "uint8 array"),
    "signed data": (pickled(ROWS.astype(np.int8), LABELS), "uint8 array"),
    "object data": (pickled(np.array([[None] * 3072]), [0]), "uint8 array"),
    "flat data": (pickled(ROWS.reshape(-1), LABELS), "shape"),
    "grey data": (pickled(ROWS[:, :1024], LABELS), "shape"),
    "image data": (pickled(ROWS.reshape(3, 32, 32, 3), LABELS), "shape"),
    "Fortran data": (pickled(np.asfortranarray(ROWS), LABELS), "C-ordered"),
    "no images": (pickled_by_python2(ROWS[:0], []), "n > 0"),
    "huge shape": (GOOD.replace(b"J\x03\x00\x00\x00M", b"J\xff\xff\xff\x7fM"), "all its bytes"),
    "negative shape": (GOOD.replace(b"J\x03\x00\x00\x00M", b"J\xff\xff\xff\xffM"), "all its bytes"),
    "string as shape": (GOOD.replace(b"J\x03\x00\x00\x00M", b"U\x03abcM"), "shape"),
    "too few labels": (pickled(ROWS, LABELS[:2]), "expected 3, one per image, got 2"),
    "label 10": (pickled(ROWS, [0, 10, 1]), "integers from 0 to 9"),
    "label -1": (pickled(ROWS, [0, -1, 1]), "integers from 0 to 9"),
    "label True": (pickled(ROWS, [0, True, 1]), "integers from 0 to 9"),
    "label of bytes": (pickled(ROWS, [0, b"1", 1]), "integers from 0 to 9"),
    "labels as array": (pickled(ROWS, np.array(LABELS, np.uint8)), "b'labels': expected a list"),
    "unknown global": (b"\x80\x02cos\nsystem\nU\x02ls\x85R.", "'os system'"),
    "unknown global, protocol 4": (pickle.dumps(Call(print, 1), protocol=4), "'builtins print'"),
    "unknown numpy global": (b"\x80\x02cnumpy\nload\nU\x02ls\x85R.", "'numpy load'"),
    "dotted global": (b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.", "'numpy ndarray.dumps'"),
    "global of numbers": (b"\x80\x04K\x01K\x02\x93.", "int"),
    "call of a string": (with_data(b"U\x05numpyK\x00\x85R"), "not a function"),
    "call without arguments": (with_data(b"cnumpy\nndarray\nNR"), "not a function"),
    "encode nothing": (with_data(b"c_codecs\nencode\n(tR"), "index"),
    "state of a list": (with_data(b"]K\x01b"), "state"),
    "state of a function": (with_data(b"cnumpy\nndarray\nK\x01b"), "state"),
    "append to a tuple": (b"\x80\x02K\x01\x85K\x02a.", "list"),
    "items of a list": (b"\x80\x02]U\x01aK\x02s.", "dict"),
    "odd items": (b"\x80\x02}(U\x01au.", "zip"),
    "unset memo": (b"\x80\x02h\x07.", "7"),
    "empty stack": (b"\x80\x02.", "pop"),
    "no mark": (b"\x80\x02K\x01t.", "pop"),
    "unicode beyond latin-1": (b"\x80\x02X\x03\x00\x00\x00\xe2\x82\xac.", "latin-1"),
    "bytes of 4 GB": (b"\x80\x02T\xff\xff\xff\xffabc.", "truncated"),
    "extension": (b"\x80\x02\x82\x01.", "operation"),
    "persistent id": (b"\x80\x02Pabc\n.", "operation"),
    # With pickle.Unpickler: 32 GB for the memo, and an overflow of the C stack when the key is hashed.
    "memo bomb": (b"\x80\x02}r\xff\xff\xff\x7f.", "expected a dict"),
    "nested key": (b"\x80\x02}N" + b"\x85" * 50_000 + b"Ns.", "strings as keys"),
    "nested data": (with_data(b"N" + b"\x85" * 50_000), "b'data': expected"),
    "nested calls": (with_data(b"cnumpy\ndtype\nq\x01" + b"h\x01" * 49_999 + b"K\x00" + b"\x85R" * 50_000), "b'data'"),
    "self-containing labels": (b"\x80\x02}(U\x06labels]q\x01h\x01aU\x04data" + ARRAY + b"u.", "integers from 0 to 9"),
}


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "cifar-10-batches-py", ["data_batch_1", "test_batch"])


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file_is_refused_by_name(folder, case):
    content, problem = HOSTILE[case]
    (folder / "data_batch_1").write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s)data_batch_1: not a sound CIFAR-10 batch file: .*({problem})"):
        load_cifar10(folder, batches=(1,))


def test_nothing_is_executed(folder, tmp_path):
    target = tmp_path / "executed"
    call = Call(Path.write_text, target, "x")
    pickle.loads(pickle.dumps(call, protocol=2))
    assert target.exists()  # the attack works on the pickle module
    target.unlink()
    for protocol in range(2, 6):
        (folder / "test_batch").write_bytes(pickle.dumps({b"labels": LABELS, b"data": call}, protocol=protocol))
        with pytest.raises(ValueError, match="test_batch: not a sound CIFAR-10 batch file: its pickle names"):
            load_cifar10(folder, batches=(1,))
    assert not target.exists()


def test_operations_are_counted(folder, monkeypatch):
    """A full batch as Python 3 writes it at protocol 2, the longest way, fits with room to spare."""
    (folder / "data_batch_1").write_bytes(pickled(ROWS, [0] * 10_000))
    with pytest.raises(ValueError, match="expected 3, one per image, got 10000"):
        load_cifar10(folder, batches=(1,))
    monkeypatch.setattr(cifar10, "_MAX_STEPS", cifar10._MAX_STEPS // 20)
    with pytest.raises(ValueError, match=r"data_batch_1: .* more than 25,000 operations"):
        load_cifar10(folder, batches=(1,))


def test_file_larger_than_any_batch(folder, monkeypatch):
    monkeypatch.setattr(cifar10, "_MAX_FILE", len(GOOD) - 1)
    with pytest.raises(ValueError, match="data_batch_1: larger than any CIFAR-10 batch file"):
        load_cifar10(folder, batches=(1,))


STRUCTURE = [i for i in range(len(GOOD)) if not 0 <= i - GOOD.index(ROWS.tobytes()) < ROWS.size]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("fuzz"), ["data_batch_1", "test_batch"])


def assert_sound_or_refused(folder, content):
    (folder / "data_batch_1").write_bytes(content)
    try:
        (x, y), _ = load_cifar10(folder, batches=(1,))
    except ValueError as error:
        assert "data_batch_1" in str(error)
    else:
        assert x.shape == (len(y), 32, 32, 3)
        assert len(y) > 0
        assert 0 <= y.min() <= y.max() <= 9


FUZZ = settings(max_examples=100, deadline=None, derandomize=True, database=None)


@FUZZ
@given(changes=st.lists(st.tuples(st.sampled_from(STRUCTURE), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated_file_is_sound_or_refused(fuzzed, changes):
    content = bytearray(GOOD)
    for position, value in changes:
        content[position] = value
    assert_sound_or_refused(fuzzed, bytes(content))


@FUZZ
@given(start=st.sampled_from(STRUCTURE), stop=st.sampled_from(STRUCTURE), inserted=st.binary(max_size=20))
def test_spliced_file_is_sound_or_refused(fuzzed, start, stop, inserted):
    """Truncation (stop beyond start), deletion, insertion and repetition (stop before start)."""
    assert_sound_or_refused(fuzzed, GOOD[:start] + inserted + GOOD[stop:])
    assert_sound_or_refused(fuzzed, GOOD[:start] + inserted)


# Damaged and hostile archives


def link(name, target):
    info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def test_only_regular_members_of_the_expected_names_are_read(tmp_path):
    (tmp_path / "secret").write_bytes(GOOD)
    hostile = [
        (link("data_batch_2", str(tmp_path / "secret")), b""),
        (tarfile.TarInfo("../data_batch_3"), GOOD),
        (tarfile.TarInfo("other/data_batch_4"), b"not read"),
        (tarfile.TarInfo(str(tmp_path / "data_batch_5")), GOOD),
    ]
    members = [member for member in official_members() if member[0] in ("data_batch_1", "test_batch")]
    before = sorted(tmp_path.iterdir())
    archive = write_archive(tmp_path / "x.tar.gz", [*hostile, *members])
    with pytest.warns(UserWarning, match="missing data_batch_2, data_batch_3, data_batch_4, data_batch_5"):
        train, _ = load_cifar10(archive)
    assert_loaded(train, expected(0))
    assert sorted(tmp_path.iterdir()) == sorted([*before, archive])


def test_damaged_member_is_named(tmp_path):
    archive = write_archive(tmp_path / "x.tar.gz", [("data_batch_1", GOOD[:-1]), ("test_batch", GOOD)])
    with pytest.raises(ValueError, match=r"x\.tar\.gz: cifar-10-batches-py/data_batch_1: .*truncated"):
        load_cifar10(archive, batches=(1,))


@pytest.fixture(scope="module")
def archive_bytes(tmp_path_factory):
    return write_archive(tmp_path_factory.mktemp("archive") / "x.tar.gz", official_members()[4:]).read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b"not an archive",
        lambda b: gzip.decompress(b),
        lambda b: gzip.compress(b"no tar" * 1000),
        lambda b: b[: len(b) // 2],
        lambda b: b[:-1],
        lambda b: b[:-8] + b"\0\0\0\0" + b[-4:],
        lambda b: gzip.compress(gzip.decompress(b)[:5000]),
        lambda b: b[:3000] + b"\xff" * 50 + b[3050:],
    ],
    ids=["empty", "text", "plain tar", "no tar", "half", "cut", "checksum", "half a tar", "overwritten"],
)
def test_damaged_archive(tmp_path, archive_bytes, damage):
    file = tmp_path / "x.tar.gz"
    file.write_bytes(damage(archive_bytes))
    with pytest.raises(ValueError, match=r"x\.tar\.gz: not a sound CIFAR-10 archive"):
        load_cifar10(file, batches=(5,))


def test_damaged_header_is_not_taken_for_the_end(tmp_path):
    """tarfile stops without a word; only the checksum at the end of the .gz, a few MiB on, tells."""
    file = write_archive(tmp_path / "x.tar.gz", [*official_members(), ("readme.html", bytes(4 * 2**20))])
    packed = file.read_bytes()
    content = bytearray(gzip.decompress(packed))
    content[content.index(b"cifar-10-batches-py/readme")] ^= 1
    file.write_bytes(gzip.compress(content)[:-8] + packed[-8:])
    with pytest.raises(ValueError, match=r"not a sound CIFAR-10 archive .* CRC"):
        load_cifar10(file)


def test_archive_that_unpacks_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "_MAX_ARCHIVE", 3 * 2**20)
    archive = write_archive(tmp_path / "x.tar.gz", [("padding", bytes(4 * 2**20)), *official_members()])
    with pytest.raises(ValueError, match="unpacks to more than 3 MiB"):
        load_cifar10(archive)


def test_archive_with_a_member_that_claims_to_be_huge(tmp_path):
    info = tarfile.TarInfo("cifar-10-batches-py/readme.html")
    info.size = 2**62
    file = tmp_path / "x.tar.gz"
    file.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240)))
    with pytest.raises(ValueError, match="unpacks to more than 512 MiB"):
        load_cifar10(file)


def test_archive_of_many_members(tmp_path):
    archive = write_archive(tmp_path / "x.tar.gz", [*official_members(), *((f"{i}", b"") for i in range(100))])
    with pytest.raises(ValueError, match="more than 100 members"):
        load_cifar10(archive)


def test_archive_of_nested_headers(tmp_path):
    """tarfile reads a long name's header, and the header after it, by recursion."""
    info = tarfile.TarInfo("././@LongLink")
    info.type = tarfile.GNUTYPE_LONGNAME
    file = tmp_path / "x.tar.gz"
    file.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) * 3000, 1))
    with pytest.raises(ValueError, match="not a sound CIFAR-10 archive"):
        load_cifar10(file)


# The real files, and the import


@pytest.fixture(scope="module")
def official():
    if not OFFICIAL.is_file():
        pytest.skip("needs ../shared/data/cifar10 beside the repository")
    return OFFICIAL


def test_official_files(official):
    train, test = load_cifar10(official)
    assert (len(train[0]), len(test[0])) == (5170, 1017)
    with tarfile.open(official) as archive:
        files = {Path(info.name).name: archive.extractfile(info).read() for info in archive if info.isreg()}
    batches = {name: pickle.loads(files[name], encoding="bytes") for name in (*TRAIN, "test_batch", "batches.meta")}
    for got, names in ((train, TRAIN), (test, ["test_batch"])):
        images = np.concatenate([batches[name][b"data"] for name in names]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        assert_loaded(got, (images, np.concatenate([batches[name][b"labels"] for name in names])))
    assert tuple(name.decode() for name in batches["batches.meta"][b"label_names"]) == CIFAR_CLASSES


def test_import_is_light():
    """A stand-in for the package's own __init__ leaves only this room's imports to see."""
    root = Path(cifar10.__file__).parents[1]
    program = f"""
import sys, types
package = sys.modules["dd2424fast"] = types.ModuleType("dd2424fast")
package.__path__ = [{str(root)!r}]
import dd2424fast.data
print(sorted({{"sklearn", "pooch", "tarfile", "gzip", "scipy"}} & set(sys.modules)))
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
