# SPDX-License-Identifier: Apache-2.0
"""The figures of a model: what it detects of the flows of its test groups, and of
which."""
import numpy as np

import dataset
import fit
import network
from counts import among, share
from fit import ordinary_of, wanted_sum

# Images of random bytes that an evaluation counts the false positives of.
RANDOM_IMAGES = 5000

# What a rule over all wanted classes detects is counted at these values of
# min_confidence, beside the recommended one.
SUMS = (0.5, 0.7, 0.9, 0.99)

# The value at which the figures are in detail, if the recommended one is not less.
DETAIL = 0.9


def decide(p, together):
    """Class numbers: the likelier wanted class where all of them together reach
    the threshold, else background."""
    return np.where(wanted_sum(p) >= together, p[:, 1:].argmax(axis=1) + 1, 0)


def rule_text(together):
    return (f"the probabilities of the wanted classes sum up to {together:g} or more "
            "(a rule over all of them with this min_confidence); named is the likelier one")


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
    figures["false_positives_ordinary"] = among(taken, ordinary)
    figures["told_apart"] = {"all": among(likelier == truth, wanted), "taken": among(likelier == truth, wanted & taken)}
    figures["by_class_apart"] = {label: among(likelier == truth, truth == k) for k, label in enumerate(labels[1:], 1)}
    columns = [*labels[1:], *sorted(set(kinds[~wanted]))]
    figures["sums"] = {f"{t:g}": {"ordinary": among(wanted_sum(p) >= t, ordinary),
                                  **{k: among(wanted_sum(p) >= t, kinds == k) for k in columns}}
                       for t in sorted({*SUMS, DETAIL, together})}
    figures["aims"] = {str(aim): {"min_confidence": t, "ordinary": among(wanted_sum(p) >= t, ordinary),
                                  **{k: among(wanted_sum(p) >= t, kinds == k) for k in columns}}
                       for aim, t in aims.items()}
    figures["single"] = {label: {k: among(p[:, i] >= thresholds[label], kinds == k) for k in columns}
                         for i, label in enumerate(labels[1:], 1)}
    figures["detail"] = min(DETAIL, together)
    detail = wanted_sum(p) >= figures["detail"]
    figures["false_positives_by_group"] = {
        g: {f"{together:g}": among(taken, (groups == g) & ~wanted), f"{figures['detail']:g}": among(detail, (groups == g) & ~wanted)}
        for g in sorted(set(groups[~wanted]))}
    named = {name: data.column(name)[indices] for name in ("proto", "reason", "program", "cipher", "carried")}
    named["full"] = np.where(data.captured[indices] >= dataset.BYTES, "1024 bytes", "fewer")
    named.update(conditions_of(data, indices))
    for name, column in named.items():
        by = {}
        for k in columns:
            for v in sorted(set(column[kinds == k]) - {""}):
                here = (kinds == k) & (column == v)
                by.setdefault(k, {})[v] = {"taken": among(detail, here)}
                if k in labels:
                    by[k][v]["told_apart"] = among(likelier == truth, here)
        if by:
            figures[f"by_{name}"] = by
    of_random = decide(network.softmax(random_logits, temperature), together) != 0
    figures["false_positives_random_images"] = share(of_random.sum(), len(random_logits))
    return figures
