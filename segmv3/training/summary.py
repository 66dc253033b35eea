"""The facts about a run that its report shows beside the scores."""

import math
from datetime import datetime
from typing import Any

from segmv3.report.sweep import shown
from segmv3.settings import flat
from segmv3.training.progress import duration

_SAMPLES = 4
_SILENT = (
    *("dataset", "root", "cache", "batch_size", "workers", "resize", "interpolation"),
    *("eval_every", "save_every", "log_every"),
    *("annotations", "images", "faulty"),
)
_KINDS = dict.fromkeys(("Loss", "Schedule", "Distill", "Data", "ImageFolder", "BoxData", "Freeze"), "")
_OF_POLICIES = {"power": "poly", "decay_rate": "step", "decay_every": "step"}
_NEUTRAL = {"accumulate": 1, "head_lr": 1, "layer_decay": 1}
_NOTHING: tuple[Any, ...] = (None, 0, "none", "")  # False is 0


def evenly_spaced(count: int) -> range:
    """The places of up to four images out of `count`, evenly spaced."""
    return range(0, count, max(1, math.ceil(count / _SAMPLES)))


def facts_of(manifest: dict[str, Any]) -> dict[str, str]:
    """The facts about a run, by their names, as people read them.

    Args:
        manifest: the content of manifest.json, of a run with a best score.
    """
    settings, net, best = manifest["settings"], manifest["net"], manifest["best"]
    data, schedule = settings["data"], settings["schedule"]
    cost = f", {net['gmacs']:.2f} GMACs at {shown(net['gmacs_size'])}" if net["gmacs"] else ""
    versions = {name: version for name, version in manifest["versions"].items() if name not in ("segmv3", "commit")}
    config = " ".join(filter(None, (manifest["config_file"], manifest["config_commit"])))
    ended = manifest["status"] == "finished" and manifest["step"] < schedule["steps"]
    early = f"; stopped early at step {manifest['step']:,}" if ended else ""
    facts = {
        "net": f"{net['name']}, {net['parameters']:,} parameters{cost}",
        "start": start_of(manifest),
        "data": _data(manifest),
        "optimiser": words(settings["optim"]),
        "schedule": words(_told(schedule)),
        "loss": words(_told(settings["loss"])) if "loss" in settings else "cross-entropy",
        "distillation": words(settings["distill"]) if settings.get("distill", {}).get("teacher") else "",
        "augmenting": words(_told(data)),
        "frozen": words(settings.get("freeze", {})),
        "batch": f"{data['batch_size']} images, {settings['precision']}",
        "seed": str(settings["seed"]),
        "best at": f"step {best['step']:,} of {schedule['steps']:,}{early}, {best['score']:.2f} % {manifest['metric']}",
        "time": _time(manifest),
        "machine": _machine(manifest["machine"]),
        "segmv3": " ".join(filter(None, (manifest["versions"]["segmv3"], manifest["versions"]["commit"]))),
        "packages": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "config": config,
        "weights SHA-256": best["sha256"],
    }
    return {name: text for name, text in facts.items() if text}


def start_of(manifest: dict[str, Any]) -> str:
    """The weights that a run started from, with digest, licence and the rows that were kept."""
    start = manifest["start"]
    if not start:
        return "from scratch"
    parts = [str(start["weights"]), start.get("licence", ""), f"SHA-256 {start.get('sha256', 'unknown')}"]
    kept, new = start.get("classes_kept"), start.get("classes_new")
    if kept is not None and new is not None:
        parts.append(
            f"rows of {len(kept)} classes kept, of {len(new)} new" + (f": {', '.join(new)}" if kept and new else "")
        )
    return "; ".join(filter(None, parts))


def words(settings: dict[str, Any]) -> str:
    """Settings in a line, without those that are off: `AdamW, lr 0.003, betas 0.9 0.999`."""
    parts = []
    for name, value in flat(settings).items():
        plain = name.replace("_", " ").replace(".", " ")
        if name == "kind":
            parts += [_KINDS.get(value, value)] if _KINDS.get(value, value) else []
        elif value is True:
            parts.append(plain)
        elif value not in _NOTHING and value != [] and _NEUTRAL.get(name) != value:
            text = shown(value)
            sides = not isinstance(value, list) or all(isinstance(each, int) for each in value)
            parts.append(f"{plain} {text if sides else text.replace(' x ', ' / ')}")
    return ", ".join(parts)


def _told(part: dict[str, Any]) -> dict[str, Any]:
    """The settings of a part that change the training, without those of what is switched off."""
    off = {name for name, policy in _OF_POLICIES.items() if part.get("policy", policy) != policy}
    off |= {name for name, of in (("focal_gamma", "focal"), ("extra_share", "extra_images")) if not part.get(of, True)}
    return {name: value for name, value in part.items() if name not in off and name not in _SILENT}


def _data(manifest: dict[str, Any]) -> str:
    data = manifest["data"]
    train, val = data["train"], data["val"]
    extra = f" and {train['extra_images']:,} extra" if train["extra_images"] else ""
    digest = val["contents"].get("labels") or val["contents"].get("images") or val["names_sha256"]
    return (
        f"{data['name']}: trained on {train['images']:,} images{extra}, scored on {val['images']:,}; "
        f"{len(manifest['classes'])} classes; digest of the scored labels {str(digest)[:16]}"
    )


def _time(manifest: dict[str, Any]) -> str:
    began, ended = manifest["started"], manifest["ended"]
    parts = [duration(manifest["seconds"])]
    if began and ended:
        parts[0] += f", {_clock(began)} to {_clock(ended)} UTC"
    sessions = manifest["sessions"]
    if len(sessions) > 1:
        parts.append("resumed at step " + ", ".join(f"{each['from_step']:,}" for each in sessions[1:]))
    parts += [f"extended to {each['to']:,} steps at {each['at_step']:,}" for each in manifest["extended"]]
    return "; ".join([*parts, f"{manifest['images_seen']:,} images seen"])


def _clock(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M}"


def _machine(machine: dict[str, Any]) -> str:
    memory = f"{machine['memory_gib']:g} GiB" if machine["memory_gib"] else ""
    where = machine["gpu"] if machine["gpu"] and machine["device"] == machine["gpu"] else ""
    processes = f"{machine['processes']} processes" if machine["processes"] > 1 else ""
    cpu = f"{machine['cpu']}, {machine['cores']} cores, threads used: {machine['threads']}"
    return ", ".join(filter(None, (where, processes, cpu, memory, machine["system"])))
