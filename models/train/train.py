#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Trains a network and writes it as a model for earlydrop.

  train.py --data DIR [--data DIR...] --network compact --out models/compact.onnx
  train.py --data DIR [--data DIR...] --evaluate models/compact.onnx

The networks are "compact" and "paper", the paper's CNN. Debian packages, which
`sudo make train-programs` installs: python3-torch, python3-onnx,
python3-matplotlib and, for four times the speed on a CPU, libopenblas0-pthread.

The data folders are those of `earlydrop dataset`. Whole groups (a source of
captures, a network of the lab) are held out: the test groups give the figures,
the validation groups the epoch, the temperature and the thresholds. Beside the model
NAME.onnx it writes its figures, NAME.figures.json, and the same for people,
NAME.figures.md; beside the checkpoint a picture of the learning curves (.png). The
model's card, NAME.md, is written by hand.

The second form prints the figures again.
"""
import argparse
import collections
import dataclasses
import datetime
import json
import os
import platform
import shlex
import sys

import settings

MISSING = None
try:
    import numpy as np
    import torch

    import counts
    import dataset
    import fit
    import network
    import page
    from fit import ordinary_of, threshold_for, wanted_sum
    from measure import figures_of, random_logits
except ModuleNotFoundError as e:
    MISSING = e  # --help works all the same

VERSION = "0.1.0"

# Aims for false positives whose thresholds are among the figures.
AIMS = (0.0001, 0.0005, 0.001, 0.003)


def arguments(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", action="append", required=True, metavar="DIR", help="dataset folder (may be repeated)")
    p.add_argument("--out", metavar="FILE", help="model file to write; its figures are written beside it")
    p.add_argument("--evaluate", metavar="FILE", help="print the figures of this model instead of training")
    p.add_argument("--network", choices=sorted(settings.DEFAULTS), default="compact", help="(default %(default)s)")
    p.add_argument("--classes", metavar="A,B,...",
                   help="distinguish these labels, and count all others as background (default: every label of the data)")
    p.add_argument("--name", help="the model's name (default: the network's)")
    p.add_argument("--model-version", default=VERSION, metavar="V", help="the model's version (default %(default)s)")
    p.add_argument("--seed", type=int, default=1)
    default = lambda name: ", ".join(f"{k} {v.get(name)}" for k, v in sorted(settings.DEFAULTS.items()))
    p.add_argument("--epochs", type=int, help=f"(default: {default('epochs')})")
    p.add_argument("--epoch-samples", type=int, metavar="N", help=f"samples per epoch (default: {default('epoch_samples')})")
    p.add_argument("--max-minutes", type=float, default=0, metavar="M", help="begin no epoch after M minutes (0: no limit)")
    p.add_argument("--batch", type=int, help=f"(default: {default('batch')})")
    p.add_argument("--lr", type=float, help=f"learning rate of Adam (default: {default('lr')})")
    p.add_argument("--average", type=float, metavar="D",
                   help="the model is the moving average of the weights with this decay per step; 0: the last weights "
                        f"(default: {default('average')})")
    p.add_argument("--random-like-share", type=ratio, metavar="P",
                   help="share of the lab's background that is drawn from what was made to look random "
                        f"(default: {default('random_like_share')}; None: as much as there is)")
    p.add_argument("--captures-share", type=ratio, metavar="P",
                   help="share of the real background that is drawn from groups with background only, which are "
                        f"third-party captures and not networks of the lab (default: {default('captures_share')})")
    p.add_argument("--random-ratio", type=ratio, metavar="R",
                   help="made-up background (for paper: random images) : real background, as 1/9 (the paper's best) or 0 "
                        f"(default: {default('random_ratio')})")
    p.add_argument("--cut-share", type=float, default=0.25, metavar="P",
                   help="share of training captures that are cut at a random place (default %(default)s)")
    p.add_argument("--segment-share", type=float, metavar="P",
                   help=f"share of training messages that go out in other packets (default: {default('segment_share')})")
    p.add_argument("--limit-per-group", type=int, default=2000, metavar="N",
                   help="a background group counts as at most N samples (default %(default)s)")
    p.add_argument("--skip", action="append", default=[], metavar="LABEL/CIPHER",
                   help="variants, as a file name pattern of label and cipher, that are neither trained on nor used for the choice "
                        "of thresholds, as what they are wrapped in is all that shows; the figures count them all the same (may be "
                        "repeated)")
    p.add_argument("--experimental", action="append", default=[], metavar="LABEL",
                   help="a class that looks like ordinary traffic in what is captured: it may take no ordinary flow of the validation "
                        "groups, so that the others do not pay for it (may be repeated)")
    p.add_argument("--mask", choices=sorted(settings.RECIPES), default="strict")
    p.add_argument("--holdout-group", action="append", default=[], metavar="PATTERN",
                   help="test groups, as file name patterns (may be repeated; default: a fifth, drawn by the seed)")
    p.add_argument("--validation-group", action="append", default=[], metavar="PATTERN", help="likewise")
    p.add_argument("--false-positives", type=float, default=0.0005, metavar="P",
                   help="budget for the thresholds: share of the ordinary validation background that a rule "
                        "at its threshold may detect (default %(default)s)")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto: cuda where there is one)")
    p.add_argument("--bf16", action="store_true",
                   help="compute in bfloat16, the weights stay float32 (faster where the CPU or GPU knows it)")
    p.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    p.add_argument("--checkpoint", metavar="FILE", help="state after each epoch (default .cache/train/NAME.pt)")
    p.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    args = p.parse_args(argv)
    settings.need(MISSING, "sudo make train-programs")
    if bool(args.out) == bool(args.evaluate):
        p.error("give either --out or --evaluate")
    args.name = args.name or args.network
    args.checkpoint = args.checkpoint or f".cache/train/{args.name}.pt"
    args.classes = args.classes.split(",") if args.classes else None
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return args


def ratio(text):
    """Reads "1/9" or "0.111"."""
    top, _, bottom = text.partition("/")
    try:
        value = float(top) / float(bottom or 1)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no ratio such as 1/9") from None
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def main(argv):
    args = arguments(argv)
    torch.set_num_threads(args.threads or os.cpu_count() or 1)
    log = lambda text: print(text, file=sys.stderr, flush=True)
    data = dataset.Data(args.data)
    if args.evaluate:
        return evaluate(args, data)
    if args.classes:
        data = data.folded(args.classes)
    labels = data.labels()
    if labels[0] not in data.label or len(labels) < 2:
        raise ValueError(f"the data has the classes {sorted(set(data.label))}: background and another are needed")
    part = dataset.split_groups(data, args.holdout_group, args.validation_group, args.seed)
    for name in ("train", "validation", "test"):
        here = [g for g in part if part[g] == name]
        present = set(data.label[np.isin(data.group, here)])
        log(f"{name}: {len(here)} groups, " + ", ".join(
            f"{(data.label[np.isin(data.group, here)] == label).sum()} {label}" for label in labels))
        if present != set(labels):
            raise ValueError(f"the {name} groups lack {sorted(set(labels) - present)}: choose other groups")

    options = fit.Options(**{f.name: getattr(args, f.name) for f in dataclasses.fields(fit.Options) if hasattr(args, f.name)})
    model = fit.fit(data, part, log=log, picture=os.path.splitext(args.checkpoint)[0] + ".png", **vars(options))
    where = np.array([part[g] for g in data.group])
    validation, test = np.flatnonzero(where == "validation"), np.flatnonzero(where == "test")
    p = wanted_sum(model(validation))[ordinary_of(data, validation)]
    aims = {aim: threshold_for(p, aim) for aim in AIMS}
    figures = figures_of(model.logits(test), data, test, labels, model.temperature, model.thresholds, model.any_threshold, aims,
                         random_logits(model.net, data, test, model.channels, model.mask, model.device, args.seed))
    figures["test_groups"] = sorted(g for g in part if part[g] == "test")
    figures["validation_groups"] = sorted(g for g in part if part[g] == "validation")

    created = f"train.py {args.model_version}, PyTorch {torch.__version__}, Python {platform.python_version()}"
    network.export_onnx(model.net, args.out, name=args.name, version=args.model_version, labels=labels,
                        channels=model.channels, mask=model.mask, temperature=model.temperature, thresholds=model.thresholds,
                        any_threshold=model.any_threshold, unknown=model.unknown, training_data=data.digest,
                        figures=figures, created_by=created)
    base = os.path.splitext(args.out)[0]
    # The folders of the machine that trained do not belong into the figures.
    short = lambda a: os.path.basename(os.path.normpath(a)) if os.path.isabs(a) else a
    shown = [short(a) for a in argv if a != "--resume"]
    folders = " ".join(f"--data {shlex.quote(short(d))}" for d in args.data)
    with open(base + page.SUFFIX, "w", encoding="utf-8") as f:
        json.dump({
            "name": args.name, "version": args.model_version, "network": options.network,
            "parameters": sum(p.numel() for p in model.net.parameters()), "labels": labels, "channels": model.channels,
            "mask": model.mask, "temperature": model.temperature, "thresholds": model.thresholds,
            "any_threshold": model.any_threshold, "unknown": model.unknown, "training_data": data.digest,
            "created": str(datetime.date.today()), "created_by": created,
            "command": shlex.join(["models/train/train.py", *shown]),
            "evaluate": f"models/train/train.py {folders} --evaluate {short(args.out)}",
            "options": {k: v for k, v in dataclasses.asdict(options).items() if k not in MACHINE},
            "best_epoch": model.epoch, "losses": model.losses, "choice": model.choice, "bias": model.bias,
            "left_out": data.left_out, "data": groups_of(data, labels, part), "figures": figures,
        }, f, indent=1, sort_keys=True)
        f.write("\n")
    page.write(base + page.SUFFIX)
    print(page.report(figures, labels, model.thresholds))


# Options of the run, not of the model.
MACHINE = ("checkpoint", "device", "max_minutes", "resume", "threads")


def groups_of(data, labels, part):
    """Which groups are in which part, and how many flows they have: the networks of
    the lab together, each source of captures by itself."""
    by_group = collections.Counter(zip(data.group, data.label))
    wanted = set(data.group[data.label != dataset.BACKGROUND])
    flows = lambda groups: {label: sum(by_group[g, label] for g in groups) for label in labels}
    rows = []
    for name in ("train", "validation", "test"):
        here = sorted(g for g in part if part[g] == name)
        networks = [g for g in here if g in wanted]
        rows += [{"part": name, "groups": groups, "flows": flows(groups)}
                 for groups in (networks, *([g] for g in here if g not in wanted))]
    return rows


def evaluate(args, data):
    """Prints the figures of a model file on its test groups of the data."""
    net, meta = network.load_onnx(args.evaluate)
    net = net.to(args.device)
    patterns = args.holdout_group or meta["figures"].get("test_groups", [])
    test = np.flatnonzero([counts.matches(g, patterns) for g in data.group])
    if len(test) == 0:
        raise ValueError(f"the data has none of the model's test groups {patterns}; name others with --holdout-group")
    unknown = set(data.label[test]) - set(meta["labels"])
    if unknown and not args.classes:
        raise ValueError(f"the data has classes that the model does not know: {', '.join(sorted(unknown))}; "
                         f"to count them as background, say --classes {','.join(meta['labels'][1:])}")
    if args.classes:
        data = data.folded(args.classes)
    if data.digest != meta["training_data"]:
        print(f"note: the data is {data.digest}, the model was trained on {meta['training_data']}", file=sys.stderr)
    told = meta["figures"]
    aims = {aim: by["min_confidence"] for aim, by in told["aims"].items()}
    figures = figures_of(fit.deployed_logits(net, data, test, meta["channels"], meta["mask"], args.device), data, test, meta["labels"],
                         meta["temperature"], meta["thresholds"], told["min_confidence"], aims,
                         random_logits(net, data, test, meta["channels"], meta["mask"], args.device, args.seed))
    print(page.report(figures, meta["labels"], meta["thresholds"]))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, KeyError) as e:
        sys.exit(f"train.py: {e}")
