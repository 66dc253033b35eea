"""Recomputation: the same bits as without, in less memory."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import multiprocessing, nn

from segmv3.checkpoint import load_state
from segmv3.config import Classifier, Loss, LRASPPDecoder, MobileNetV2, MobileNetV3, Model
from segmv3.errors import ConfigError
from segmv3.models.fold import folded
from segmv3.models.zoo import NETS, create_classifier, create_model
from segmv3.training.auxiliary import WithAuxiliaryHeads
from segmv3.training.loop import train
from segmv3.training.recompute import recompute
from segmv3.training.sync_bn import synchronise

IMAGES = torch.randint(0, 256, (2, 3, 33, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def result_of_steps(model, low_logits, bf16=False, images=IMAGES):
    """Losses, weights, BN statistics and the gradients of three steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    torch.manual_seed(7)
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = low_logits(images)
        loss = sum(-low.float().log_softmax(1)[:, 0].mean() for low in outputs)  # the net's, and of the auxiliary heads
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return {"losses": torch.stack(losses), **model.state_dict(), **gradients}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys() and len(ours) > 200
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("bf16", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["lraspp_small_d8", "lraspp_small_d8_mmseg", "lraspp_small_plus", "v2"])
def test_three_steps_are_the_same_to_the_bit(name, bf16):
    torch.manual_seed(0)
    settings = Model(backbone=MobileNetV2(width=0.35), head=LRASPPDecoder(dropout=0.5)) if name == "v2" else NETS[name]
    plain = WithAuxiliaryHeads(create_model(settings, 5)).to(memory_format=torch.channels_last).train()
    again = copy.deepcopy(plain)
    recompute(again.net)
    assert list(again.state_dict()) == list(plain.state_dict())
    ours = result_of_steps(again, again.low_logits, bf16)
    assert_same(ours, result_of_steps(plain, plain.low_logits, bf16))
    assert {int(value) for key, value in ours.items() if "num_batches" in key and "gradient" not in key} == {3}


def test_so_they_are_with_the_synchronised_bn_of_gpus():
    """One process, where torch's asks nobody: it insists on the counter that is kept from counting twice."""
    torch.manual_seed(0)
    plain = nn.SyncBatchNorm.convert_sync_batchnorm(WithAuxiliaryHeads(create_model("lraspp_small_d8", 5))).train()
    again = copy.deepcopy(plain)
    recompute(again.net)
    ours = result_of_steps(again, again.low_logits)
    assert_same(ours, result_of_steps(plain, plain.low_logits))
    assert {int(value) for key, value in ours.items() if "num_batches" in key and "gradient" not in key} == {3}


def test_a_classifier_too():
    torch.manual_seed(0)
    plain = create_classifier(Classifier(backbone=MobileNetV3(size="small")), 5).train()
    again = copy.deepcopy(plain)
    recompute(again)
    results = []
    for net in (plain, again):
        torch.manual_seed(7)
        net(IMAGES).square().sum().backward()
        results.append({**net.state_dict(), **{f"gradient of {n}": p.grad for n, p in net.named_parameters()}})
    assert_same(*results)


def kept_bytes(net, bf16):
    """What the forward pass keeps for the backward pass."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with saving, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        low = net.low_logits(IMAGES)
    assert low.requires_grad
    return sum(size for place, size in kept.items() if place not in own)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", ["lraspp_small_d8", "lraspp_small_d8_mmseg", "lraspp_small_plus"])
def test_far_less_is_kept(name, bf16):
    net = create_model(name, 5).train()
    before = kept_bytes(net, bf16)
    recompute(net)
    assert kept_bytes(net, bf16) < before / 4


def test_copies_and_evaluation_are_those_of_the_plain_net():
    net = create_model("lraspp_small_d8_mmseg", 5).eval()
    recompute(net)
    with torch.no_grad():
        torch.testing.assert_close(folded(net)(IMAGES), net(IMAGES), rtol=1e-3, atol=1e-3)
    moved = copy.deepcopy(net)
    for parameter in moved.parameters():
        nn.init.zeros_(parameter.data)
    assert not moved(IMAGES).any() and net(IMAGES).any()


def in_a_process(rank, name, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(0)
    plain = WithAuxiliaryHeads(create_model(name, 5)).train()
    again = copy.deepcopy(plain)
    recompute(again.net)
    results = []
    for net in (plain, again):
        wrapped = nn.parallel.DistributedDataParallel(_Entry(synchronise(net, torch.device("cpu"))))
        results.append(result_of_steps(net, wrapped, images=IMAGES.roll(rank, 0) // (rank + 1)))
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


class _Entry(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net.low_logits(images)


@pytest.mark.slow
def test_synchronised_bn_asks_the_other_process_twice_and_counts_once(tmp_path):
    multiprocessing.spawn(in_a_process, ("lraspp_small_d8", tmp_path), nprocs=2)
    plain, again = torch.load(tmp_path / "0.pt", weights_only=True)
    assert_same(plain, again)
    other = torch.load(tmp_path / "1.pt", weights_only=True)[1]
    name = "net.backbone.stem.1.running_var"
    assert torch.equal(again[name], other[name])
    assert not torch.equal(again["losses"], other["losses"])


@pytest.mark.slow
def test_a_run_may_go_on_with_it_and_ends_in_the_same_bits(config, tmp_path):
    schedule = replace(config.schedule, steps=4, eval_every=2, save_every=2, accumulate=2)
    config = replace(config, schedule=schedule, loss=Loss(auxiliary=0.4), data=replace(config.data, batch_size=4))
    train(config, tmp_path / "plain", threads=1, quiet=True)

    def stop(step, score):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "again", threads=1, quiet=True, on_evaluation=stop)
    train(replace(config, recompute=True), tmp_path / "again", threads=1, quiet=True)
    plain, again = (load_state(tmp_path / name / "state", print)["model"] for name in ("plain", "again"))
    assert_same(plain, again)


@pytest.mark.parametrize("compile", ["auto", "on"])
def test_it_is_refused_beside_compile(config, compile):
    with pytest.raises(ConfigError, match="recompute: needs compile off"):
        replace(config, recompute=True, compile=compile)
