# SPDX-License-Identifier: Apache-2.0
"""Training one network on a data set, and what is chosen on its validation part."""
import copy
import math
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

import counts
import dataset
import network
from settings import Options

# A background flow of this kind imitates what the wanted classes look like; the
# false positives of ordinary traffic, which a network is full of, leave it out.
RANDOM_LIKE = "random-like"


class Predictor:
    """A trained network and what was chosen for it on the validation part.

    net; labels, background first; channels; mask; temperature; thresholds
    {label: probability}; any_threshold; unknown; epoch: the best one; losses:
    one dict per epoch; choice: the counts behind the thresholds; bias {label:
    what was added to its scaled logit, which the network now does}.
    """

    def __init__(self, data, net, labels, options):
        self.data, self.net, self.labels = data, net, labels
        self.channels, self.mask, self.device = network.CHANNELS[options.network], options.mask, options.device
        self.prudent = options.prudent
        self.temperature, self.thresholds, self.any_threshold, self.unknown = 1.0, {}, 1.0, 0.0
        self.epoch, self.losses, self.choice, self.bias = 0, [], {}, {}

    def logits(self, indices):
        """float64 [n, labels] of samples, rendered as the Go program does it."""
        return deployed_logits(self.net, self.data, np.asarray(indices), self.channels, self.mask, self.device)

    def __call__(self, indices):
        """Calibrated probabilities, float64 [n, labels]."""
        return network.softmax(self.logits(indices), self.temperature)


def fit(data, part, network="compact", classes=None, epochs=None, seed=1, threads=0, log=lambda line: None, picture=None,
        **options):
    """Trains a network on the part "train" of data; returns a Predictor.

    part: {group: name} or an array of names [N], the names being "train",
    "validation" and "test" (or any other for what is not to be touched). The
    epoch, the temperature and the thresholds are chosen on "validation".
    classes: the labels to tell apart, the others count as background; None:
    all. epochs: None for the network's default. picture: a file (.png) for the
    learning curves. options: further fields of Options. The global generator of PyTorch is seeded and its number of
    threads set.
    """
    options = Options(network=network, epochs=epochs, seed=seed, threads=threads, **options)
    if classes is not None:
        data = data.folded(classes)
    where = np.array([part.get(g, "") for g in data.group]) if isinstance(part, dict) else np.asarray(part)
    labels = [dataset.BACKGROUND, *(classes if classes is not None else data.labels()[1:])]
    if options.skip:
        skip = np.array([counts.matches(f"{label}/{cipher}", options.skip) for label, cipher in zip(data.label, data.column("cipher"))])
        where = np.where(skip & np.isin(where, ("train", "validation")), "", where)
    predictor = train(options, data, where, labels, log)
    if picture:
        draw(predictor.losses, picture)
    choose(predictor, np.flatnonzero(where == "validation"), options.false_positives, options.experimental)
    return predictor


def logits_of(net, images, device, batch=512):
    """Logits float64 [n, K] of uint8 images [n, channels, 1024]."""
    net.eval()
    out = []
    with torch.no_grad():
        for i in range(0, len(images), batch):
            x = torch.from_numpy(images[i:i + batch]).view(-1, images.shape[1], network.SIDE, network.SIDE)
            out.append(net(x.to(device)).cpu().numpy())
    return np.concatenate(out).astype(np.float64)


def deployed_logits(net, data, indices, channels, recipe, device, limit=4096):
    """Logits of samples, rendered as the Go program renders them."""
    out = [logits_of(net, dataset.images(data, indices[i:i + limit], channels, recipe), device)
           for i in range(0, len(indices), limit)]
    return np.concatenate(out) if out else np.zeros((0, 0))


def ordinary_of(data, indices):
    """bool: background other than what the lab made to look random, and other
    than tunnels whose label was folded into background."""
    return (data.label[indices] == dataset.BACKGROUND) & ~np.isin(data.kind[indices], (RANDOM_LIKE, "tunnel"))


def balanced_nll(logits, truth, temperature):
    """Mean negative log-likelihood of which background is a half, as it is of
    an epoch, and the flows of the other classes are the other half."""
    p = network.softmax(logits, temperature)[np.arange(len(truth)), truth]
    loss = -np.log(np.maximum(p, 1e-30))
    return np.mean([loss[half].mean() for half in (truth == 0, truth > 0) if half.any()])


