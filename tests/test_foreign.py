"""Files are made the way the projects make them: torch.save, safetensors, and paddle.save's pickles of numpy arrays."""

import argparse
import builtins
import hashlib
import io
import os
import pickle
import sys
import time
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from segmv3.errors import CheckpointError
from segmv3.weights.foreign import read_foreign


def weights() -> "OrderedDict[str, torch.Tensor]":
    rng = torch.Generator().manual_seed(0)
    values = [("conv.weight", torch.randn(16, 3, 3, 3, generator=rng)), ("conv.bias", torch.randn(16, generator=rng))]
    values += [("bn.running_var", torch.rand(16, generator=rng)), ("bn.num_batches_tracked", torch.tensor(7))]
    return OrderedDict(values)


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(expected) and all(
        torch.equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype for name in expected
    )


def torch_zip(path: Path, content: object) -> None:
    torch.save(content, path)


def torch_legacy(path: Path, content: object) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def paddle(path: Path, content: object, protocol: int = 4) -> None:
    path.write_bytes(pickle.dumps(content, protocol))


def paddle_weights() -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in weights().items()}


WRITERS = [torch_zip, torch_legacy, paddle]


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        read_foreign(path)
    line = str(error.value)
    assert "\n" not in line and str(path) in line and error.value.exit_code == 2
    return line


# --- what is read


@pytest.mark.parametrize("write", [torch_zip, torch_legacy])
def test_a_plain_state_dict_keeps_names_types_and_order(write, tmp_path):
    path = tmp_path / "mobilenetv3-large-1cd25616.pth"  # content counts, not the suffix
    write(path, weights())
    foreign = read_foreign(path)
    assert same(foreign.tensors, weights()) and foreign.meta == {}
    assert foreign.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("write", [torch_zip, torch_legacy])
def test_the_meta_of_mmseg_comes_along_as_plain_types(write, tmp_path):
    meta = {"CLASSES": ("road", "car"), "PALETTE": [[128, 64, 128], [0, 0, 142]], "mmseg_version": "0.17.0+a1b2"}
    write(tmp_path / "m.pth", {"meta": meta | {"hook": weights()["conv.bias"]}, "state_dict": weights()})
    foreign = read_foreign(tmp_path / "m.pth")
    assert same(foreign.tensors, weights())
    assert foreign.meta == {"meta": meta | {"CLASSES": ["road", "car"]}, "container": "state_dict"}


def test_plain_weights_are_preferred_to_averaged_ones(tmp_path):
    averaged = {name: tensor + 1 for name, tensor in weights().items()}
    torch.save({"state_dict_ema": averaged, "epoch": 3, "state_dict": weights()}, tmp_path / "both.pth")
    torch.save({"state_dict_ema": averaged, "arch": "x", "args": argparse.Namespace(lr=1)}, tmp_path / "ema.pth")
    both, ema = read_foreign(tmp_path / "both.pth"), read_foreign(tmp_path / "ema.pth")
    assert same(both.tensors, weights()) and both.meta["container"] == "state_dict"
    assert both.meta["other_weights"] == ["state_dict_ema"] and both.meta["epoch"] == 3
    assert same(ema.tensors, averaged) and ema.meta == {"arch": "x", "container": "state_dict_ema"}


@pytest.mark.parametrize("write", [torch_zip, torch_legacy])
def test_mmengine_is_not_needed_and_its_objects_are_dropped(write, tmp_path, monkeypatch):
    class HistoryBuffer:  # pickles as mmengine's does: arrays, a scalar, and its methods by getattr
        def __init__(self):
            self._log_history, self._count_history = np.arange(3.0), np.array([], np.int64)
            self.max_length, self.last = 1000000, np.float64(0.5)
            self.statistics_methods = {"min": HistoryBuffer.min}

        def min(self):
            raise AssertionError("this ran")

        def __setstate__(self, state):
            raise AssertionError("this ran")

    module = types.ModuleType("mmengine.logging.history_buffer")
    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    HistoryBuffer.min.__module__, HistoryBuffer.min.__qualname__ = module.__name__, "HistoryBuffer.min"
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    meta = {"dataset_meta": {"classes": ("road", "car"), "palette": [[1, 2, 3]]}, "iter": 160000}
    hub = {"log_scalars": OrderedDict(loss=HistoryBuffer()), "runtime_info": {"best": np.float32(1), "seed": 5}}
    write(tmp_path / "m.pth", {"meta": meta, "state_dict": weights(), "message_hub": hub})
    assert b"getattr" in (tmp_path / "m.pth").read_bytes()
    foreign = read_foreign(tmp_path / "m.pth")
    assert same(foreign.tensors, weights())
    assert foreign.meta["meta"]["dataset_meta"] == {"classes": ["road", "car"], "palette": [[1, 2, 3]]}
    assert foreign.meta["message_hub"] == {"log_scalars": {}, "runtime_info": {"seed": 5}}


