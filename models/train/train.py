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
stand its card (.md) and its figures (.json); beside the checkpoint a picture
of the learning curves (.png).

The second form prints the card's figures again.
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

    import dataset
    import fit
    import network
    from fit import RANDOM_LIKE, ordinary_of, threshold_for, wanted_sum
except ModuleNotFoundError as e:
    MISSING = e  # --help works all the same

VERSION = "0.1.0"

# Images of random bytes that an evaluation counts the false positives of.
RANDOM_IMAGES = 5000

# The card tells what a rule over all wanted classes takes at these values of
# min_confidence, beside the recommended one.
SUMS = (0.5, 0.7, 0.9, 0.99)

# The value at which the card tells the figures in detail, if the recommended one
# is not less.
DETAIL = 0.9

# Aims for false positives whose thresholds stand in the card, too.
AIMS = (0.0001, 0.0005, 0.001, 0.003)


def arguments(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", action="append", required=True, metavar="DIR", help="dataset folder (may be repeated)")
    p.add_argument("--out", metavar="FILE", help="model file to write; its card and figures stand beside it")
    p.add_argument("--evaluate", metavar="FILE", help="print the figures of this model instead of training")
    p.add_argument("--network", choices=sorted(settings.DEFAULTS), default="compact", help="(default %(default)s)")
    p.add_argument("--classes", metavar="A,B,...",
                   help="tell these labels apart and take all others for background (default: every label of the data)")
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
                        f"captures of others and not networks of the lab (default: {default('captures_share')})")
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
                        "at its threshold may take (default %(default)s)")
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


def decide(p, together):
    """Class numbers: the likelier wanted class where all of them together reach
    the threshold, else background."""
    return np.where(wanted_sum(p) >= together, p[:, 1:].argmax(axis=1) + 1, 0)


def rule_text(together):
    return (f"the probabilities of the wanted classes sum up to {together:g} or more "
            "(a rule over all of them with this min_confidence); named is the likelier one")


def share(hits, total):
    low, high = network.wilson(int(hits), int(total))
    return {"hits": int(hits), "total": int(total), "low": round(low, 6), "high": round(high, 6)}


def score(predicted, truth, labels):
    """Accuracy, confusion and, per class, recall and precision."""
    classes = {}
    for k, label in enumerate(labels):
        classes[label] = {
            "recall": share(((predicted == k) & (truth == k)).sum(), (truth == k).sum()),
            "precision": share(((predicted == k) & (truth == k)).sum(), (predicted == k).sum()),
        }
    return {
        "accuracy": share((predicted == truth).sum(), len(truth)),
        "false_positives": share(((predicted != 0) & (truth == 0)).sum(), (truth == 0).sum()),
        "classes": classes,
        "confusion": {a: {b: int(((truth == i) & (predicted == j)).sum()) for j, b in enumerate(labels)}
                      for i, a in enumerate(labels)},
    }


def kinds_of(data, indices):
    """What a figure counts a flow as: its class, or for background the lab's
    kind (ordinary, random-like) or "captures" if it is not from the lab."""
    kind = data.column("kind")[indices]
    return np.where(data.label[indices] != dataset.BACKGROUND, data.label[indices],
                    np.where(kind != "", np.char.add("lab, ", kind), "captures"))


def random_logits(net, data, pool, channels, recipe, device, seed):
    """Logits of random images, made of the samples pool as the training makes them."""
    rng = np.random.default_rng(seed)
    images = dataset.training_images(data, np.full(RANDOM_IMAGES, -1), channels, recipe, 0.0, rng, pool)
    return fit.logits_of(net, images, device)


def conditions_of(data, indices):
    """{attribute: array of str}: the lab's network conditions, as few values."""
    rows = [dict(word.split("=", 1) for word in text.split() if "=" in word)
            for text in data.column("condition")[indices]]
    some = lambda names: {n: np.array([r.get(n, "") for r in rows]) for n in names}
    out = some(("ip", "point", "offload"))
    presence = lambda name, none: np.array(["" if not r else "no" if r.get(name, none) == none else "yes" for r in rows])
    out.update(vlan=presence("vlan", "0"), delay=presence("delay", ""), loss=presence("loss", "0.0000"))
    return out


