"""The label loop, simulated: python tools/label_loop.py data/camvid --start FILE --output runs/loop

Begins with --first labelled frames of CamVid's train part, drawn by the seed, and adds as many four times: those that
`segmv3 data next` chooses, or frames at random. After each round a net is trained from the same start for the same
number of steps, and scored on the drive that no frame comes from (--drive) and on val. Nets see frames at half their
height and width. What is finished is not done again, so that the command can be stopped at any time; --seeds and
--ways say what this call does. At the end it writes table.md and curves.png of all that is finished.
"""

import argparse
import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from camvid_holdout import hold_out

import segmv3
from segmv3.config import AdamW, Config, Data, Schedule
from segmv3.data.datasets import open_dataset
from segmv3.errors import Segmv3Error
from segmv3.images import write_png
from segmv3.models.zoo import NETS
from segmv3.report.plots import LIGHT, new_figure, pixels_of, style
from segmv3.selection.settings import Settings

SIZE = (180, 240)
WAYS: dict[str, dict[str, Any]] = {
    "next": {},
    "random": {},
    "margin": {"measure": "margin"},
    "unsure": {"candidates": 1},
    "different": {"candidates": 1000},
    "mean": {"worst": 1.0},
}
"""Ways to choose: settings that differ from those of `segmv3 data next`."""


