"""Files in every container, written by PyTorch (tests/foreign/make_files.py) or here, byte by byte."""

import collections
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from FasterRCNN.engine import npz
from FasterRCNN.foreign.containers import read_contents

FILES = Path(__file__).parent / "foreign"


def numbers(name):
    with np.load(FILES / name, allow_pickle=False) as arrays:
        return dict(arrays)


def write(path, content):
    path.write_bytes(content)
    return path


def refusal(path):
    """The message of the ValueError that reading a file ends with; it names the file and is one line."""
    with pytest.raises(ValueError) as caught:
        read_contents(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["odd.pth", "odd_stream.pth"])
def test_tensors_of_every_type_and_layout(name):
    read, expected = read_contents(FILES / name).arrays, numbers("odd_numbers.npz")
    assert read.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(read[key].astype(np.float32), value, err_msg=key)
    assert read["int64"].dtype == np.int64
    assert read["bool"].dtype == np.bool_
    assert read["bfloat16"].dtype == np.float32
    assert read["scalar"].shape == ()
    assert np.shares_memory(read["whole"], read["transposed"])


def test_the_numbers_of_a_state_dict():
    arrays = read_contents(FILES / "torchvision.pth").arrays
    assert arrays["backbone.body.conv1.weight"].shape == (2, 3, 7, 7)
    assert arrays["backbone.body.bn1.num_batches_tracked"].dtype == np.int64


# ------------------------------------------------------------------------------------------------ pickles of arrays

ARRAYS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array(5, np.int64),
          "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "long": np.arange(300, dtype=np.float16)}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("key", ["model", "blobs", "state_dict"])
def test_pickles_of_python_3(tmp_path, protocol, key):
    saved = {key: collections.OrderedDict(ARRAYS), "__author__": "me", "epoch": 3, "lr": np.float64(0.1)}
    contents = read_contents(write(tmp_path / "weights.pkl", pickle.dumps(saved, protocol)))
    assert contents.texts == {"__author__": "me"}
    assert contents.arrays.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(contents.arrays[name], value)
        assert contents.arrays[name].dtype == value.dtype


def text_of_python_2(data):
    """The instruction that Python 2 writes for a str."""
    return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<I", len(data)) + data


