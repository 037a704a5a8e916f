# SPDX-License-Identifier: Apache-2.0
"""What the studies of the evaluation share."""
import copy
import sys

import numpy as np

import baselines
import counts
import dataset
import eval_packets
import eval_report
import fit
import network
import settings
from counts import among

# The classes of the paper.
PAPER_CLASSES = ["shadowsocks", "v2ray"]

# A source of captures with fewer flows says too little about itself.
SOURCE_FLOWS = 200

# Samples that a baseline is trained on, per source of background.
BASELINE_LIMIT = 3000


class Model:
    """A network with its thresholds, from a file or from a training.

    name; labels, background first; any_threshold, thresholds; p(indices) are
    calibrated probabilities, float64 [n, labels], p_images those of images
    uint8 [n, channels, 1024].
    """

    def __init__(self, name, predictor, meta=None):
        self.name, self.predictor, self.meta = name, predictor, meta or {}
        self.labels, self.any_threshold = predictor.labels, predictor.any_threshold
        self.thresholds = predictor.thresholds

    @classmethod
    def load(cls, path, data):
        net, meta = network.load_onnx(path)
        predictor = fit.Predictor(data, net, meta["labels"], fit.Options(network=meta["network"], mask=meta["mask"]))
        predictor.temperature, predictor.thresholds = meta["temperature"], meta["thresholds"]
        # Models from before there was any_threshold recommend a min_confidence.
        predictor.any_threshold = meta.get("any_threshold", meta["figures"].get("min_confidence", 1.0))
        return cls(meta["name"], predictor, meta)

    def key(self):
        """What tells this file from another, for Store."""
        return {k: self.meta.get(k) for k in ("name", "version", "training_data", "any_threshold", "check")}

    def groups(self, part):
        """The groups of a part, as the training wrote them into the file."""
        groups = self.meta["figures"].get(f"{part}_groups", [])
        if not groups:
            raise ValueError(f"model {self.name} does not say what its {part} groups were: name them with --holdout-group "
                             "and --validation-group")
        return groups

    def p(self, indices, data=None):
        predictor = self.predictor
        if data is not None:
            predictor = copy.copy(predictor)
            predictor.data = data
        return predictor(indices)

    def p_images(self, images):
        return network.softmax(fit.logits_of(self.predictor.net, images, self.predictor.device), self.predictor.temperature)


class Evaluation:
    """What all studies share: options, data, models, the split into parts."""

    def __init__(self, args, data, models, part, store):
        self.args, self.data, self.models, self.part, self.store = args, data, models, part, store
        self.labels = data.labels()
        if len(self.labels) < 2:
            raise ValueError(f"the data has the classes {sorted(set(data.label))}: background and another are needed")
        self.where = np.array([part[g] for g in data.group])
        self.wanted = data.label != dataset.BACKGROUND
        self.kind = data.column("kind")
        self.program = data.column("program")
        cipher = data.column("cipher")
        # Variants that are not trained on, and counted by themselves.
        self.wrapped = self.wanted & np.array([counts.matches(f"{a}/{b}", args.skip) for a, b in zip(data.label, cipher)], bool)
        # Groups with background only are third-party captures.
        self.lab = np.isin(data.group, list(set(data.group[self.wanted])))
        self.ordinary = ~self.wanted & (self.kind != fit.RANDOM_LIKE)
        self.random_like = ~self.wanted & (self.kind == fit.RANDOM_LIKE)

    def train(self, name, where, epoch_samples=None, **options):
        """A Model trained on a part, where: array of part names."""
        print(f"{name}: training on {(where == 'train').sum()} flows", flush=True, file=sys.stderr)
        options = {"network": "compact", "seed": self.args.seed, "false_positives": self.args.budget,
                   "skip": tuple(self.args.skip), "experimental": tuple(self.args.experimental), **options}
        epochs, own = self.length(options["network"])
        return Model(name, fit.fit(self.data, where, epochs=epochs, epoch_samples=epoch_samples or own, **options))

    def length(self, net="compact"):
        """(epochs, samples per epoch) of a training; 0 stands for the network's own."""
        return tuple(getattr(self.args, name) or settings.DEFAULTS[net][name] for name in ("epochs", "epoch_samples"))

    def trained_text(self):
        epochs, samples = self.length()
        return f"compact, {epochs} epochs of {samples} samples"

    def options(self, net="compact", **more):
        """What every trained result depends on."""
        a = self.args
        epochs, epoch_samples = self.length(net)
        return {"seed": a.seed, "budget": a.budget, "skip": a.skip, "experimental": a.experimental, "epochs": epochs, "epoch_samples": epoch_samples,
                "test": sorted(g for g in self.part if self.part[g] == "test"),
                "validation": sorted(g for g in self.part if self.part[g] == "validation"), **more}

    def truth(self, indices, labels):
        return np.array([labels.index(v) if v in labels else -1 for v in self.data.label[indices]])