def test_safetensors_with_its_metadata(tmp_path):
    save_file(dict(weights()), tmp_path / "model.bin", metadata={"format": "pt", "note": "ra_in1k"})
    foreign = read_foreign(tmp_path / "model.bin")
    assert foreign.tensors.keys() == weights().keys()  # safetensors sorts by type and name
    assert all(torch.equal(foreign.tensors[name], tensor) for name, tensor in weights().items())
    assert foreign.meta == {"format": "pt", "note": "ra_in1k"}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_paddle_parameters_of_every_protocol(protocol, tmp_path):
    names = {"conv.weight": "conv2d_0.w_0"}
    paddle(tmp_path / "a.pdparams", {**paddle_weights(), "StructuredToParameterName@@": names}, protocol)
    foreign = read_foreign(tmp_path / "a.pdparams")
    assert same(foreign.tensors, weights()) and foreign.meta == {"StructuredToParameterName@@": names}


def test_paddle_pairs_column_order_and_numpy_1(tmp_path):
    class Parameter:  # as paddle >= 2 reduces its tensors
        def __init__(self, array):
            self.array = array

        def __reduce__(self):
            return tuple, (("linear_0.w_0", self.array),)

    array = np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    for protocol in (2, 4):
        data = pickle.dumps({"w": Parameter(array), "empty": np.zeros((0, 3), np.float16)}, protocol)
        numpy_1 = data.replace(b"numpy._core", b"numpy.core")
        if protocol == 4:  # strings and frames carry their length
            numpy_1 = numpy_1.replace(b"\x8c\x16numpy", b"\x8c\x15numpy")
            numpy_1 = numpy_1[:3] + (len(numpy_1) - 11).to_bytes(8, "little") + numpy_1[11:]
        for version in (data, numpy_1):
            (tmp_path / "w.pdparams").write_bytes(version)
            foreign = read_foreign(tmp_path / "w.pdparams")
            assert same(foreign.tensors, {"w": torch.from_numpy(array.copy()), "empty": torch.zeros(0, 3).half()})
            assert foreign.tensors["w"].is_contiguous() and foreign.meta == {}


def test_the_tensors_are_their_own(tmp_path):
    base = torch.arange(12.0)
    torch.save({"view": base[2:8].view(2, 3).T, "whole": torch.nn.Parameter(base)}, tmp_path / "v.pth")
    tensors = read_foreign(tmp_path / "v.pth").tensors
    assert torch.equal(tensors["view"], base[2:8].view(2, 3).T) and tensors["view"].is_contiguous()
    assert tensors["view"].untyped_storage().nbytes() == 24 and not tensors["whole"].requires_grad


# --- what asks to run