def figures_of(logits, data, indices, labels, temperature, thresholds, together, aims, random_logits):
    """All figures of a model on the samples of its test groups."""
    truth = np.array([labels.index(v) for v in data.label[indices]])
    p = network.softmax(logits, temperature)
    predicted, likelier = decide(p, together), p[:, 1:].argmax(axis=1) + 1
    groups, kinds, ordinary = data.group[indices], kinds_of(data, indices), ordinary_of(data, indices)
    wanted, taken = truth > 0, predicted > 0
    figures = {"flows": len(indices), "groups": len(set(groups)), "rule": rule_text(together),
               "min_confidence": together, **score(predicted, truth, labels)}
    figures["argmax"] = score(p.argmax(axis=1), truth, labels)
    of = lambda hit, among: share((hit & among).sum(), among.sum())
    figures["false_positives_ordinary"] = of(taken, ordinary)
    figures["told_apart"] = {"all": of(likelier == truth, wanted), "taken": of(likelier == truth, wanted & taken)}
    figures["by_class_apart"] = {label: of(likelier == truth, truth == k) for k, label in enumerate(labels[1:], 1)}
    columns = [*labels[1:], *sorted(set(kinds[~wanted]))]
    figures["sums"] = {f"{t:g}": {"ordinary": of(wanted_sum(p) >= t, ordinary),
                                  **{k: of(wanted_sum(p) >= t, kinds == k) for k in columns}}
                       for t in sorted({*SUMS, DETAIL, together})}
    figures["aims"] = {str(aim): {"min_confidence": t, "ordinary": of(wanted_sum(p) >= t, ordinary),
                                  **{k: of(wanted_sum(p) >= t, kinds == k) for k in columns}}
                       for aim, t in aims.items()}
    figures["single"] = {label: {k: of(p[:, i] >= thresholds[label], kinds == k) for k in columns}
                         for i, label in enumerate(labels[1:], 1)}
    figures["detail"] = min(DETAIL, together)
    detail = wanted_sum(p) >= figures["detail"]
    figures["false_positives_by_group"] = {
        g: {f"{together:g}": of(taken, (groups == g) & ~wanted), f"{figures['detail']:g}": of(detail, (groups == g) & ~wanted)}
        for g in sorted(set(groups[~wanted]))}
    named = {name: data.column(name)[indices] for name in ("proto", "reason", "program", "cipher", "carried")}
    named["full"] = np.where(data.captured[indices] >= dataset.BYTES, "1024 bytes", "fewer")
    named.update(conditions_of(data, indices))
    for name, column in named.items():
        by = {}
        for k in columns:
            for v in sorted(set(column[kinds == k]) - {""}):
                here = (kinds == k) & (column == v)
                by.setdefault(k, {})[v] = {"taken": of(detail, here)}
                if k in labels:
                    by[k][v]["told_apart"] = of(likelier == truth, here)
        if by:
            figures[f"by_{name}"] = by
    of_random = decide(network.softmax(random_logits, temperature), together) != 0
    figures["false_positives_random_images"] = share(of_random.sum(), len(random_logits))
    return figures


def text_share(s):
    if s["total"] == 0:
        return "-"
    return (f"{100 * s['hits'] / s['total']:.2f} % ({s['hits']} of {s['total']}; "
            f"{100 * s['low']:.2f} to {100 * s['high']:.2f})")


def table(header, rows):
    """A Markdown table with aligned columns."""
    rows = [[str(c) for c in r] for r in [header] + list(rows)]
    width = [max(len(r[i]) for r in rows) for i in range(len(header))]
    line = lambda r: "| " + " | ".join(c.ljust(w) for c, w in zip(r, width)) + " |"
    return "\n".join([line(rows[0]), "| " + " | ".join("-" * w for w in width) + " |"] + [line(r) for r in rows[1:]])


# The tables of the card: column of the data, heading.
TABLES = (("program", "program"), ("cipher", "cipher or variant"), ("carried", "what was carried"),
          ("full", "bytes captured"), ("reason", "end of the capture"), ("proto", "protocol"), ("ip", "IP version"),
          ("vlan", "VLAN tag"), ("point", "capture point (client, gateways, server)"), ("offload", "segmentation offload"),
          ("delay", "relay with delay"), ("loss", "loss"))


