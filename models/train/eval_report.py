# SPDX-License-Identifier: Apache-2.0
"""How the evaluation counts, keeps its results and shows them."""
import hashlib
import json
import os
import sys
import time

import numpy as np

from counts import among, share, table

# Raised when a study's results mean something else than before, so that none
# of an earlier program are shown as if this one had measured them.
RESULTS = 1


def one_against_rest(predicted, truth, k):
    """Accuracy, precision and recall of class k against all others, as shares."""
    mine, named = truth == k, predicted == k
    return {"accuracy": share((mine == named).sum(), len(truth)), "precision": among(mine, named), "recall": among(named, mine)}


def confusion(predicted, truth, labels):
    """{predicted: {true: count}}, as the paper's tables stand."""
    return {a: {b: int(((predicted == i) & (truth == j)).sum()) for j, b in enumerate(labels)} for i, a in enumerate(labels)}


def confusion_table(counts):
    labels = list(counts)
    return table(["predicted, true:", *labels], [[a, *(counts[a][b] for b in labels)] for a in labels])


def precision_at(recall, false_positives, base):
    """Of the flows taken, the share that is right where one flow of 1 + base is
    a tunnel. recall, false_positives: rates."""
    right = recall / (1 + base)
    wrong = false_positives * base / (1 + base)
    return right / (right + wrong) if right + wrong else float("nan")


def cut_for(p, budget):
    """The least threshold that no more than budget of the flows with the
    probabilities p reach. Not rounded: trees put many flows close to 1."""
    allowed = int(budget * len(p))
    if len(p) <= allowed:
        return 0.0
    return float(np.nextafter(np.sort(p)[::-1][allowed], np.inf))


class Progress:
    """Lines on standard error: what runs, how far, how long it will take."""

    def __init__(self, name):
        self.name, self.begun, self.told = name, time.monotonic(), 0.0

    def __call__(self, done, total):
        now = time.monotonic()
        if done < total and now - self.told < 5:
            return
        self.told = now
        left = (now - self.begun) / max(1, done) * (total - done)
        print(f"{self.name}: {done} of {total}, {now - self.begun:.0f} s, about {left:.0f} s left", file=sys.stderr, flush=True)


class Store:
    """Results in a folder, one file per study, data and options. What is there
    is not computed again."""

    def __init__(self, folder, digest):
        self.folder, self.digest = folder, digest
        os.makedirs(os.path.join(folder, "results"), exist_ok=True)

    def place(self, name, options):
        """(what a result says of itself, its file)."""
        told = {"study": name, "options": options, "data": self.digest, "results": RESULTS}
        key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
        return told, os.path.join(self.folder, "results", f"{name}-{key}.json")

    def has(self, name, options):
        """Whether get would not compute anything."""
        return os.path.exists(self.place(name, options)[1])

    def get(self, name, options, make):
        """The result of make(), a JSON value, or that of an earlier run with the
        same options, data and code version."""
        told, path = self.place(name, options)
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                return json.load(f)["result"]
        begun = time.monotonic()
        result = make()
        told |= {"result": result, "seconds": round(time.monotonic() - begun, 1)}
        write(path, json.dumps(told, indent=1))
        short = ", ".join(f"{k} {v}" for k, v in options.items() if not isinstance(v, (list, dict)))
        print(f"{name} ({short}): {told['seconds']} s", file=sys.stderr, flush=True)
        return json.loads(json.dumps(result))

    def show(self, name, tables):
        """Prints a study's tables and writes them to NAME.md."""
        write(os.path.join(self.folder, f"{name}.md"), f"# {name}\n\nWritten by `make eval`.\n\n{tables}\n")
        print(tables + "\n", flush=True)

    def picture(self, name, drawing):
        """Writes NAME.png; drawing(axes) draws it."""
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6.4, 4))
        drawing(axes)
        path = os.path.join(self.folder, f"{name}.png")
        figure.savefig(path + ".part", format="png", dpi=100, bbox_inches="tight")
        pyplot.close(figure)
        os.replace(path + ".part", path)


def write(path, content):
    with open(path + ".part", "w", encoding="utf-8") as f:
        f.write(content)
    os.replace(path + ".part", path)