def counted(e, indices, taken, likelier=None, labels=None):
    """The counts of a verdict on samples. taken: bool [n], flows called a tunnel;
    likelier: class numbers of the likeliest wanted class, labels its classes."""
    d, wrapped = e.data, e.wrapped[indices]
    variant = np.char.add(np.char.add(d.label[indices], "/"), d.column("cipher")[indices])
    wanted = e.wanted[indices] & ~wrapped
    label = np.where(wrapped, "", d.label[indices])   # in no figure of its class
    out = {"ordinary": among(taken, e.ordinary[indices]),
           "captures": among(taken, e.ordinary[indices] & ~e.lab[indices]),
           "lab ordinary": among(taken, e.ordinary[indices] & e.lab[indices]),
           "random-like": among(taken, e.random_like[indices])}
    group, captures = d.group[indices], e.ordinary[indices] & ~e.lab[indices]
    out["sources"] = {g: among(taken, captures & (group == g)) for g in sorted(set(group[captures]))
                      if (captures & (group == g)).sum() >= SOURCE_FLOWS}
    out["recall"] = {k: among(taken, label == k) for k in e.labels[1:] if (label == k).any()}
    program, transport = e.program[indices], d.column("proto")[indices]
    out["programs"] = {f"{k}: {v}": among(taken, (label == k) & (program == v)) for k in e.labels[1:]
                       for v in sorted(set(program[label == k]))}
    out["transports"] = {f"{k}, {v}": among(taken, (label == k) & (transport == v)) for k in e.labels[1:]
                         for v in sorted(set(transport[label == k]))}
    out["variants"] = {v: among(taken, variant == v) for v in sorted(set(variant[e.wanted[indices]]))}
    if likelier is not None:
        named = np.array(labels)[likelier]
        known = wanted & np.isin(label, labels)
        out["told apart"] = {"all": among(named == label, known), "taken": among(named == label, known & taken),
                             "paper's classes, taken": among(named == label, known & taken & np.isin(label, PAPER_CLASSES)),
                             **{k: among(named == label, taken & (label == k)) for k in labels[1:] if (label == k).any()}}
    return out


def verdicts(p, threshold):
    """(taken, likelier wanted class) from probabilities."""
    return fit.wanted_sum(p) >= threshold, p[:, 1:].argmax(axis=1) + 1