def array_of_python_2(array):
    shape = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in array.shape) + b"t"
    dtype = (b"cnumpy\ndtype\n" + text_of_python_2(array.dtype.str[1:].encode()) + b"K\x00K\x01\x87R"
             + b"(K\x03" + text_of_python_2(b"<") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb")
    return (b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text_of_python_2(b"b") + b"\x87R"
            + b"(K\x01" + shape + dtype + b"\x89" + text_of_python_2(array.tobytes()) + b"tb")


CONFIG = b"MODEL: {}\nRESNETS: {STRIDE_1X1: false}\n" + b"# as long as a real one\n" * 20


def detectron_pickle(arrays):
    """The file that Detectron writes: protocol 2 of Python 2."""
    items = b"".join(text_of_python_2(name.encode()) + array_of_python_2(value) for name, value in arrays.items())
    return b"\x80\x02}(" + text_of_python_2(b"blobs") + b"}(" + items + b"u" + text_of_python_2(b"cfg") \
        + text_of_python_2(CONFIG) + b"u."


def test_pickles_of_python_2(tmp_path):
    arrays = {"conv1_w": np.random.default_rng(0).standard_normal((4, 3, 7, 7)).astype(np.float32),
              "conv1_b": np.arange(4, dtype=np.float32)}
    content = detectron_pickle(arrays)
    loaded = pickle.loads(content, encoding="latin1")  # that the bytes above are right
    np.testing.assert_array_equal(loaded["blobs"]["conv1_w"], arrays["conv1_w"])
    read = read_contents(write(tmp_path / "model.pkl", content))
    assert read.texts == {"cfg": CONFIG.decode()}
    for name, value in arrays.items():
        np.testing.assert_array_equal(read.arrays[name], value)


class Danger:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("danger, name", [
    (Danger(print, "run"), "print"), (Danger(eval, "1"), "eval"), (Danger(io.open, "x", "w"), "open"),
    (Danger(__import__("os").system, "true"), "system"), (np.array([{}], object), "O"),
    (Danger(__import__("functools").partial, print), "functools.partial")])
def test_anything_but_arrays_is_refused_by_name(tmp_path, capsys, danger, name, protocol):
    content = pickle.dumps({"model": {"w": np.ones(2), "x": danger}}, protocol)
    message = refusal(write(tmp_path / "x.pkl", content))
    assert "the file asks for" in message
    assert name in message
    assert capsys.readouterr().out == ""


# A tuple of twice a tuple of twice a tuple ...: a few bytes, but nobody could write it out or hash it.
ENDLESS = b"K\x01" + b"2\x86" * 99


@pytest.mark.parametrize("content, word", [
    (b"\x80\x02cposix\nsystem\nU\x04true\x85R.", "posix.system"),
    (b"\x80\x02(U\x04trueiposix\nsystem\n.", "INST"),
    (b"\x80\x02\x82\x01.", "EXT1"),
    (b"\x80\x02U\x01aQ.", "outside its pickle"),
    (b"\x80\x02cnumpy\ndtype\n(U\x03V99K\x00K\x01tR.", "V99"),
    (b"\x80\x02}(U\x05modelcnumpy\nndarray\n)Ru.", "damaged"),
    (b"\x80\x02K\x01.", "int"),
    (b"\x80\x02}.", "no weights"),
    (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.", "damaged"),
    (b"\x80\x02}(" + ENDLESS + b"K\x01u.", "no weights"),
    (b"\x80\x02ccollections\nOrderedDict\n](](" + ENDLESS + b"K\x01ee\x85R.", "no weights"),
    (b"\x80\x04\x8f(" + ENDLESS + b"\x90.", "not weights by name"),
    (b"\x80\x04" + ENDLESS + b"\x8c\x01a\x93.", "called 'a' of a tuple"),
    (b"\x80\x02" + ENDLESS + b")R.", "a call of a tuple"),
    (b"\x80\x02cnumpy\ndtype\n" + ENDLESS + b"\x85R.", "the type a tuple"),
    (b"\x80\x04\x8c\x05a\x1b[2J\x8c\x01b\x93.", "asks for a?[2J.b"),
    (b"", "empty"),
    (b"hello, this is no pickle", "damaged"),
])
def test_damaged_and_hostile_pickles(tmp_path, content, word):
    assert word in refusal(write(tmp_path / "x.pkl", content))


# ------------------------------------------------------------------------------------------------- other containers


def safetensors(arrays):
    """The bytes of a .safetensors file; arrays: name -> (type, array)."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (kind, value) in arrays.items():
        end = len(data) + value.nbytes
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [len(data), end]}
        data += value.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_safetensors(tmp_path):
    values = np.array([1.5, -2.0, 0.0], np.float32)
    upper_halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    path = write(tmp_path / "x.safetensors", safetensors({
        "a": ("F32", values.reshape(3, 1)), "b": ("BF16", upper_halves), "c": ("F16", values.astype(np.float16)),
        "d": ("I64", np.array(7)), "e": ("BOOL", np.array([True])), "f": ("F32", np.zeros((0, 2), np.float32))}))
    arrays = read_contents(path).arrays
    np.testing.assert_array_equal(arrays["a"], values.reshape(3, 1))
    np.testing.assert_array_equal(arrays["b"], values)
    np.testing.assert_array_equal(arrays["c"], values)
    assert (arrays["d"], arrays["e"].tolist(), arrays["f"].shape) == (7, [True], (0, 2))


@pytest.mark.parametrize("name", ["w\nfilled    conv0/W", "w\x1b[2J", "w" * 300])
def test_names_that_no_variable_has(tmp_path, name):
    """They are printed in the report, a line for each."""
    path = write(tmp_path / "x.safetensors", safetensors({name: ("F32", np.ones(2, np.float32))}))
    assert "is no name of a variable" in refusal(path)
    np.savez(tmp_path / "x.npz", **{name.replace("/", "."): np.ones(2)})
    assert "is no name of a variable" in refusal(tmp_path / "x.npz")


@pytest.mark.parametrize("spans", [([0, 8], [4, 12]), ([0, 4], [8, 12]), ([4, 12],)])
def test_safetensors_that_overlap_or_leave_gaps(tmp_path, spans):
    text = json.dumps({f"w{i}": {"dtype": "F32", "shape": [(last - first) // 4], "data_offsets": [first, last]}
                       for i, (first, last) in enumerate(spans)}).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(12)
    assert "overlap" in refusal(write(tmp_path / "x.safetensors", content))


def test_an_archive_that_unpacks_to_more_than_any_model(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", w=np.zeros(10**6, np.float32))
    assert read_contents(tmp_path / "x.npz").arrays["w"].shape == (10**6,)
    monkeypatch.setattr(npz, "_MOST_BYTES", 10**6)
    assert "would unpack to 0.0 GB" in refusal(tmp_path / "x.npz")


def test_an_encrypted_archive(tmp_path):
    np.savez(tmp_path / "x.npz", w=np.ones(3))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    message = refusal(write(tmp_path / "y.npz", bytes(content)))
    assert "encrypted" in message and message.count("damaged") == 1


def test_npz(tmp_path):
    np.savez(tmp_path / "x.npz", **{"conv0/W": np.ones((1, 2))})
    assert read_contents(tmp_path / "x.npz").arrays["conv0/W"].shape == (1, 2)
    np.savez(tmp_path / "y.npz", x=np.array([{}], object))
    assert "allow_pickle" in refusal(tmp_path / "y.npz")


@pytest.mark.parametrize("name", ["odd.pth", "odd_stream.pth", "pickle", "safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.98])
def test_truncated_files(tmp_path, name, share):
    own = {"pickle": detectron_pickle({"w": np.ones(99, np.float32)}),
           "safetensors": safetensors({"w": ("F32", np.ones(99, np.float32))})}
    content = own.get(name) or (FILES / name).read_bytes()
    refusal(write(tmp_path / "cut", content[:int(len(content) * share)]))


def test_a_flipped_byte_of_an_archive(tmp_path):
    content = bytearray((FILES / "odd.pth").read_bytes())
    place = content.index(struct.pack("<f", 23.0))
    content[place] ^= 1
    assert "CRC" in refusal(write(tmp_path / "x.pth", bytes(content)))


def archive(path, pickled, data=b"\x00" * 16, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("x/data.pkl", pickled)
        file.writestr("x/data/0", data)
        file.writestr("x/byteorder", "big")
    return path


def tensor_pickle(shape, strides, storage=b"ctorch\nFloatStorage\n", offset=0):
    def integers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    return (b"\x80\x02}(U\x01wctorch._utils\n_rebuild_tensor_v2\n((U\x07storage" + storage + b"U\x010U\x03cpuK\x04tQ"
            + b"K" + bytes([offset]) + integers(shape) + integers(strides) + b"\x89NtRu.")


def test_archives_by_hand(tmp_path):
    data = np.arange(4, dtype=">f4").tobytes()
    read = read_contents(archive(tmp_path / "x.pth", tensor_pickle((2,), (2,), offset=1), data))
    assert read.arrays["w"].tolist() == [1.0, 3.0]


@pytest.mark.parametrize("pickled, word", [
    (tensor_pickle((5,), (1,)), "beyond its storage"),
    (tensor_pickle((2,), (-1,)), "strides"),
    (tensor_pickle((2, 2), (1,)), "strides"),
    (tensor_pickle((2**30, 2**30), (0, 0)), "beyond its storage"),
    (tensor_pickle((2**23,), (0,)), "beyond its storage"),
    (b"\x80\x02" + ENDLESS + b"Q.", "an unknown sort, a tuple"),
    (tensor_pickle((1,), (1,), storage=b"ctorch\nQInt8Storage\n"), "torch.QInt8Storage"),
    (b"\x80\x02ctorch.storage\n_load_from_bytes\n.", "torch.storage._load_from_bytes"),
    (b"\x80\x02ctorchvision.models.resnet\nResNet\n.", "torchvision.models.resnet.ResNet"),
])
def test_archives_that_lie(tmp_path, pickled, word):
    assert word in refusal(archive(tmp_path / "x.pth", pickled))


def test_archives_of_another_kind(tmp_path):
    assert "compressed" in refusal(archive(tmp_path / "x.pth", tensor_pickle((1,), (1,)), b"\x00" * 10**5,
                                           zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", b"\x80\x02" + b"K\x010" * 10**5 + b"K\x01.")
    assert "data.pkl is compressed" in refusal(tmp_path / "w.pth")
    assert "16" in refusal(archive(tmp_path / "y.pth", tensor_pickle((4,), (1,)), b"\x00" * 12))
    with zipfile.ZipFile(tmp_path / "z.pth", "w") as file:
        file.writestr("readme.txt", "no weights")
    assert "data.pkl" in refusal(tmp_path / "z.pth")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        read_contents(tmp_path / "nothing.pth")


def test_the_name_of_spread_models_is_taken_off(tmp_path):
    content = pickle.dumps({"model": {"module.a": np.ones(1), "module.b": np.ones(1)}})
    assert list(read_contents(write(tmp_path / "x.pkl", content)).arrays) == ["a", "b"]


def test_a_tensor_beside_the_model_is_not_the_model(tmp_path):
    content = pickle.dumps({"pixel_mean": np.ones(3), "model": {"a": np.ones(1), "b": np.ones(1)}})
    assert list(read_contents(write(tmp_path / "x.pkl", content)).arrays) == ["a", "b"]