def calibrate(logits, truth):
    """The temperature of the least balanced loss, by golden-section search."""
    low, high = np.log(0.05), np.log(20.0)
    g = (np.sqrt(5) - 1) / 2
    for _ in range(60):
        a, b = high - g * (high - low), low + g * (high - low)
        if balanced_nll(logits, truth, np.exp(a)) < balanced_nll(logits, truth, np.exp(b)):
            high = b
        else:
            low = a
    return float(np.exp((low + high) / 2))


def allowed(total, budget):
    """How many of total background flows of the validation part a rule may take:
    as many as the budget lets through, rounded down, and none where that is
    less than one. What share that stands for is the matter of an interval."""
    return math.floor(budget * total)


# No threshold is less.
LEAST = 0.5

# How often background is, compared with the wanted classes, where a prudent
# network is used, if it is as often in an epoch. Much of an epoch's background
# imitates the wanted classes, far more than of any traffic does. The less it
# is, the more is taken of the wanted classes and of their imitations; ordinary
# traffic keeps to its budget in any case, see cautious. It was chosen on
# validation groups, for the recall that is aimed at.
PRIOR = 0.25


def threshold_for(p, budget):
    """The least threshold, at least LEAST and rounded up to six digits, that no
    more than allowed(len(p), budget) of the background flows reach. p: their
    probabilities."""
    take = allowed(len(p), budget)
    strongest = np.sort(p)[::-1]
    # Just above the strongest flow that must not be taken.
    least = float(strongest[take]) + 1e-7 if len(p) > take else 0.0
    return min(1.0, max(LEAST, np.ceil(least * 1e6) / 1e6))


def choose_thresholds(p, ordinary, labels, budget):
    """Returns ({class: threshold}, threshold of all wanted classes together)
    from probabilities [N, K]; ordinary: bool [N], the ordinary background."""
    each = {label: threshold_for(p[ordinary, k], budget) for k, label in enumerate(labels[1:], 1)}
    return each, threshold_for(wanted_sum(p)[ordinary], budget)


def choose_unknown(p, truth, right=0.99):
    """The least probability at which, of the flows whose most probable class
    has at least that much, the share right is named rightly, every class
    counting the same; rounded up to four digits, at most 1."""
    top, hit = p.max(axis=1), p.argmax(axis=1) == truth
    weight = 1 / np.bincount(truth, minlength=p.shape[1])[truth]
    order = np.argsort(-top, kind="stable")
    share = np.cumsum((hit * weight)[order]) / np.cumsum(weight[order])
    good = np.flatnonzero(share >= right)
    if len(good) == len(top):
        return 0.0
    return min(1.0, math.ceil(float(top[order][good[-1]]) * 1e4) / 1e4) if len(good) else 1.0


def wanted_sum(p):
    """The probability that a flow is of a wanted class, whichever."""
    return p[:, 1:].sum(axis=1)


def operating_bias(z, truth, ordinary, budget, experimental=()):
    """What a prudent classifier adds to its scaled logits z [N, K] of each
    class: PRIOR for background, and what cautious says."""
    bias = np.zeros(z.shape[1])
    bias[0] = math.log(PRIOR)
    return bias + cautious(z + bias, truth, ordinary, budget, experimental)


def cautious(z, truth, ordinary, budget, experimental=(), step=0.1, most=12.0):
    """What to add to scaled logits z [N, K] of each class, 0 or less, and 0 or
    more for background, so that no more than allowed of the ordinary flows have
    wanted classes that reach LEAST together.

    A class that looks like ordinary traffic becomes rarer by this, and no
    other: with a threshold on the sum of all, the others would pay for it. The
    experimental classes (numbers) come first: no ordinary flow may be taken
    because of them, so that they use up nothing of the budget. As long as
    there still are too many such flows, that class is made rarer, or all of
    them are, by which the fewest wanted flows that were taken and rightly named
    are lost per flow got rid of.
    """
    bias = np.zeros(z.shape[1])
    plain, wanted, named = z[ordinary], z[truth > 0], truth[truth > 0]
    over = lambda b, some: wanted_sum(network.softmax(some + b, 1.0)) >= LEAST
    likeliest = lambda b, some: (some[:, 1:] + b[1:]).argmax(axis=1) + 1
    for k in experimental:
        while bias[k] > -most and (over(bias, plain) & (likeliest(bias, plain) == k)).any():
            bias[k] -= step
    right = lambda b: (over(b, wanted) & (likeliest(b, wanted) == named)).sum()
    kept = right(bias)
    while True:
        bad = over(bias, plain)
        excess = bad.sum() - allowed(len(plain), budget)
        if excess <= 0:
            return bias
        best = None
        for k in (0, *sorted(set(likeliest(bias, plain[bad])))):
            # The first steps may get rid of nothing, larger ones of more than needed.
            for steps in (1, 2, 4, 8, 16):
                tried = bias.copy()
                tried[k] += steps * step if k == 0 else -steps * step
                gone = bad.sum() - over(tried, plain).sum()
                if abs(tried[k]) > most or gone <= 0:
                    continue
                lost = (kept - right(tried)) / min(gone, excess)
                if best is None or lost < best[0]:
                    best = lost, tried
        if best is None:
            return bias
        bias = best[1]
        kept = right(bias)


