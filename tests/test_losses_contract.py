"""What every loss keeps to, segmv3's own and strangers'."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import segmentation_models_pytorch.losses as smp
import torch

import segmv3
from segmv3.config import Criterion, Distill, Loss, Schedule, load_config, to_dict
from segmv3.errors import ConfigError
from segmv3.imagenet.task import class_cross_entropy
from segmv3.labels import IGNORE
from segmv3.training.losses import Seen, Term

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.append(str(EXAMPLES))
from own_loss import Focal  # noqa: E402

CPU, CLASSES = torch.device("cpu"), 5
CRITERIA = {
    "plain": Loss(),
    "smooth": Loss(label_smoothing=0.1),
    "balanced": Loss(class_weights="balanced"),
    "listed": Loss(class_weights=(1.0, 2.0, 0.0, 0.5, 3.0)),
    "auxiliary": Loss(auxiliary=0.4),
    "mined": Loss(ohem=0.3, min_kept=0.2),
    "everything": Loss(ohem=0.3, min_kept=0.1, label_smoothing=0.1, class_weights="balanced", auxiliary=1.0),
    "dice": Loss(cross_entropy=0.0, dice=1.0),
    "focal": Loss(cross_entropy=0.0, focal=20.0, focal_gamma=1.5),
    "lovasz": Loss(cross_entropy=0.0, lovasz=0.5),
    "mixed": Loss(dice=1.0, focal=1.0, lovasz=1.0, class_weights="balanced", auxiliary=0.4),
    "stranger": Focal(),
}


def terms_of(name: str) -> list[Term]:
    if name == "pictures":
        return [class_cross_entropy(0.1)]
    if name == "taught":
        return Distill(teacher="net").build(CLASSES, lambda images: images[:, :1] * torch.ones(1, CLASSES, 1, 1))
    return list(CRITERIA[name].build(CLASSES, CPU, lambda: torch.tensor([900, 50, 30, 20, 0])))


def seen(name: str, count: int = 4, seed: int = 0) -> Seen:
    """Logits at the size of the labels, so that each pixel has its own."""
    random = torch.Generator().manual_seed(seed)
    size = () if name == "pictures" else (6, 8)
    logits = [2 * torch.randn(count, CLASSES, *size, generator=random) for _ in range(3)]
    targets = torch.randint(0, CLASSES, (count, *size), generator=random)
    if size:
        targets[torch.rand(targets.shape, generator=random) < 0.3] = IGNORE
        targets = targets.byte()
    images = torch.rand(count, 3, *(size or (6, 8)), generator=random)
    return Seen(images, targets, logits[0].requires_grad_(), [each.requires_grad_() for each in logits[1:]])


def part(whole: Seen, rows: slice) -> Seen:
    return Seen(whole.images[rows], whole.targets[rows], whole.logits[rows], [each[rows] for each in whole.auxiliary])


def gradient(total: torch.Tensor, batch: Seen) -> torch.Tensor:
    """With respect to all logits; zeros for those that the total does not depend on."""
    logits = [batch.logits, *batch.auxiliary]
    found = torch.autograd.grad(total, logits, allow_unused=True)
    return torch.stack([torch.zeros_like(x) if g is None else g for x, g in zip(logits, found, strict=True)])


every_loss = pytest.mark.parametrize("name", [*CRITERIA, "taught", "pictures"])


@every_loss
def test_sums_are_finite_and_pull_on_the_logits(name):
    terms, batch = terms_of(name), seen(name)
    assert len({term.name for term in terms}) == len(terms) >= 1
    for term in terms:
        total, count = term.sums(batch)
        assert total.shape == count.shape == () and total.isfinite() and total > 0 and count > 0 and term.weight > 0
        pull = gradient(total, batch)
        assert pull.isfinite().all() and pull.any()
        assert (pull.flatten(1).any(1)).sum() == 1, "a term has the logits of one head"


@every_loss
def test_a_small_step_against_the_gradient_makes_the_loss_smaller(name):
    for term in terms_of(name):
        batch = seen(name)
        total, count = term.sums(batch)
        pull = gradient(total, batch)
        logits = [x.detach() - 1e-2 * g for x, g in zip([batch.logits, *batch.auxiliary], pull, strict=True)]
        after, counted = term.sums(batch._replace(logits=logits[0], auxiliary=logits[1:]))
        assert after / counted < total / count


@every_loss
def test_denominators_are_told_by_the_targets_alone(name):
    batch = seen(name)
    for term in terms_of(name):
        if term.denominator is None:
            assert getattr(CRITERIA[name], "ohem", None), "only the net can tell what mining keeps"
        else:
            torch.testing.assert_close(term.denominator(batch.targets).double(), term.sums(batch)[1].double())


@every_loss
def test_parts_of_a_batch_add_up_to_the_whole(name):
    """As the loop does with schedule.accumulate: each part is divided by the count of the whole batch."""
    for term in terms_of(name):
        whole = seen(name)
        if term.denominator is None:
            continue
        total, count = term.sums(whole)
        expected = gradient(total / count, whole)
        known = term.denominator(whole.targets).to(total)
        parts = [term.sums(part(whole, slice(start, start + 2)))[0] for start in (0, 2)]
        loss = torch.stack([each / known for each in parts]).sum()
        torch.testing.assert_close(loss, total / count)
        torch.testing.assert_close(gradient(loss, whole), expected)


@pytest.mark.parametrize("name", CRITERIA)
def test_ignored_pixels_do_not_count(name):
    for term in terms_of(name):
        batch = seen(name)
        total, count = term.sums(batch)
        pull = gradient(total, batch).movedim(2, -1)
        assert not pull[:, batch.targets == IGNORE].any()
        others = [x.detach().clone() for x in (batch.logits, *batch.auxiliary)]
        for logits in others:
            logits.movedim(1, -1)[batch.targets == IGNORE] += 7
        again = term.sums(batch._replace(logits=others[0], auxiliary=others[1:]))
        torch.testing.assert_close(again, (total.detach(), count))


@pytest.mark.parametrize("name", CRITERIA)
def test_a_batch_without_a_labelled_pixel_is_nothing(name):
    batch = seen(name)
    batch = batch._replace(targets=torch.full_like(batch.targets, IGNORE))
    for term in terms_of(name):
        total, count = term.sums(batch)
        assert total == 0 and count == 0 and not gradient(total, batch).any()


@pytest.mark.parametrize("criterion", [*CRITERIA.values(), Distill()], ids=str)
def test_settings_are_frozen_and_recorded(criterion):
    assert is_dataclass(criterion) and json.loads(json.dumps(to_dict(criterion)))["kind"] == type(criterion).__name__
    assert all(holds for holds, *_ in criterion.rules())
    with pytest.raises(FrozenInstanceError):
        setattr(criterion, fields(criterion)[0].name, 1)


def test_settings_import_no_torch():
    code = "import sys, segmv3.config, segmv3.training.losses, segmv3.training.optim; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["dice", "focal", "lovasz"])
def test_terms_of_a_library_are_the_library_s(name):
    """Of one image, where a sum over images and a mean over the batch are the same."""
    kinds = {"dice": smp.DiceLoss, "focal": partial(smp.FocalLoss, gamma=1.5), "lovasz": smp.LovaszLoss}
    batch, [term] = part(seen(name), slice(0, 1)), terms_of(name)
    total, count = term.sums(batch)
    present = len(batch.targets[batch.targets != IGNORE].unique())
    expected = kinds[name]("multiclass", ignore_index=IGNORE)(batch.logits, batch.targets)
    torch.testing.assert_close(total / count, expected * (CLASSES / present if name == "dice" else 1))


def test_low_logits_are_enlarged_for_them():
    batch = seen("dice")
    batch = batch._replace(logits=batch.logits.detach()[..., ::2, ::2].requires_grad_())
    for name in ("dice", "focal", "lovasz"):
        total, count = terms_of(name)[0].sums(batch)
        assert gradient(total / count, batch._replace(auxiliary=())).shape[1:] == batch.logits.shape


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (Loss(cross_entropy=0.0), r"loss.cross-entropy: is 0, and so are loss.dice, .*: nothing would be learnt"),
        (Loss(dice=-1.0), r"loss.dice: must be at least 0"),
        (Loss(focal=1.0, focal_gamma=-0.5), r"loss.focal-gamma: must be at least 0"),
    ],
)
def test_a_loss_of_nothing_is_one_line(loss, says, config):
    with pytest.raises(ConfigError, match=says):
        replace(config, loss=loss)


# --- a loss from beside a config ---


def test_a_loss_of_ones_own_trains_in_parts_too_and_its_settings_are_flags(config, tmp_path):
    own = replace(
        config,
        data=replace(config.data, batch_size=4),
        loss=Focal(gamma=1.0),
        schedule=Schedule(steps=3, min_lr=0, eval_every=3, log_every=1, accumulate=2),
    )
    done = segmv3.train(own, tmp_path / "run", device="cpu", threads=1, quiet=True)
    assert done.score == done.metrics["miou"] and done.step == 3
    assert done.weights.is_file() and done.report == tmp_path / "run" / "report.html" and done.report.is_file()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["loss"] == {"kind": "Focal", "gamma": 1.0}
    file = tmp_path / "own.py"
    file.write_text(
        f"import sys\nsys.path.append({str(EXAMPLES)!r})\nfrom own_loss import Focal\n"
        f"from pathlib import Path\nfrom segmv3.config import *\nfrom segmv3.models.zoo import NETS\n"
        "config = Config(model=NETS['lraspp_small_d8'], data=Data(dataset='folder', root=Path('x')), loss=Focal(), "
        "schedule=Schedule(steps=3))\n"
    )
    assert load_config(file, ["--loss.gamma", "0.5"]).loss == Focal(gamma=0.5)


@pytest.mark.slow
def test_the_example_runs(tmp_path):
    command = [sys.executable, EXAMPLES / "own_loss.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "% mIoU" in done.stdout, done.stderr


def test_what_is_no_loss_is_one_line(config, tmp_path):
    with pytest.raises(ConfigError, match=r"loss: int is no loss; derive it from segmv3.config.Criterion"):
        replace(config, loss=3)
    file = tmp_path / "own.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom segmv3.config import *\n"
        "@dataclass(frozen=True)\nclass Unfinished(Criterion):\n    gamma: float = 2.0\n"
        "loss = Unfinished()\n"
    )
    with pytest.raises(ConfigError, match=r"own\.py fails with TypeError: .*Unfinished .*method '?build") as found:
        load_config(file)
    assert "\n" not in str(found.value)


def test_two_terms_of_one_name_are_refused(config, tmp_path):
    @dataclass(frozen=True)
    class Twice(Criterion):
        def build(self, classes, device, class_pixels):
            return [*Loss().build(classes, device, class_pixels)] * 2

    with pytest.raises(ConfigError, match=r"loss: Twice has two terms of the name 'cross_entropy'"):
        segmv3.train(replace(config, loss=Twice()), tmp_path / "run", device="cpu", quiet=True)