def tables_for(labels):
    """With many classes the card shows the tables that say most; all of them
    stand in the figures (.json)."""
    return TABLES if len(labels) <= 3 else [t for t in TABLES if t[0] in ("program", "cipher", "full", "proto", "ip", "point", "loss")]


def report(figures, labels, thresholds):
    """The figures as Markdown; the card and --evaluate print this."""
    wanted = labels[1:]
    columns = list(next(iter(figures["sums"].values())))
    together = f"{figures['min_confidence']:g}"
    at = figures["sums"][together]
    out = [f"{figures['flows']} flows of {figures['groups']} groups that were in no other part. A flow is taken when "
           f"{figures['rule']}. In brackets are the counts and the 95 % Wilson interval.", ""]
    out += [table(["", f"at the recommended min_confidence {together}"],
                  [[f"{label} taken", text_share(at[label])] for label in wanted] +
                  [["taken flows named rightly", text_share(figures["told_apart"]["taken"])],
                   ["all flows of wanted classes: the likelier one is the right one", text_share(figures["told_apart"]["all"])],
                   ["false positives, ordinary traffic (captures and lab)", text_share(at["ordinary"])]] +
                  [[f"false positives, {k}", text_share(at[k])] for k in columns if k not in labels and k != "ordinary"] +
                  [["false positives, images of random bytes", text_share(figures["false_positives_random_images"])]]), ""]
    out += ["What a rule over all wanted classes takes at other values of min_confidence:", "",
            table(["min_confidence", *columns],
                  [[f"{t} (recommended)" if t == together else t, *(text_share(by[k]) for k in columns)]
                   for t, by in figures["sums"].items()]), ""]
    out += ["The same at values chosen on the validation groups for an aim: this share of their ordinary background, at most, "
            f"is taken (and no value below {fit.LEAST:g} is chosen):", "",
            table(["aim", "min_confidence", *columns],
                  [[f"{float(aim):.2%}", f"{by['min_confidence']:g}", *(text_share(by[k]) for k in columns)]
                   for aim, by in figures["aims"].items()]), ""]
    out += ["What a rule over one class takes at the class's threshold of the metadata:", "",
            table(["class", "threshold", *(k for k in columns if k != "ordinary")],
                  [[label, f"{thresholds[label]:g}", *(text_share(by[k]) for k in columns if k != "ordinary")]
                   for label, by in figures["single"].items()]), ""]
    names = lambda confusion: table(["", *labels], [[a, *(confusion[a][b] for b in labels)] for a in labels])
    out += ["Confusion at the recommended min_confidence (rows: true, columns: decided):", "",
            names(figures["confusion"]), "",
            f"The same for the most probable class, with no threshold (accuracy {text_share(figures['argmax']['accuracy'])}):", "",
            names(figures["argmax"]["confusion"]), ""]
    by = figures["false_positives_by_group"]
    at = list(next(iter(by.values())))
    out += ["False positives by group, of its background of all kinds:", "",
            table(["group", *(f"at {t}" for t in at)], [[g, *(text_share(s[t]) for t in at)] for g, s in by.items()]), ""]
    for name, heading in tables_for(labels):
        by = figures.get(f"by_{name}", {})
        rows = [[k, v, text_share(s["taken"]), text_share(s["told_apart"]) if "told_apart" in s else ""]
                for k in (c for c in columns if c in by) for v, s in by[k].items()]
        if rows:
            out += [f"By {heading}, at a min_confidence of {figures['detail']:g}:", "",
                    table(["flows", heading, "taken", "likelier class is right"], rows), ""]
    return "\n".join(out)


WHAT = {
    "paper": "The network of the paper's Table 2 (five convolutions, three full layers).",
    "compact": ("A small network over the payload of a flow: whose packets carry it, in what order and how long exactly, and "
                "the bytes themselves. It sees no header and no time."),
}