def choose(predictor, indices, budget, experimental=()):
    """Sets the temperature, the last layer's bias and the thresholds of
    predictor from the samples. experimental: names of classes."""
    data, labels = predictor.data, predictor.labels
    truth = np.array([labels.index(v) for v in data.label[indices]])
    logits = predictor.logits(indices)
    predictor.temperature = calibrate(logits, truth)
    ordinary = ordinary_of(data, indices)
    bias = np.zeros(len(labels))
    if predictor.prudent:
        bias = operating_bias(logits / predictor.temperature, truth, ordinary, budget,
                              [labels.index(k) for k in experimental if k in labels])
    with torch.no_grad():
        predictor.net.last().bias += torch.from_numpy((bias * predictor.temperature).astype(np.float32)).to(predictor.device)
    predictor.bias = {label: round(float(b), 4) for label, b in zip(labels, bias)}
    p = network.softmax(logits + bias * predictor.temperature, predictor.temperature)
    predictor.thresholds, predictor.any_threshold = choose_thresholds(p, ordinary, labels, budget)
    predictor.unknown = choose_unknown(p, truth)
    total = int(ordinary.sum())
    predictor.choice = {"ordinary": total, "allowed": allowed(total, budget), "budget": budget,
                        "taken": int((wanted_sum(p)[ordinary] >= predictor.any_threshold).sum())}


def follow(average, net, decay):
    """Moves the averaged weights one step towards those of net."""
    with torch.no_grad():
        for a, b in zip(average.parameters(), net.parameters()):
            a.lerp_(b, 1 - decay)


def loss_of(logits, truth, any_weight):
    """Cross-entropy of the class, and, weighed, of "a wanted class or not"."""
    loss = F.cross_entropy(logits, truth)
    if any_weight:
        wanted = torch.logsumexp(logits[:, 1:], dim=1) - logits[:, 0]
        loss = loss + any_weight * F.binary_cross_entropy_with_logits(wanted, (truth > 0).float())
    return loss


