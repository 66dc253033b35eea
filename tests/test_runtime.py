import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import segmv3
from segmv3.checkpoint import load as load_weights
from segmv3.config import LRASPP, MobileNetV3, Model
from segmv3.errors import CheckpointError, Interrupted, ModelError, ResourceError, Segmv3Warning
from segmv3.images import write_png
from segmv3.mini_city import render_scene
from segmv3.models import bands
from segmv3.models.fold import folded
from segmv3.models.zoo import NETS, create_model
from segmv3.runtime import autotune, backends, loading
from segmv3.runtime.backends import BySize, TorchBackend
from segmv3.runtime.machine import cpu_flags, has_bf16, machine, saturates

SIZES = [(1, 1), (1, 40), (37, 53), (64, 128)]
CPU_BACKENDS = ["torch", "onnxruntime", "openvino"]


def trained_like(name, classes, seed=0):
    """A net whose BN statistics are not those of a fresh one, so that folding them does something."""
    torch.manual_seed(seed)
    model = create_model(name, classes)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.3)
        elif isinstance(module, torch.nn.Conv2d) and module.out_channels == classes:
            torch.nn.init.normal_(module.weight, 0, 0.5)  # logits apart, as after training
    return model.eval()


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    street = tmp_path_factory.mktemp("street") / "small.png"
    write_png(street, render_scene("val", 0, size=(64, 128), seed=0)[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGMV3_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(loading, "STREET_SIZE", (64, 128))
        patch.setattr(autotune, "STREET", street)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    segmv3.save(trained_like("lraspp_small_d8", 5), path)
    return path


@pytest.fixture(scope="module", params=CPU_BACKENDS)
def predict(weights, request):
    return segmv3.load(weights, backend=request.param, precision="fp32", threads=1)


def picture(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def reference(weights, image):
    """Labels by the plain net and the two best logits' distance at every pixel."""
    model, _ = load_weights(weights)
    with torch.inference_mode():
        logits = model(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None])[0]
    best = logits.topk(2, 0).values
    return logits.argmax(0).numpy(), (best[0] - best[1]).numpy()


@pytest.mark.parametrize("size", SIZES)
def test_any_image_gives_the_labels_of_the_plain_net(predict, weights, size):
    image = picture(size)
    labels = predict(image)
    assert labels.shape == size and labels.dtype == np.uint8
    expected, margin = reference(weights, image)
    assert np.array_equal(labels[margin > 1e-3], expected[margin > 1e-3])
    assert set(predict.timings) == {"prepare", "net", "labels"} and min(predict.timings.values()) >= 0


@pytest.mark.parametrize("size", SIZES)
def test_confidence_is_the_probability_of_the_label(predict, weights, size):
    labels, confidence = predict.labels_and_confidence(image := picture(size))
    assert np.array_equal(labels, predict(image))
    model, _ = load_weights(weights)
    with torch.inference_mode():
        logits = model(torch.from_numpy(image).permute(2, 0, 1)[None])
    assert confidence.shape == size and confidence.dtype == np.float32
    assert np.abs(confidence - logits.softmax(1)[0].max(0).values.numpy()).max() < 1e-3
    assert predict.labels_and_confidence(np.stack([image, image]))[1].shape == (2, *size)
    assert set(predict.timings) == {"prepare", "net", "labels"}


def test_a_batch_is_its_images(predict):
    images = np.stack([picture((40, 72), seed) for seed in range(3)])
    batch = predict(images)
    assert batch.shape == (3, 40, 72)
    assert np.mean(batch == np.stack([predict(image) for image in images])) > 0.999


def test_a_stream_takes_one_image_at_a_time(predict):
    taken = []

    def images():
        for seed, size in enumerate(SIZES):
            taken.append(size)
            yield picture(size, seed)

    for count, labels in enumerate(predict.stream(images()), 1):
        assert labels.shape == SIZES[count - 1] and len(taken) == count


def test_views_and_read_only_images_are_taken(predict):
    image = picture((40, 60))
    expected = predict(image[:, ::-1].copy())
    assert np.array_equal(predict(image[:, ::-1]), expected)
    image.setflags(write=False)
    assert predict(image).shape == (40, 60)


def test_results_stay_as_they_were(predict):
    first = predict(picture((40, 60)))
    kept = first.copy()
    predict(picture((40, 60), seed=1))
    assert np.array_equal(first, kept)


def test_threads_get_their_own_results(predict):
    images = [picture((64, 96), seed) for seed in range(8)]
    expected = [predict(image) for image in images]
    found = [None] * len(images)

    def work(i):
        for _ in range(3):
            found[i] = predict(images[i])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(images))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((1, 1, 4, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(predict, image):
    with pytest.raises(ModelError, match="uint8 H x W x 3"):
        predict(image)


@pytest.mark.parametrize("name", sorted(NETS))
def test_a_folded_net_computes_the_same(name):
    model = trained_like(name, 4)
    image = torch.from_numpy(picture((70, 94))).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected, found = model.low_logits(image), folded(model).low_logits(image)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded(model).modules())
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()), "the net itself is left alone"


# --- which backend ---


def test_auto_takes_the_fastest_that_agrees(weights, monkeypatch):
    times = {"torch fp32": 30.0, "onnxruntime fp32": 20.0, "openvino fp32": 10.0, "openvino bf16": 5.0}
    monkeypatch.setattr(autotune, "median_times", lambda backends, *_: {title: times[title] for title in backends})
    monkeypatch.setattr(loading, "has_bf16", lambda: False)
    monkeypatch.setattr(autotune, "cpu_name", lambda: "a machine of this test")
    predict = segmv3.load(weights, threads=1)
    assert (predict.backend, predict.precision) == ("openvino", "fp32")


def test_a_backend_that_disagrees_is_not_taken(weights, monkeypatch):
    def refuse(agreement, precision, title=""):
        if "openvino" in title:
            raise ModelError("wrong numbers")

    monkeypatch.setattr(autotune, "refuse", refuse)
    monkeypatch.setattr(autotune, "cpu_name", lambda: "another machine of this test")
    times = {"torch fp32": 30.0, "onnxruntime fp32": 20.0}
    monkeypatch.setattr(autotune, "median_times", lambda backends, *_: {title: times[title] for title in backends})
    assert segmv3.load(weights, threads=1).backend == "onnxruntime"
    with pytest.raises(ModelError, match="wrong numbers"):
        segmv3.load(weights, backend="openvino", precision="fp32", threads=1)


def test_sigterm_while_choosing_is_no_verdict(weights, monkeypatch):
    monkeypatch.setattr(autotune, "cpu_name", lambda: "a machine that is told to stop")

    def stop(*_):
        raise Interrupted("what was finished is kept", 15)

    with monkeypatch.context() as patch:
        patch.setattr(autotune, "compare", stop)
        with pytest.raises(Interrupted):
            segmv3.load(weights, threads=1)
    assert not autotune._read(autotune._file(load_weights(weights)[1], torch.device("cpu")))


def test_a_package_that_breaks_leaves_the_others(weights, monkeypatch):
    monkeypatch.setattr(autotune, "cpu_name", lambda: "a machine with a broken package")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert segmv3.load(weights, threads=1).backend == "torch"


def test_without_a_cache_torch_runs_and_nothing_is_kept_against_the_others(weights, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEGMV3_CACHE", str(tmp_path / "file"))
    with pytest.warns(Segmv3Warning, match="cannot be used now: .*file.* cannot be written"):
        assert segmv3.load(weights, threads=1).backend == "torch"


def test_the_choice_is_made_once(weights, monkeypatch):
    first = segmv3.load(weights, threads=1)
    monkeypatch.setattr(autotune, "_prove", lambda *_: pytest.fail("proved again"))
    again = segmv3.load(weights, threads=1)
    assert (again.backend, again.precision) == (first.backend, first.precision)


def test_without_the_extra_torch_runs(weights, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    assert segmv3.load(weights, threads=1).backend == "torch"
    with pytest.raises(ModelError, match=r'needs openvino; pip install "segmv3\[export\]"'):
        segmv3.load(weights, backend="openvino")


TENSORFLOW = Model(backbone=MobileNetV3(padding="same", family="d-li14", output_stride=16), head=LRASPP(channels=16))
SQLAI = Model(backbone=MobileNetV3(size="small", family="sqlai", output_stride=16), head=LRASPP(channels=16))


@pytest.mark.parametrize("size", [(1, 1), (65, 33), (96, 190)])
@pytest.mark.parametrize("net", ["lraspp_large_d8", "lraspp_small_d8", "lraspp_small_plus", TENSORFLOW, SQLAI])
def test_a_large_picture_in_bands_gives_the_same_logits(net, size, monkeypatch):
    model = folded(trained_like(net, 5))
    pixels = torch.from_numpy(picture(size)[None]).permute(0, 3, 1, 2)
    expected = model.low_logits(pixels)
    monkeypatch.setattr(bands, "_BAND_BYTES", 20_000)  # one row of the widest maps
    found = model.head(*bands.features_in_bands(model.normalize, model.backbone, pixels))
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_what_is_large_runs_in_bands(weights, backend, monkeypatch):
    predict = segmv3.load(weights, backend=backend, precision="fp32", threads=1)
    expected = predict(picture((96, 128)))
    seen = []
    in_bands = bands.features_in_bands
    monkeypatch.setattr(backends, "_LARGE", 96 * 128 - 1)
    monkeypatch.setattr(backends, "features_in_bands", lambda *args: seen.append(args) or in_bands(*args))
    assert (predict(picture((96, 128))) == expected).mean() > 0.999
    assert len(seen) == 1


@pytest.mark.slow
def test_nets_with_window_pooling_convert_for_each_size(tmp_path):
    path = tmp_path / "w.safetensors"
    segmv3.save(trained_like("lraspp_small_d8_mmseg", 3), path)
    predict = segmv3.load(path, backend="openvino", precision="fp32", threads=2)
    assert isinstance(predict._backend, BySize)
    for size in [(64, 128), (96, 64), (40, 40), (48, 40), (56, 40)]:  # the last one runs by torch
        image = picture(size)
        expected, margin = reference(path, image)
        assert np.array_equal(predict(image)[margin > 1e-3], expected[margin > 1e-3])
    assert predict(np.stack([picture((64, 128))] * 2)).shape == (2, 64, 128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "onnx"}, "there is no backend 'onnx'; choose from auto, torch, onnxruntime, openvino"),
        ({"device": "gpu"}, "there is no device 'gpu'; choose from auto, cpu, cuda"),
        ({"precision": "fp8"}, "there is no precision 'fp8'; choose from auto, fp32, bf16, fp16, int8"),
        ({"precision": "int8"}, "not calibrated for int8; write segmv3 export"),
        ({"precision": "fp16"}, "this CPU does not calculate in fp16; it has fp32"),
        ({"backend": "onnxruntime", "precision": "bf16"}, "onnxruntime does not calculate in bf16"),
        ({"threads": 0}, "--threads is 0"),
    ],
)
def test_what_cannot_be_had_is_one_line(weights, options, message):
    with pytest.raises(ModelError, match=message) as caught:
        segmv3.load(weights, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(weights):
    with pytest.raises(ResourceError, match="sees no CUDA device"):
        segmv3.load(weights, device="cuda")


def test_missing_exports_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        segmv3.load(tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="run by openvino, not by torch"):
        segmv3.load(tmp_path / "net.xml", backend="torch")
    with pytest.raises(ModelError, match="leave --device cuda out"):
        segmv3.load(tmp_path / "net.xml", device="cuda")


@pytest.mark.slow
def test_a_damaged_cache_is_made_again(weights, monkeypatch, tmp_path):
    monkeypatch.setenv("SEGMV3_CACHE", str(tmp_path))
    segmv3.load(weights, backend="openvino", precision="fp32", threads=1)
    [verdicts] = (tmp_path / "backends").iterdir()
    verdicts.write_text('{"openvino fp32": ["", "soon"]}')
    [folder] = (tmp_path / "converted").iterdir()
    (folder / "net.bin").write_bytes(b"")
    predict = segmv3.load(weights, backend="openvino", precision="fp32", threads=1)
    assert predict(picture((8, 8))).shape == (8, 8)


@pytest.mark.parametrize(
    ("found", "flags", "cut_off", "bf16"),
    [
        ({"avx2": True, "fma3": True, "avx512_f": False, "l1d_cache_size": 1}, ["avx2"], True, False),
        ({"avx2": True, "avx512_f": True}, ["avx2", "avx512f"], True, False),
        ({"avx2": True, "avx_vnni": True}, ["avx2", "avx_vnni"], False, False),
        ({"avx2": True, "avx512_vnni": True, "avx512_bf16": True}, ["avx2", "avx512_vnni", "avx512_bf16"], False, True),
        ({"neon": True, "bf16": True}, ["asimd", "bf16"], False, True),
    ],
)
def test_what_a_processor_can(found, flags, cut_off, bf16, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert (cpu_flags(), saturates(), has_bf16()) == (flags, cut_off, bf16)
    # as /proc/cpuinfo has it, for a torch that does not say
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    line = f"flags\t\t: fpu fma {' '.join(flags)} sse"
    monkeypatch.setattr("segmv3.runtime.machine._cpuinfo", lambda: ["processor\t: 0", line])
    assert (cpu_flags(), saturates(), has_bf16()) == (flags, cut_off, bf16)


def test_the_machine_is_described_in_json_types():
    import json

    described = machine()
    assert json.loads(json.dumps(described)) == described
    assert described["cpu"] and described["packages"]["torch"].startswith(torch.__version__.split("+")[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu(weights, precision):
    predict = segmv3.load(weights, device="cuda", precision=precision)
    image = picture((96, 160))
    expected, margin = reference(weights, image)
    clear = margin > {"fp32": 0.05, "bf16": 0.5, "fp16": 0.1}[precision]
    for _ in range(2):  # captured, then replayed
        assert np.array_equal(predict(image)[clear], expected[clear])


def test_torch_refuses_int8():
    with pytest.raises(ModelError, match="torch runs no int8"):
        TorchBackend(create_model("lraspp_small_d8", 2), device=torch.device("cpu"), precision="int8")


def test_public_names():
    for name in segmv3.__all__:
        assert getattr(segmv3, name) is not None
    assert set(segmv3.__all__) == set(dir(segmv3))
    with pytest.raises(AttributeError):
        _ = segmv3.nothing


SIGNAL_AFTER_NETS = """
import faulthandler, signal, sys, threading
import numpy as np, segmv3

faulthandler.enable()  # the stack that signals arrive on
image, heard = np.zeros((32, 48, 3), np.uint8), []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
opened = lambda: segmv3.load(sys.argv[1], backend="openvino", precision="fp32", threads=1)
first, second = opened(), opened()
del first, second  # ends them in the order in which they began
signal.raise_signal(signal.SIGTERM)
holder = [opened()]
thread = threading.Thread(target=holder.clear)
thread.start(), thread.join()
signal.raise_signal(signal.SIGTERM)
assert len(heard) == 2
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only there OpenVINO moves the stack of signals")
def test_signals_arrive_after_openvino_nets_are_gone(weights):
    pytest.importorskip("openvino")
    done = subprocess.run([sys.executable, "-c", SIGNAL_AFTER_NETS, weights], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