TRAINING = {
    "paper": """\
Half of an epoch is background, with images of uniformly random bytes in the ratio {ratio:.3f} to the real ones (the paper's
approximate completeness); {captures:.0%} of the real ones are from captures of others. The bytes under the mask are drawn anew
every time. {cut:.0%} of the images are cut at a random place.""",
    "compact": """\
To the cross-entropy of the class is added, weighed by {any_weight}, that of "a wanted class or not". Half of an epoch is
background; of the real background {captures:.0%} are captures of others, and of the lab's {hard:.0%} are flows that were made to look
random. In the ratio {ratio:.3f} to the real ones there is made-up background: the packets of some background with random bytes in
them, and the packets of any flow with the bytes of an ordinary one. The payload of flows that are random from the first byte
on is drawn anew every time. In {scrambled:.0%} of the ordinary background bytes change their places. {cut:.0%} of the captures are cut at
a random place. {segment:.0%} of the first messages over TCP go out in other packets: in one instead of two, or in two instead of one.{skipped}""",
}

SKIPPED = """ What matches {pattern} (class and variant) was not trained on: inside TLS they look like any
TLS, and to learn them would make ordinary HTTPS suspect. The figures count them all the same."""

CARD = """# {name} {version}

{what}
It has {parameters} weights. It says of the first 1024 bytes of a TCP or UDP connection whether they are of one
of these classes: {labels}.

| | |
| --- | --- |
| input | 32x32, {channels} |
| mask | `{mask}` |
| temperature | {temperature:.4f} |
| threshold of rules over several classes (`any_threshold`) | {together:g} |
| thresholds of rules over one class | {thresholds} |
| the outcome is `unknown` below | {unknown:g} |
| training data | {digest} |
| seed | {seed} |
| created | {created} |

## What it is for, and what it is not for

Use it in monitor mode first, look at what it says about your own traffic, and only then let it drop anything: no figure
below says how often a network's traffic is of which kind, and where tunnels are few, most of what a rule takes can be
false positives even at 0.1 %.

Do not use it
- to decide about people: it tells kinds of traffic apart, with the errors below, and nothing about who or why;
- where a wrongly dropped connection harms someone, without an allow-list and a person who looks at the events;
- as evidence that a connection is, or is not, of a class: the positive classes were recorded in a lab.

## Data

The wanted classes, and part of the background, come from the project's traffic lab, where the real programs talk
through networks of changing delay, loss, MTU, addresses and TCP settings. The rest of the background is real captures
that others have published. Flows that are the same after masking were left out. A group (one network of the lab, or
one source of captures) is in one part only.{left_out}

{data}

{parts}

## Training

```
{command}
```

Adam, learning rate {lr}, batches of {batch}; cross-entropy; {epochs} epochs of {epoch_samples} samples. The
weights are averaged over the steps (decay {average}); those of epoch {best_epoch} had the least loss on the validation groups.
{training}

Chosen on the validation groups alone: the epoch, the temperature, the thresholds and the value for `unknown`. A
threshold is the least one, but at least {least:g}, that no more than {allowed} of the {ordinary} flows of their ordinary background reach
(ordinary is all but what the lab made to look random); that is {rate} of them, and the budget is {budget:.2%}. What is
compared with it is the sum of the probabilities of the classes that a rule lists. {bias}
`unknown` is the least probability of
the most probable class from which on it is right in 99 % of the flows, every class counting the same.

## Which classes a policy may name

{classes}

## Figures

{figures}

The same figures again, from the same data and the model file:

```
{evaluate}
```

## Known failures

{failures}
"""