def train(o, data, where, labels, log):
    """Returns a Predictor without thresholds. Its network is the averaged one
    of the epoch with the least loss on the validation part."""
    if o.threads:
        torch.set_num_threads(o.threads)
    rng = np.random.default_rng(o.seed)
    train_set, validation_set = np.flatnonzero(where == "train"), np.flatnonzero(where == "validation")
    for name, indices in (("train", train_set), ("validation", validation_set)):
        if len(indices) == 0:
            raise ValueError(f"the part {name!r} has no sample")
    torch.manual_seed(o.seed)
    sampler = dataset.Sampler(data, train_set, labels, o.epoch_samples, o.random_ratio, o.captures_share,
                              o.limit_per_group, rng, random_like_share=o.random_like_share)
    # A large validation source adds time, not knowledge.
    keep = []
    for g in sorted(set(data.group[validation_set])):
        for label in labels:
            i = validation_set[(data.group[validation_set] == g) & (data.label[validation_set] == label)]
            keep.append(rng.permutation(i)[:o.limit_per_group])
    watch = np.sort(np.concatenate(keep))
    truth = np.array([labels.index(v) for v in data.label[watch]])

    channels = network.CHANNELS[o.network]
    net = network.create(o.network, len(labels)).to(o.device)
    if o.network == "paper":
        net = net.to(memory_format=torch.channels_last)
    groups = [{"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": o.decay},
              {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=o.lr)
    average, steps = copy.deepcopy(net), 0
    predictor = Predictor(data, average, labels, o)
    best = {"loss": float("inf"), "epoch": 0, "state": None}
    losses, first = [], 1
    if o.resume:
        saved = torch.load(o.checkpoint, map_location=o.device)
        if (saved["digest"], saved["labels"], saved["seed"], saved["network"]) != (data.digest, labels, o.seed, o.network):
            raise ValueError(f"{o.checkpoint} was made from other data, another network or another seed")
        net.load_state_dict(saved["net"])
        average.load_state_dict(saved["average"])
        steps = saved["steps"]
        optimizer.load_state_dict(saved["optimizer"])
        best, losses, first = saved["best"], saved["losses"], saved["epoch"] + 1
        rng.bit_generator.state = saved["rng"]
        torch.set_rng_state(saved["torch_rng"])
        sampler.decks = saved["decks"]
    start = time.monotonic()
    for epoch in range(first, o.epochs + 1):
        if o.max_minutes and time.monotonic() - start > o.max_minutes * 60:
            log(f"stopped before epoch {epoch}: {o.max_minutes:g} minutes are over")
            break
        net.train()
        indices, classes = sampler.epoch()
        total, begun = 0.0, time.monotonic()
        for i in range(0, len(indices), o.batch):
            images = dataset.training_images(data, indices[i:i + o.batch], channels, o.mask, o.cut_share, rng,
                                             train_set, o.segment_share)
            x = torch.from_numpy(images).view(len(images), -1, network.SIDE, network.SIDE).to(o.device)
            y = torch.from_numpy(classes[i:i + o.batch]).to(o.device)
            if o.falling:
                done = (epoch - 1 + i / len(indices)) / o.epochs
                for group in optimizer.param_groups:
                    group["lr"] = o.lr * min(1, (steps + 1) / 200) * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=o.bf16):
                logits = net(x)
            loss = loss_of(logits.float(), y, o.any_weight)
            loss.backward()
            optimizer.step()
            # Early on the average has to forget quickly where it began.
            follow(average, net, min(o.average, steps / (steps + 10)))
            steps += 1
            total += loss.item() * len(y)
            if sys.stderr.isatty():
                done = i + len(y)
                print(f"\repoch {epoch} {done}/{len(indices)} loss {total / done:.4f} "
                      f"{done / (time.monotonic() - begun):.0f} samples/s ", end="", file=sys.stderr, flush=True)
        speed = len(indices) / (time.monotonic() - begun)
        logits = predictor.logits(watch)
        nll = balanced_nll(logits, truth, 1.0)
        right = logits.argmax(axis=1) == truth
        losses.append({"epoch": epoch, "train": round(total / len(indices), 5), "validation": round(float(nll), 5)})
        if nll < best["loss"]:
            best = {"loss": nll, "epoch": epoch, "state": {k: v.cpu().clone() for k, v in average.state_dict().items()}}
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
        recall = " ".join(f"{label} {right[truth == k].mean():.3f}" for k, label in enumerate(labels) if (truth == k).any())
        log(f"epoch {epoch:3d}  loss {losses[-1]['train']:.4f}  validation {nll:.4f}  recall {recall}  "
            f"{speed:.0f} samples/s  {time.monotonic() - start:.0f} s")
        if o.checkpoint:
            save(o.checkpoint, {
                "net": net.state_dict(), "average": average.state_dict(), "steps": steps, "network": o.network,
                "optimizer": optimizer.state_dict(), "best": best, "losses": losses, "epoch": epoch,
                "rng": rng.bit_generator.state, "torch_rng": torch.get_rng_state(), "decks": sampler.decks,
                "digest": data.digest, "labels": labels, "seed": o.seed})
    if best["state"] is None:
        raise ValueError("no epoch was trained")
    average.load_state_dict(best["state"])
    predictor.epoch, predictor.losses = best["epoch"], losses
    return predictor


def draw(losses, path):
    """Draws the learning curves."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    epochs = [row["epoch"] for row in losses]
    for key, text in (("train", "training (loss of the class and of the pair)"), ("validation", "validation (balanced)")):
        axes.plot(epochs, [row[key] for row in losses], label=text)
    axes.set_xlabel("epoch")
    axes.set_ylabel("cross-entropy")
    axes.set_yscale("log")
    axes.legend()
    axes.grid(alpha=0.3)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def save(path, state):
    """Writes a checkpoint atomically."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    torch.save(state, path + ".part")
    os.replace(path + ".part", path)