def tree_model(e, where, name="boosted trees"):
    """Trees on a part; (probabilities(indices), threshold).

    What holds classes back and sets the threshold is what the networks have: it
    is chosen on validation, for the budget.
    """
    d = e.data
    rng = np.random.default_rng(e.args.seed)
    chosen = baselines.thin(d, np.flatnonzero((where == "train") & ~e.wrapped), BASELINE_LIMIT, rng)
    classes = e.truth(chosen, e.labels)
    print(f"{name}: training on {len(chosen)} flows", file=sys.stderr, flush=True)
    model = baselines.fit_trees(baselines.tree_features(eval_packets.Flows.of(d, chosen)), classes, e.args.seed)

    def logits(indices):
        out = [baselines.probabilities(model, baselines.tree_features(eval_packets.Flows.of(d, indices[i:i + 8192])), e.labels)
               for i in range(0, len(indices), 8192)]
        return np.log(np.maximum(np.concatenate(out), 1e-12))

    validation = np.flatnonzero((where == "validation") & ~e.wrapped)
    told, ordinary = logits(validation), e.ordinary[validation]
    bias = fit.operating_bias(told, e.truth(validation, e.labels), ordinary, e.args.budget,
                              [e.labels.index(k) for k in e.args.experimental if k in e.labels])
    p = lambda indices: network.softmax(logits(indices) + bias, 1.0)
    taken = fit.wanted_sum(network.softmax(told + bias, 1.0))[ordinary]
    return p, max(fit.LEAST, eval_report.cut_for(taken, e.args.budget))


def flagged(e, indices):
    """bool: flows that the exemption rules would block."""
    out = []
    for i in range(0, len(indices), 8192):
        f = eval_packets.Flows.of(e.data, indices[i:i + 8192])
        out.append(baselines.exemption(f.first, f.first_length, f.tcp) == 0)
    return np.concatenate(out) if out else np.zeros(0, bool)


def draw_flows(e, count, seed):
    """Flows of the paper's classes: half background (half of that captures of
    others), the other half the two classes in equal shares. Sources are drawn
    with at most their equal share where there are enough of others."""
    rng = np.random.default_rng(seed)
    chosen = []
    for mask, n in ((~e.wanted & ~e.lab, count // 4), (~e.wanted & e.lab, count // 4),
                    *(((e.data.label == k) & ~e.wrapped, count // 4) for k in PAPER_CLASSES)):
        pool = np.flatnonzero(mask)
        if len(pool) == 0:
            raise ValueError(f"the data lacks flows for this study: it needs {' and '.join(PAPER_CLASSES)} of the lab, background of "
                             "the lab and third-party captures")
        # Round robin over the groups: each gives its first, then each its second...
        order = rng.permutation(pool)
        group = e.data.group[order]
        nth = np.zeros(len(order), np.int64)
        for g in set(group):
            nth[group == g] = np.arange((group == g).sum())
        chosen.append(order[np.argsort(nth, kind="stable")][:n])
    return np.sort(np.concatenate(chosen))


def fold_flows(e, chosen, count, by_group, seed):
    """Fold numbers 0..count-1 of the flows chosen, -1 for others, int64 [N]."""
    rng = np.random.default_rng(seed)
    fold = np.full(len(e.data), -1)
    if not by_group:
        fold[rng.permutation(chosen)] = np.arange(len(chosen)) % count
        return fold
    groups, sizes = np.unique(e.data.group[chosen], return_counts=True)
    wanted = set(e.data.group[e.wanted])
    # Networks and sources by themselves, so that each fold has both; the large
    # ones first, each to the smallest fold.
    for kind in (True, False):
        load = np.zeros(count)
        for g in sorted((g for g in groups if (g in wanted) == kind), key=lambda g: (-sizes[groups == g][0], g)):
            k = int(np.argmin(load))
            load[k] += sizes[groups == g][0]
            fold[chosen[e.data.group[chosen] == g]] = k
    return fold


def parts_of(fold, k, count):
    """Part names: fold k is tested, the next is for validation."""
    return np.where(fold == k, "test", np.where(fold == (k + 1) % count, "validation", np.where(fold >= 0, "train", "")))


def cut_captures(data, n):
    """The same data as if each capture had ended after n bytes."""
    other = copy.copy(data)
    other.capture = data.capture.copy()
    other.capture[:, n:] = 0
    other.captured = np.minimum(data.captured, n)
    other.mask = data.mask.copy()
    other.mask[:, n:] = 0
    other.packets = data.packets.copy()
    other.packets[:, :, 0] = np.where(data.packets[:, :, 0] < n, data.packets[:, :, 0], -1)
    other._payloads = other._planes = other._all_random = None
    return other