def card(data, labels, part, model, options, figures, args, created, command, evaluate):
    """The model card."""
    parts, groups = counts_text(data, labels, part)
    return CARD.format(
        name=args.name, version=args.model_version,
        labels=", ".join(f"`{v}`" for v in labels), mask=model.mask, what=WHAT[options.network],
        channels=", ".join(f"`{c}`" for c in model.channels),
        parameters=f"{sum(p.numel() for p in model.net.parameters()):,}", temperature=model.temperature,
        together=model.any_threshold, unknown=model.unknown,
        thresholds=", ".join(f"{k} {v:g}" for k, v in model.thresholds.items()), digest=data.digest, seed=options.seed,
        created=f"{datetime.date.today()}, {created}", data=parts, parts=groups, command=command, lr=options.lr,
        epochs=len(model.losses), epoch_samples=options.epoch_samples, best_epoch=model.epoch,
        budget=options.false_positives, least=fit.LEAST, batch=options.batch, average=options.average,
        ordinary=model.choice["ordinary"], allowed=model.choice["allowed"],
        rate=text_share(share(model.choice["allowed"], model.choice["ordinary"])),
        training=TRAINING[options.network].format(
            ratio=options.random_ratio, captures=options.captures_share, cut=options.cut_share, any_weight=options.any_weight,
            hard=options.random_like_share or 0, scrambled=dataset.SCRAMBLED, segment=options.segment_share,
            skipped="" if not options.skip else SKIPPED.format(pattern=", ".join(f"`{p}`" for p in options.skip))),
        classes=classes_text(figures, labels, options.skip, options.experimental),
        bias=bias_text(model.bias, options.experimental),
        left_out="" if not data.left_out else " Flows of such captures that are of a class of the model, by\ntheir own first message or by the "
        "name of their file, "
        f"were left out, too: {', '.join(f'{n} {k}' for k, n in sorted(data.left_out.items()))}.",
        figures=report(figures, labels, model.thresholds), evaluate=evaluate, failures=known_failures(figures, labels))


def bias_text(bias, experimental):
    held = [f"`{k}` {v:g}" for k, v in bias.items() if v and k != dataset.BACKGROUND]
    text = ""
    if bias.get(dataset.BACKGROUND):
        text = (f"\nBackground counts {fit.PRIOR:g} of what it does in training, where much more of it imitates the wanted classes than in any\n"
                "network's traffic; that value was chosen on validation groups, too, for the recall that is aimed at. ")
    if held:
        text += ("So that a threshold can be that low, classes that look like ordinary traffic were made rarer by adding to their\n"
                 f"logits, scaled by the temperature: {', '.join(held)}. ")
    if experimental:
        text += (f"Of {', '.join(f'`{k}`' for k in experimental)} this is so much that no ordinary flow of the validation groups is taken for it:\n"
                 "what is captured of it is TLS, and the other classes would pay for its errors.")
    return text


# A class of which less is taken is no more than an experiment.
USABLE = 0.95


def classes_text(figures, labels, skip, experimental):
    """Which classes are good enough for a policy, on the test groups."""
    at = figures["sums"][f"{figures['min_confidence']:g}"]
    enough = lambda s: s["hits"] >= USABLE * s["total"] > 0
    rows = []
    for label in labels[1:]:
        alone, bare = figures["single"][label][label], at[label]
        parts = figures.get("by_cipher", {}).get(label, {})
        learnt = [s["taken"] for v, s in parts.items() if not dataset.matches(f"{label}/{v}", skip)]
        if learnt and len(learnt) < len(parts) and figures["detail"] == figures["min_confidence"]:
            bare = share(sum(s["hits"] for s in learnt), sum(s["total"] for s in learnt))
        verdict = "experimental" if label in experimental else "alone" if enough(alone) else "in one rule with the others" if enough(bare) else "experimental"
        rows.append([f"`{label}`", text_share(at[label]), text_share(bare) if bare is not at[label] else "the same", text_share(alone),
                     text_share(figures["by_class_apart"][label]), verdict])
    return (f"A class may be named if at least {USABLE:.0%} of its test flows, but for variants that were not learnt, are taken at the "
            "threshold: in a rule by itself, or in one rule with the other classes. The others are experimental.\n\n" +
            table(["class", "taken by a rule over all classes", "without what was not learnt", "by a rule over this class alone",
                   "named rightly", "may be named"], rows))


def missed(s):
    return share(s["total"] - s["hits"], s["total"])


