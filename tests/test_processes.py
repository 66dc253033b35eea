"""A predictor in other processes: forked, pickled and copied."""

import copy
import multiprocessing
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import segmv3
from segmv3.checkpoint import Card
from segmv3.errors import CheckpointError, ModelError, Segmv3Warning
from segmv3.runtime import Predictor
from segmv3.runtime.backends import TorchBackend

IMAGE = np.random.default_rng(0).integers(0, 256, (256, 512, 3), dtype=np.uint8)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGMV3_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    segmv3.save(segmv3.create_model("lraspp_small_d8"), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def in_child(work):
    """What `work` gives in a forked process."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(work()))
    child.start()
    try:
        return queue.get(timeout=100)
    finally:
        child.kill()


@pytest.mark.slow
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_a_forked_process_labels_as_its_parent(backend, weights):
    pytest.importorskip(backend)
    before = torch.get_num_threads()
    try:
        predict = segmv3.load(weights, backend=backend, threads=2)
        expected = predict(IMAGE)
        assert all(np.array_equal(labels, expected) for labels in in_child(lambda: [predict(IMAGE) for _ in range(20)]))

        def opened_there():
            with pytest.warns(Segmv3Warning, match="was forked from one that ran nets"):
                return segmv3.load(weights, backend="torch", threads=2)(IMAGE)

        if backend == "torch":
            assert np.array_equal(in_child(opened_there), expected)
    finally:
        torch.set_num_threads(before)


def in_threads(predict, count=2):
    """What so many callers at a time get."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(predict, [IMAGE] * count))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_threads_of_a_forked_process_label_as_those_of_its_parent(weights):
    pytest.importorskip("openvino")
    before = torch.get_num_threads()
    try:
        predict = segmv3.load(weights, backend="openvino", threads=1, precision="fp32")
        first, second = in_threads(predict)
        expected = predict(IMAGE)
        assert np.array_equal(first, expected) and np.array_equal(second, expected)
        there = in_child(lambda: [predict(IMAGE), *in_threads(predict), predict(IMAGE)])
        assert all(np.array_equal(labels, expected) for labels in there)
    finally:
        torch.set_num_threads(before)


def test_later_callers_of_openvino_get_the_net_that_was_opened(weights, tmp_path, monkeypatch):
    openvino = pytest.importorskip("openvino")
    before, streams = torch.get_num_threads(), list[int]()
    compiled = openvino.Core.compile_model

    def counted(core, model, device, settings):
        streams.append(settings["NUM_STREAMS"])
        return compiled(core, model, device, settings)

    monkeypatch.setattr(openvino.Core, "compile_model", counted)
    monkeypatch.setattr("segmv3.convert.openvino.os.cpu_count", lambda: 2)
    try:
        segmv3.load(weights, backend="openvino", threads=1, precision="fp32")  # proved by the calling thread
        streams.clear()
        predict = segmv3.load(weights, backend="openvino", threads=1, precision="fp32")
        (expected,) = [in_threads(predict, 1) for _ in range(3)][-1]
        assert streams == [1]  # a caller whose thread ended leaves its place to the next one
        shutil.rmtree(tmp_path / "cache")
        assert all(np.array_equal(labels, expected) for labels in [predict(IMAGE), *in_threads(predict)])
        assert streams == [1, 2]
    finally:
        torch.set_num_threads(before)


def test_a_pickled_predictor_opens_its_file_again(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    predict = segmv3.load(weights.name, backend="torch")
    data = pickle.dumps(predict)
    again = pickle.loads(data)
    assert len(data) < 1000 and np.array_equal(again(IMAGE), predict(IMAGE)) and pickle.loads(data) is again
    assert copy.copy(predict) is predict and copy.deepcopy([predict])[0] is predict
    shutil.move(weights, tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"w\.safetensors"):
        pickle.loads(data)
    segmv3.save(segmv3.create_model("lraspp_small_d8"), weights)
    with pytest.raises(CheckpointError, match="is not the file that this predictor was opened from"):
        pickle.loads(data)
    with pytest.raises(ModelError, match="was not opened from a file"):
        pickle.dumps(
            Predictor(TorchBackend(segmv3.create_model("lraspp_small_d8"), device=torch.device("cpu")), Card(()))
        )


def test_timings_are_those_of_the_own_thread(weights):
    predict = segmv3.load(weights, backend="torch")
    predict(IMAGE)
    mine = predict.timings
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: predict.timings).result() == {}
        pool.submit(predict, IMAGE[:32, :32]).result()
    assert predict.timings == mine and set(mine) == {"prepare", "net", "labels"}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_predictor_goes_to_new_processes(method, weights):
    from concurrent.futures import ProcessPoolExecutor

    predict = segmv3.load(weights, backend="torch", threads=1)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        assert all(np.array_equal(labels, predict(IMAGE)) for labels in pool.map(predict, [IMAGE] * 2))