@dataclass(frozen=True)
class Loop:
    """What all rounds share."""

    camvid: Path
    start: Path
    output: Path
    drive: str
    first: int
    rounds: int
    steps: int

    @property
    def held(self) -> Path:
        """CamVid's train part without the drive as train, the drive as val."""
        return self.output / "held-out"

    def prepare(self) -> list[str]:
        """Write the frames at half size once. Returns: the names of the pool, without those of the drive."""
        if not self.held.exists():
            hold_out(self.camvid, self.held, self.drive)
        dataset = open_dataset(Data(dataset="camvid", root=self.held), "train")
        for index, pair in enumerate(dataset.pairs):
            if not (label := self.small("labels", pair.name)).exists():
                pixels, labels = dataset.read(index)
                for folder in ("images", "labels"):
                    (self.output / "small" / folder).mkdir(parents=True, exist_ok=True)
                image = cv2.resize(pixels, SIZE[::-1], interpolation=cv2.INTER_AREA)
                write_png(self.small("images", pair.name), image)
                write_png(label, cv2.resize(labels, SIZE[::-1], interpolation=cv2.INTER_NEAREST))
        return [pair.name for pair in dataset.pairs]

    def small(self, kind: str, name: str) -> Path:
        return (self.output / "small" / kind / f"{name}.png").resolve()

    def play(self, pool: list[str], seed: int, way: str) -> None:
        """All rounds of one seed and one way."""
        order = [pool[i] for i in np.random.default_rng([seed, 17]).permutation(len(pool))]
        names, before = order[: self.first], Path()
        for number in range(self.rounds + 1):
            folder = self.output / f"seed{seed}" / (way if number else "first") / f"round{number}"
            result = folder / "result.json"
            if not result.exists():
                added = self.choose([name for name in order if name not in names], before, way) if number else []
                shutil.rmtree(folder, ignore_errors=True)  # of a call that was stopped
                scores = self.train_and_score([*names, *added], folder, seed)
                result.write_text(json.dumps({"names": [*names, *added], **scores}))
                print(f"seed {seed}, {way}, {len(names) + len(added)} frames: {scores}", flush=True)
            names, before = json.loads(result.read_text())["names"], folder

    def choose(self, left: list[str], before: Path, way: str) -> list[str]:
        """The frames to add, by the net of the round before."""
        if way == "random":
            return left[: self.first]
        listed = before / f"{way}.txt"
        listed.write_text("\n".join(str(self.small("images", name)) for name in sorted(left)))
        weights, labelled = before / "run" / "best.safetensors", Data(dataset="folder", root=before / "data")
        settings = Settings(count=self.first, **WAYS[way])
        chosen = segmv3.select_frames(str(listed), weights, settings, labelled=labelled, threads=1)
        return [frame.name for frame in chosen.frames]

    def train_and_score(self, names: list[str], folder: Path, seed: int) -> dict[str, float]:
        """Train from the start; mIoU in percent on the drive and on val, at the size of their labels."""
        data = Data(
            dataset="folder", root=folder / "data", batch_size=4, crop_size=SIZE, scale_range=(0.75, 1.5), workers=0
        )
        for split, some in (("train", names), ("val", names[:1])):  # training wants a val; it decides nothing here
            for kind in ("images", "labels"):
                (data.root / split / kind).mkdir(parents=True)
                for name in some:
                    (data.root / split / kind / f"{name}.png").symlink_to(self.small(kind, name))
        shutil.copy(self.camvid / "classes.json", data.root)
        config = Config(
            model=replace(NETS["lraspp_small_d8"], pretrained=str(self.start)),
            data=data,
            optim=AdamW(lr=2e-3, weight_decay=0.05),
            schedule=Schedule(
                steps=self.steps, policy="cosine", min_lr=1e-5, warmup_steps=20, eval_every=self.steps, ema=0.98
            ),
            seed=seed,
        )
        trained = segmv3.train(config, folder / "run", threads=1, quiet=True)
        scores = {}
        for name, root in ((self.drive, self.held), ("val", self.camvid)):
            there = Data(dataset="camvid", root=root)
            scores[name] = segmv3.evaluate(there, trained.weights, size=SIZE, threads=1).miou
        return scores

    def found(self) -> dict[str, dict[int, list[dict[str, float]]]]:
        """What is finished: scores by way and number of frames, one for each seed that has this way complete."""
        table: dict[str, dict[int, list[dict[str, float]]]] = {}
        for last in sorted(self.output.glob(f"seed*/*/round{self.rounds}/result.json")):
            way, seed = last.parts[-3], last.parents[2]
            rounds = [seed / "first" / "round0", *(seed / way / f"round{n}" for n in range(1, self.rounds + 1))]
            for folder in rounds:
                scores = json.loads((folder / "result.json").read_text())
                table.setdefault(way, {}).setdefault(len(scores.pop("names")), []).append(scores)
        return table

    def report(self) -> str:
        """Write table.md and curves.png of what is finished. Returns: the table."""
        found, splits = self.found(), (self.drive, "val")
        lines = ["| way | seeds | frames | " + " | ".join(splits) + " |", "|---|---|---|" + "---|" * len(splits)]
        figure = new_figure(800, 340)
        for axes, split in zip(figure.subplots(1, len(splits)), splits, strict=True):
            style(axes, LIGHT, title=f"mIoU on {split}, %", x="labelled frames")
            for (way, rounds), color in zip(
                found.items(), (LIGHT.accent, LIGHT.warm, LIGHT.bad, LIGHT.muted), strict=False
            ):
                counts, scores = list(rounds), np.array([[one[split] for one in each] for each in rounds.values()])
                axes.fill_between(counts, scores.min(1), scores.max(1), color=color, alpha=0.15, linewidth=0)
                axes.plot(counts, scores.mean(1), "o-", color=color, markersize=4, label=way)
            axes.set_xticks(counts)
            axes.legend(frameon=False)
        for way, rounds in found.items():
            for frames, each in rounds.items():
                cells = [
                    f"{np.mean([one[s] for one in each]):.1f} ({_spread([one[s] for one in each])})" for s in splits
                ]
                lines.append(f"| {way} | {len(each)} | {frames} | {' | '.join(cells)} |")
        (self.output / "table.md").write_text("\n".join(lines) + "\n")
        write_png(self.output / "curves.png", pixels_of(figure, LIGHT))
        return "\n".join(lines)


def _spread(scores: list[float]) -> str:
    return f"{min(scores):.1f} to {max(scores):.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("camvid", type=Path, help="CamVid as data/README.md lays it out")
    parser.add_argument("--start", type=Path, required=True, help="weights that each training starts from")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--drive", default="0006R0", help="the drive that no frame comes from (default 0006R0)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["next", "random"])
    parser.add_argument("--first", type=int, default=20, help="frames of the first round, and of each one after it")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=150)
    asked = parser.parse_args()
    loop = Loop(asked.camvid, asked.start, asked.output, asked.drive, asked.first, asked.rounds, asked.steps)
    try:
        pool = loop.prepare()
        for seed in asked.seeds:
            for way in asked.ways:
                loop.play(pool, seed, way)
        if loop.found():
            print(loop.report())
    except Segmv3Error as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
