"""Numpy arrays come out of a pickle unchanged, whoever wrote it, and nothing else does."""

import collections
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from norton_det.checkpoint.safe_pickle import read_arrays
from norton_det.utils.errors import InputError

ARRAYS = {
    "float32": np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::3],
    "big endian": np.arange(5, dtype=">f4"),
    "half": np.ones((3, 1), np.float16),
    "int64": np.arange(4),
    "bool": np.array([True, False]),
    "0-d": np.array(7),
    "empty": np.zeros((0, 2), np.float32),
    "scalar": np.float32(2.5),
}


def write(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_protocol(tmp_path, protocol):
    content = {"model": collections.OrderedDict(ARRAYS), "__author__": "someone", "matching_heuristics": True}
    read = read_arrays(write(tmp_path / "a.pkl", content, protocol))
    assert (read["__author__"], read["matching_heuristics"]) == ("someone", True)
    assert set(read["model"]) == set(ARRAYS)
    for name, array in ARRAYS.items():
        tensor = read["model"][name]
        assert tensor.is_contiguous() and tuple(tensor.shape) == np.shape(array)
        assert tensor.numpy().dtype == np.asarray(array).dtype.newbyteorder("=")
        assert np.array_equal(tensor.numpy(), array), name


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_names_before_and_since_numpy_2(tmp_path, module):
    data = pickle.dumps({"w": ARRAYS["float32"]}, 2)
    own = np.ndarray(0).__reduce__()[0].__module__.removesuffix(".multiarray").encode()
    (tmp_path / "a.pkl").write_bytes(data.replace(own + b".multiarray", module.encode() + b".multiarray"))
    assert torch.equal(read_arrays(tmp_path / "a.pkl")["w"], torch.from_numpy(ARRAYS["float32"]))


def test_pickle_of_python_2(tmp_path):
    # protocol 2 of Python 2: keys and array bytes are byte strings (opcode U), not text
    raw = struct.pack("<2f", 1.5, -200.25)
    state = (
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R" + state + b"\x89U\x08" + raw
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02}U\x07conv1_w" + array + b"tbs.")
    assert read_arrays(tmp_path / "a.pkl")["conv1_w"].tolist() == [1.5, -200.25]


class Runs:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_command_is_refused_by_name_and_not_run(tmp_path, protocol):
    mark = tmp_path / "ran"
    file = write(tmp_path / "a.pkl", {"model": Runs(os.system, f"touch {mark}")}, protocol)
    with pytest.raises(InputError, match=rf"^[^\n]*a\.pkl: expected only numpy arrays[^\n]*{os.name}\.system[^\n]*$"):
        read_arrays(file)
    assert not mark.exists()
    pickle.loads(file.read_bytes())  # it would have run
    assert mark.exists()


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (eval, ("1",), "eval"),
        (getattr, (1, "real"), "getattr"),
        (np.load, ("/etc/hostname",), "load"),
        (np.zeros, (3,), "zeros"),
        (torch._utils._rebuild_parameter, (None, False, {}), "_rebuild_parameter"),
        (bytearray, (10,), "bytearray"),
    ],
)
def test_other_calls_are_refused_by_name(tmp_path, function, arguments, name):
    with pytest.raises(InputError, match=rf"asks for [\w.]*{name}"):
        read_arrays(write(tmp_path / "a.pkl", {"a": Runs(function, *arguments)}))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (pickle.dumps([1]), "expected a dict of arrays, got list"),
        (pickle.dumps({"a": np.array([None], dtype=object)}), "got type 'O8'"),
        (pickle.dumps({"a": np.array(["text"])}), "got type 'U4'"),
        (pickle.dumps({"a": np.zeros(2, "f4,i4")}), "got type 'V8'"),
        (b"\x80\x02\x8e" + (2**60).to_bytes(8, "little") + b"abc.", "truncated or damaged"),
        (b"\x80\x02K\x01r\xff\xff\xff\x7f.", "memo number 2147483647"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02U\x01aQ.", "opcode BINPERSID"),
        (b"K\x00" * 500_001 + b".", "more than 500000 pickle opcodes"),
        (b"hello", "truncated or damaged"),
        (b"\x80\x04\x8c\x03a\nb\x8c\x01c\x93.", r"asks for a\nb.c"),
    ],
)
def test_what_is_no_dict_of_number_arrays(tmp_path, data, told):
    (tmp_path / "a.pkl").write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_arrays(tmp_path / "a.pkl")
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_shape_has_to_fit_the_bytes(tmp_path):
    data = pickle.dumps({"a": np.zeros((2, 3), np.float32)}, 2)
    assert data.count(b"K\x02K\x03\x86") == 1
    (tmp_path / "a.pkl").write_bytes(data.replace(b"K\x02K\x03\x86", b"J\xff\xff\xff\x7fK\x03\x86"))
    with pytest.raises(InputError, match="expected 25769803764 bytes for shape"):
        read_arrays(tmp_path / "a.pkl")


def test_a_pickle_cannot_alter_the_stand_ins(tmp_path):
    # BUILD with a pair sets attributes of what is on the stack, here of numpy's dtype and _reconstruct
    for name in (b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n"):
        (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + name + b"N}U\x04codeK\x01s\x86b.")
        with pytest.raises(InputError):
            read_arrays(tmp_path / "a.pkl")
    test_arrays_of_every_protocol(tmp_path, 2)


DATA = pickle.dumps({"model": ARRAYS, "__author__": "x"}, 2)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, len(DATA) - 1), byte=st.integers(0, 255), cut=st.booleans())
def test_damage_gives_arrays_or_one_line(tmp_path, position, byte, cut):
    damaged = DATA[:position] if cut else DATA[:position] + bytes([byte]) + DATA[position + 1 :]
    (tmp_path / "a.pkl").write_bytes(damaged)
    try:
        assert isinstance(read_arrays(tmp_path / "a.pkl"), dict)
        assert not cut
    except InputError as error:
        assert "\n" not in str(error) and str(error).startswith(f"{tmp_path / 'a.pkl'}: ")