def known_failures(figures, labels):
    """What a reader of the figures should not overlook, from the figures."""
    wanted = labels[1:]
    together, close = f"{figures['min_confidence']:g}", f"{figures['detail']:g}"
    out = ["- The wanted classes were seen in one lab only, with one release of each program. Other releases, other "
           "transports and other settings are unknown to the model."]
    for k, s in figures["sums"][together].items():
        detail = figures["sums"][close][k]
        if k in wanted:
            out.append(f"- Of {k}, {text_share(missed(s))} are missed at {together}" +
                       (f", {text_share(missed(detail))} at {close}." if close != together else "."))
            if s["total"] < 100:
                out.append(f"- Only {s['total']} test flows of {k}: its figures are weak.")
        elif k != "ordinary" and detail["hits"] > 0.01 * detail["total"]:
            out.append(f"- Background of the kind \"{k}\" is taken for a wanted class: {text_share(s)} at {together}" +
                       (f", {text_share(detail)} at {close}." if close != together else "."))
    apart = figures["told_apart"]["all"]
    if apart["hits"] < 0.95 * apart["total"]:
        out.append(f"- Which wanted class a flow is of is right in {text_share(apart)} only: list all of them in one rule.")
    for name, heading in tables_for(labels):
        for k, by in figures.get(f"by_{name}", {}).items():
            overall = figures["sums"][close][k]
            for v, s in by.items():
                s = s["taken"]
                if k in wanted and s["total"] >= 20 and s["hits"] * overall["total"] < 0.8 * s["total"] * overall["hits"]:
                    out.append(f"- {k} with {heading} {v} is missed more often, at {close}: taken {text_share(s)}.")
                if k not in wanted and k != f"lab, {RANDOM_LIKE}" and name == "carried" and s["hits"] > 0.01 * s["total"]:
                    out.append(f"- Ordinary traffic, {v}, is taken for a wanted class, at {close}: {text_share(s)}.")
    return "\n".join(out)


def counts_text(data, labels, part):
    """Tables of flows by group and by part."""
    by_group = collections.Counter(zip(data.group, data.label))
    wanted = set(data.group[data.label != dataset.BACKGROUND])
    rows = []
    for name in ("train", "validation", "test"):
        here = sorted(g for g in part if part[g] == name)
        networks = [g for g in here if g in wanted]
        rows.append([" ".join(networks), name, *(sum(by_group[g, label] for g in networks) for label in labels)])
        rows += [[g, name, *(by_group[g, label] for label in labels)] for g in here if g not in wanted]
    per_part = []
    for name in ("train", "validation", "test"):
        here = np.array([part[g] == name for g in data.group])
        per_part.append([name, sum(v == name for v in part.values()),
                         *(int((here & (data.label == label)).sum()) for label in labels)])
    lines = ["| " + " | ".join(map(str, r)) + " |" for r in [["groups", "part", *labels], ["---"] * (len(labels) + 2), *rows]]
    return table(["part", "groups", *labels], per_part), "\n".join(lines)


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
    with open(base + ".json", "w", encoding="utf-8") as f:
        json.dump({"figures": figures, "losses": model.losses, "best_epoch": model.epoch, "training_data": data.digest,
                   "temperature": model.temperature, "thresholds": model.thresholds, "any_threshold": model.any_threshold,
                   "unknown": model.unknown, "bias": model.bias, "options": dataclasses.asdict(options), "parts": part}, f, indent=1, sort_keys=True)
        f.write("\n")
    # The folders of the machine that trained do not belong on the card.
    short = lambda a: os.path.basename(os.path.normpath(a)) if os.path.isabs(a) else a
    shown = [short(a) for a in argv if a != "--resume"]
    folders = " ".join(f"--data {shlex.quote(short(d))}" for d in args.data)
    with open(base + ".md", "w", encoding="utf-8") as f:
        f.write(card(data, labels, part, model, options, figures, args, created,
                     command=shlex.join(["models/train/train.py", *shown]),
                     evaluate=f"models/train/train.py {folders} --evaluate {short(args.out)}"))
    print(report(figures, labels, model.thresholds))


def evaluate(args, data):
    """Prints the figures of a model file on its test groups of the data."""
    net, meta = network.load_onnx(args.evaluate)
    net = net.to(args.device)
    patterns = args.holdout_group or meta["figures"].get("test_groups", [])
    test = np.flatnonzero([dataset.matches(g, patterns) for g in data.group])
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
    print(report(figures, meta["labels"], meta["thresholds"]))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, KeyError) as e:
        sys.exit(f"train.py: {e}")