class Call:
    """Pickles as a call, the way every attack does."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Net(torch.nn.Module):
    pass


@pytest.mark.parametrize("write", WRITERS)
def test_nothing_runs_and_the_symbol_is_named(write, tmp_path):
    marker = tmp_path / "ran"
    for hostile, symbol in (
        (Call(os.system, f"touch {marker}"), f"{os.system.__module__}.system"),
        (Call(builtins.eval, f"open({str(marker)!r}, 'w')"), "builtins.eval"),
        (Call(open, str(marker), "w"), "io.open"),
        (Call(Path.touch, marker), "pathlib"),
        (Call(bytearray, 10**9), "builtins.bytearray"),
        (Call(torch.FloatTensor, 10**9), "torch.FloatTensor"),
        (Net(), "test_foreign.Net"),
    ):
        write(tmp_path / "hostile.pth", {"extra": hostile, "state_dict": weights()})
        line = refused(tmp_path / "hostile.pth")
        assert "asks to run" in line and symbol in line
    assert not marker.exists()


def test_other_ways_to_run_something_are_refused(tmp_path):
    path, marker = tmp_path / "hostile", tmp_path / "ran"
    command = f"touch {marker}".encode()
    for opcodes in (
        b"(S'%s'\nios\nsystem\n." % command,  # INST
        b"(cos\nsystem\nS'%s'\no." % command,  # OBJ
        b"\x8c\x02os\x8c\x06system\x93\x8c%c%s\x85R." % (len(command), command),  # STACK_GLOBAL
        b"cnumpy\nndarray\n\x94N}\x8c\x0c__setstate__cos\nsystem\ns\x86b.",  # BUILD on a stand-in's class
        b"}N}\x8c\x01a\x8c\x01bs\x86b.",  # BUILD on a plain value
        b"\x82\x01.",  # EXT1
        b"Pid\n.",  # PERSID
        b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",  # BYTEARRAY8 of 9 exabytes
        b"]r\xff\xff\xff\x7f.",  # LONG_BINPUT: a memo of 17 GB in the C unpickler
        b"]\x94h\x00a.",  # a list in itself
    ):
        path.write_bytes(b"\x80\x04" + opcodes)
        refused(path)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + opcodes)
            archive.writestr("archive/version", b"3\n")
        refused(path)
    assert not marker.exists()


def test_a_stand_in_stays_what_it_is(tmp_path):
    """An attack on the reader itself: a state given to a stand-in changes nothing for the next file."""
    path = tmp_path / "hostile.pdparams"
    path.write_bytes(b"\x80\x04cnumpy\ndtype\nN}\x8c\x05torch\x8c\x01xs\x86b.")
    refused(path)
    paddle(path, paddle_weights())
    assert same(read_foreign(path).tensors, weights())


# --- what declares more than it holds


def test_sizes_are_checked_before_memory_is_taken(tmp_path):
    path = tmp_path / "bomb"
    for write in (torch_zip, torch_legacy):
        write(path, {"w": torch.zeros(1).expand(10**6, 10**6)})
        assert "declares 4,000,000.0 MB of tensors in 0.0 MB" in refused(path)
    legacy = b"M\xe8\x03N"  # storage of 1,000 floats, no view
    torch_legacy(path, {"w": torch.zeros(1000)})
    path.write_bytes(path.read_bytes().replace(legacy, b"\x8a\x05\x00\x00\x00\x00\x04N"))
    refused(path)
    data = pickle.dumps({"w": np.zeros(300, np.float32)}, 4)
    assert data.count(b"M\x2c\x01\x85") == 1
    path.write_bytes(data.replace(b"M\x2c\x01\x85", b"J\xff\xff\xff\x7f\x85"))
    assert "an array of shape (2147483647,) holds 1,200 bytes" in refused(path)
    shared = np.zeros(1000, np.float32)
    paddle(path, dict.fromkeys(map(str, range(100)), shared))
    assert "declares 0.4 MB" in refused(path)


def test_a_compressed_archive_is_refused(tmp_path):
    path = tmp_path / "bomb.pth"
    torch.save({"w": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    assert "unpacks to more bytes than it has" in refused(path)


def test_arrays_of_objects_and_foreign_byte_orders_are_refused(tmp_path):
    path = tmp_path / "a.pdparams"
    for array, says in (
        (np.array([Call(os.system, "true")], object), "holds arrays of 'O8'"),
        (np.array([None]), "holds arrays of 'O8'"),
        (np.zeros(3, ">f4"), "big-endian"),
        (np.zeros(3, "f4,i4"), "holds arrays of 'V8'"),
        (np.array(["a"]), "holds arrays of 'U1'"),
    ):
        paddle(path, {"w": array})
        assert says in refused(path)


def test_values_beside_the_tensors_are_limited(tmp_path):
    laughs: list = ["ha"]
    for _ in range(30):
        laughs = [laughs] * 10
    torch.save({"state_dict": weights(), "meta": laughs}, tmp_path / "a.pth")
    assert "more than 100,000 values" in refused(tmp_path / "a.pth")


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    with (tmp_path / "big.pth").open("wb") as file:
        file.truncate(10**10)
    started = time.perf_counter()
    assert "larger than 500 MB" in refused(tmp_path / "big.pth")
    assert time.perf_counter() - started < 1


# --- what is damaged or something else


@pytest.mark.parametrize("write", [*WRITERS, lambda path, content: save_file(content, path)])
def test_a_cut_or_changed_file_is_refused_in_one_line(write, tmp_path):
    path = tmp_path / "w"
    write(path, paddle_weights() if write is paddle else dict(weights()))
    whole = path.read_bytes()
    ends = range(2, len(whole), max(1, len(whole) // 50))
    for end in (0, 1, *ends, len(whole) - 1):
        path.write_bytes(whole[:end])
        refused(path)
    for place in range(0, len(whole), max(1, len(whole) // 120)):
        for bit in (1, 16):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            try:
                found = read_foreign(path)
            except CheckpointError as error:
                assert "\n" not in str(error)
            else:  # no format but the zip has checksums: a value may differ, or a name
                assert found.tensors and all(t.is_contiguous() for t in found.tensors.values())
                assert write is not torch_zip or same(found.tensors, weights())


def test_other_files_are_named_for_what_they_are(tmp_path):
    path = tmp_path / "w.pth"
    archives = {}
    for name in ("readme.txt", "net/constants.pkl"):  # the second is in every TorchScript file
        archives[name] = io.BytesIO()
        with zipfile.ZipFile(archives[name], "w") as archive:
            archive.writestr(name, "hello")
    for data, says in (
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b'\xef\xbb\xbf\n{"error": "no"}', "is JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        (b"Not Found", "is text"),
        (b"\x08\x07\x12\x07pytorch\x1a\x05", "is an ONNX model"),
        (b"x" * 257 + b"ustar" + b"\0" * 250, "is a tar archive"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is of an unknown kind"),
        (archives["net/constants.pkl"].getvalue(), "is a TorchScript program"),
        (archives["readme.txt"].getvalue(), "is a zip archive, but not one that torch.save wrote"),
        (pickle.dumps([1, 2]), "holds no dictionary of tensors"),
        (pickle.dumps({"lr": 1}), "holds no tensors under names"),
    ):
        path.write_bytes(data)
        assert says in refused(path)
    assert "is a folder; name a weight file" in refused(tmp_path)
    assert "does not exist" in refused(tmp_path / "missing.pth")


def test_a_file_of_13_mb_takes_little_time(tmp_path):
    for write in WRITERS:
        values = {f"layer{i}.weight": np.ones((64, 64, 3, 3), np.float32) for i in range(90)}
        write(tmp_path / "w", values if write is paddle else {k: torch.from_numpy(v) for k, v in values.items()})
        assert (tmp_path / "w").stat().st_size > 13_000_000
        started = time.perf_counter()
        read_foreign(tmp_path / "w")
        assert time.perf_counter() - started < 5


def test_a_hundred_bytes_cannot_keep_us_busy(tmp_path):
    """Tuples in tuples, each twice: 2^45 leaves to hash when the last becomes a key."""
    program = b"\x80\x02}K\x01" + b"2\x86" * 45 + b"K\x01s."  # DUP TUPLE2 ... SETITEM
    (tmp_path / "bomb.pdparams").write_bytes(program)
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3")
    for name in ("bomb.pdparams", "bomb.pth"):
        with pytest.raises(CheckpointError, match="nests tuples of more than 100,000 values"):
            read_foreign(tmp_path / name)


def test_what_is_checked_is_what_torch_reads(tmp_path):
    """Torch's zip reader takes no notice of case, Python's does."""
    with zipfile.ZipFile(tmp_path / "case.pth", "w") as archive:
        archive.writestr("archive/DATA.PKL", b"\x80\x02cbuiltins\nbytearray\nJ\x00\xca\x9a;\x85R.")
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/version", "3")
    with pytest.raises(CheckpointError, match="names differ in case only"):
        read_foreign(tmp_path / "case.pth")
