"""Files of torch.save without PyTorch: what it writes is read exactly, and nothing in a file is ever run."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from copy import copy

import numpy as np
import pytest

from qwen3_tts_jax import torch_file
from qwen3_tts_jax.torch_file import TorchFileError
from tests.golden_voice import PATH, items

GOLDEN = PATH.read_bytes()
FLOATS = np.arange(1, 7, dtype="<f4").tobytes()


def archive(data, storages=None, *, root="voice", entries=None, compression=zipfile.ZIP_STORED):
    """The bytes of a file of torch.save with the pickle `data`."""
    names = {"data.pkl": data, "byteorder": b"little", **(entries or {})}
    names |= {f"data/{key}": content for key, content in (storages or {"0": FLOATS}).items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in names.items():
            if content is not None:
                file.writestr(f"{root}/{name}", content)
    return buffer.getvalue()


def text(string):
    return b"X" + len(string.encode()).to_bytes(4, "little") + string.encode()


def number(value):
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    content = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


ZERO = text("0")


def tensor(
    shape=(2, 3), strides=(3, 1), offset=0, *, storage="FloatStorage", key=ZERO, count=6, kind="storage", tail=b""
):
    """A pickle of one tensor."""
    pid = b"(" + text(kind) + f"ctorch\n{storage}\n".encode() + key + text("cpu") + number(count) + b"tQ"
    arguments = pid + number(offset) + numbers(shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)R" + tail
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR."


@pytest.fixture
def read(tmp_path):
    def read_bytes(content):
        path = tmp_path / "file.pt"
        path.write_bytes(content)
        return torch_file.read(path)

    return read_bytes


def test_golden():
    content = torch_file.read(PATH)
    assert list(content) == ["items"]
    for item, expected in zip(content["items"], items(), strict=True):
        assert list(item) == list(expected)
        for key, value in expected.items():
            if isinstance(value, np.ndarray):
                assert item[key].dtype == value.dtype
                np.testing.assert_array_equal(item[key], value)
            else:
                assert item[key] == value
                assert type(item[key]) is type(value)


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize(
    ("storage", "dtype"),
    [
        ("DoubleStorage", "f8"), ("FloatStorage", "f4"), ("HalfStorage", "f2"), ("LongStorage", "i8"),
        ("IntStorage", "i4"), ("ShortStorage", "i2"), ("CharStorage", "i1"), ("ByteStorage", "u1"),
    ],
)  # fmt: skip
def test_dtypes_and_byte_orders(read, storage, dtype, order):
    values = np.array([[1, 100, 3], [57, 5, 116]]).astype(dtype) * (-1 if dtype[0] != "u" else 1)
    stored = values.astype(values.dtype.newbyteorder(order)).tobytes()
    got = read(archive(tensor(storage=storage), {"0": stored}, entries={"byteorder": order.encode()}))
    assert got.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize("order", ["little", "big"])
def test_bfloat16(read, order):
    stored = np.array([0x3F80, 0xC049, 0x0001], np.uint16)
    stored = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    data = tensor((3,), (1,), storage="BFloat16Storage", count=3)
    got = read(archive(data, {"0": stored}, entries={"byteorder": order.encode()}))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.array([1.0, -3.140625, 2.0**-133], np.float32))


def test_a_file_that_does_not_tell_its_byte_order_is_little_endian(read):
    np.testing.assert_array_equal(read(archive(tensor(), entries={"byteorder": None})), [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "expected"),
    [
        ((3, 2), (1, 3), 0, [[1, 4], [2, 5], [3, 6]]),
        ((2,), (2,), 3, [4, 6]),
        ((2, 3), (0, 1), 3, [[4, 5, 6], [4, 5, 6]]),
        ((), (), 5, 6),
        ((0, 3), (3, 1), 0, np.zeros((0, 3))),
    ],
)
def test_views(read, shape, strides, offset, expected):
    got = read(archive(tensor(shape, strides, offset)))
    assert got.shape == shape
    np.testing.assert_array_equal(got, expected)


def test_an_empty_storage(read):
    for shape, strides in (((0,), (1,)), ((3, 0), (1, 1))):
        assert read(archive(tensor(shape, strides, count=0), {"0": b""})).shape == shape


def test_any_number_of_tensors_takes_the_memory_of_their_storage(read):
    one = tensor()[2:-1]
    first, second = read(archive(b"\x80\x02" + one + one + b"\x86."))
    np.testing.assert_array_equal(first, second)
    assert np.shares_memory(first, second)
    assert not first.flags.writeable


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tensor(offset=1), "reaches beyond its storage of 6 elements"),
        (tensor((2, 3), (4, 1)), r"a tensor \[2, 3\] reaches beyond"),
        (tensor((1, 1), (10**15, 1), 6), "reaches beyond"),
        (tensor((7,), (0,)), "reaches beyond"),
        (tensor((2**62, 2**62), (0, 0)), "reaches beyond"),
        (tensor((2, 3), (-3, 1)), "no counts"),
        (tensor((-2, 3), (3, 1)), "no counts"),
        (tensor(offset=-1), "no counts"),
        (tensor((True, 3), (3, 1)), "no counts"),
        (tensor((2, 3), (3,)), "not dense"),
        (tensor(tail=b"}" + text("neg") + b"\x88s"), "not dense"),
        (tensor(count=5), "storage 0 has 6 elements instead of 5"),
        (tensor()[:-1] + tensor(count=7)[2:], "storage 0 has 6 elements instead of 7"),
        (tensor(storage="LongStorage"), "storage 0 has 3 elements instead of 6"),
        (tensor((1,) * 9, (1,) * 9), "not dense"),
        (tensor(key=text("1")), "lacks the entry 'data/1'"),
        (tensor(key=text("../data.pkl")), r"lacks the entry 'data/\.\./data.pkl'"),
        (tensor(key=number(0)), "refers to no storage"),
        (tensor(count=True), "refers to no storage"),
        (tensor(kind="module"), "refers to no storage"),
        (b"\x80\x02" + text("0") + b"Q.", "cannot be read"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + text("0") * 3 + b"\x87R.", "cannot be read"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x00K\x00))\x89NtR.", "not dense"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "cannot be read"),
        (b"\x80\x02h\x07.", "cannot be read"),
        (b"\x80\x02e.", "cannot be read"),
        (b"\x80\x02}", "cannot be read"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "cannot be read"),
        (b"", "cannot be read"),
        (b"\x80\x02}r\xff\xff\xff\xff.", "asks for more memory"),
    ],
)  # fmt: skip
def test_broken_pickles(read, tmp_path, data, message):
    with pytest.raises(TorchFileError, match=message) as caught:
        read(archive(data))
    assert str(caught.value).startswith(f"{tmp_path / 'file.pt'} ")
    assert "\n" not in str(caught.value)
    assert message == "cannot be read" or "cannot be read" not in str(caught.value)


class Touch:
    """Unpickled by the ordinary unpickler, it makes a file."""

    def __init__(self, function, *arguments):
        self._call = (function, arguments)

    def __reduce__(self):
        return self._call


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_run(read, tmp_path, protocol):
    marker = tmp_path / "marker"
    for call in (
        Touch(os.system, f"touch {marker}"),
        Touch(eval, f"open({str(marker)!r}, 'w')"),
        Touch(open, str(marker), "w"),
        Touch(os.mkdir, str(marker)),
    ):
        data = pickle.dumps({"items": [call]}, protocol)
        with pytest.raises(TorchFileError, match="refused"):
            read(archive(data))
        assert not marker.exists()
        with pytest.raises(TorchFileError, match="refused"):
            read(archive(data + b"trailing"))
    pickle.loads(data)
    assert marker.exists()  # the last of them was no blank


@pytest.mark.parametrize(
    ("data", "asked"),
    [
        (b"\x80\x02cos\nsystem\n" + text("true") + b"\x85R.", r"asks to run 'os\.system"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + text("true") + b"\x85R.", r"asks to run 'posix\.system"),
        (b"\x80\x02cbuiltins\neval\n" + text("1") + b"\x85R.", r"asks to run 'builtins\.eval"),
        (b"\x80\x02cbuiltins\ngetattr\n" + text("a") + text("b") + b"\x86R.", r"asks to run 'builtins\.getattr"),
        (b"\x80\x04\x8c\x05torch\x8c\x0astorage.os\x93.", r"asks to run 'torch\.storage\.os"),
        (b"\x80\x04\x8c\x0ccollections\x8c\x0bOrderedDict\x93.", "cannot be read"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", r"asks to run .*__globals__"),
        (b"\x80\x02ctorch._utils\nnumpy\n.", r"asks to run 'torch\._utils\.numpy"),
        (b"\x80\x02ctorch\nBoolStorage\n.", r"asks to run 'torch\.BoolStorage"),
        (b"\x80\x02ccollections\nnamedtuple\n.", r"asks to run 'collections\.namedtuple"),
        (b"\x80\x02ccollections\nOrderedDict\n}\x85R.", r"cannot be read \(TypeError\)"),
        (b"\x80\x04" + text("os") + text("\n\x1b[2J") + b"\x93.", r"asks to run 'os\.\\n\\x1b\[2J': refused"),
        (b"\x80\x04" + text("os") + text("x" * 1000) + b"\x93.", r"asks to run 'os\.x{77}\\u2026': refused"),
        (b"\x80\x02(" + text("true") + b"ios\nsystem\n.", "instruction INST"),
        (b"\x80\x02(cos\nsystem\n" + text("true") + b"o.", "instruction OBJ"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "instruction NEWOBJ"),
        (b"\x80\x02ccollections\nOrderedDict\n)R}b.", "instruction BUILD"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x05\x96" + (2**60).to_bytes(8, "little") + b".", "cannot be read"),
        (b"\x80\x05\x96" + (1).to_bytes(8, "little") + b"a.", "instruction BYTEARRAY8"),
    ],
)
def test_what_is_refused_is_named(read, data, asked):
    with pytest.raises(TorchFileError, match=asked):
        read(archive(data))


def test_every_cut_is_noticed(read):
    for size in range(len(GOLDEN)):
        with pytest.raises(TorchFileError, match="cut short or damaged"):
            read(GOLDEN[:size])


def test_damage_is_noticed_or_harmless(read):
    """Flipped bytes, in the file and (with checksums that agree) in its pickle: one kind of error, or a result."""
    with zipfile.ZipFile(PATH) as file:
        entries = {name.split("/", 1)[1]: file.read(name) for name in file.namelist()}
    storages = {name.removeprefix("data/"): entries[name] for name in entries if name.startswith("data/")}
    random = np.random.RandomState(0)
    errors = 0
    for round_ in range(600):
        damaged = bytearray(GOLDEN if round_ % 2 else entries["data.pkl"])
        for position in random.randint(0, len(damaged), random.randint(1, 4)):
            damaged[position] = random.randint(0, 256)
        try:
            read(bytes(damaged) if round_ % 2 else archive(bytes(damaged), storages))
        except TorchFileError:
            errors += 1
    assert 300 < errors < 600


def test_other_files(read):
    with pytest.raises(TorchFileError, match=r"before 1\.6, .*load it with PyTorch and save it again"):
        read(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")
    with pytest.raises(TorchFileError, match=r"no file of torch\.save"):
        read(b"RIFF....WAVE")
    with pytest.raises(TorchFileError, match=r"no file of torch\.save"):
        read(b"")
    with pytest.raises(TorchFileError, match=r"needs one entry data\.pkl"):
        read(archive(None))
    with pytest.raises(TorchFileError, match=r"needs one entry data\.pkl"):
        read(archive(tensor(), entries={"inner/data.pkl": b""}))
    with pytest.raises(TorchFileError, match=r"byte order is b'middle'"):
        read(archive(tensor(), entries={"byteorder": b"middle"}))
    with pytest.raises(FileNotFoundError):
        torch_file.read("no such file.pt")


def test_bombs(read, monkeypatch):
    with pytest.raises(TorchFileError, match="compressed or encrypted"):
        read(archive(tensor(), {"0": bytes(10**6)}, compression=zipfile.ZIP_DEFLATED))
    buffer = io.BytesIO(archive(tensor(), {"0": bytes(3000)}))
    with zipfile.ZipFile(buffer, "a") as file:
        again = copy(file.getinfo("voice/data/0"))
        again.filename = "voice/data/1"
        file.filelist.append(again)
        file.writestr("voice/version", "3")
    with pytest.raises(TorchFileError, match="entries are larger than the file"):
        read(buffer.getvalue())
    monkeypatch.setattr(torch_file, "LARGEST_BYTES", 1 << 20)
    assert read(archive(tensor(), entries={"more": bytes(10**6)})).shape == (2, 3)
    with pytest.raises(TorchFileError, match="has 1 MiB; voices take less than 1"):
        read(archive(tensor(), entries={"more": bytes(1 << 20)}))
