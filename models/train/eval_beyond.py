# SPDX-License-Identifier: Apache-2.0
"""What the paper did not test: what was not in training, masks, fewer bytes."""
import time

import numpy as np

import dataset
import fit
from counts import among, rate, share, table, text
from eval_base import (PAPER_CLASSES, counted, cut_captures, draw_flows, flagged, fold_flows, parts_of, tree_model,
                       verdicts)

# Numbers of bytes that the study of bytes shows to the models.
BYTES_SEEN = (128, 256, 512, 768, 1024)


def without_trees(e):
    """What an option adds to those of a result."""
    return {"trees": False} if e.args.no_trees else {}


def implementations(e):
    """Each program of a wanted class left out of training; its flows in test
    groups are new in network and in program."""
    rows = []
    test = e.where == "test"

    def verdict(model, mask, label):
        at = np.flatnonzero(mask)
        taken, likelier = verdicts(model.p(at), model.any_threshold)
        named = np.array(model.labels)[likelier]
        return {"taken": share(taken.sum(), len(at)), "named": among(named == label, taken)}

    def trees_verdict(where, mask):
        p, threshold = tree_model(e, where)
        return share((fit.wanted_sum(p(np.flatnonzero(mask))) >= threshold).sum(), mask.sum())

    # The classes of the bars first, in case the time ends.
    order = sorted(e.labels[1:], key=lambda label: (label not in PAPER_CLASSES, label))
    pairs = [(label, program) for label in order for program in sorted(set(e.program[e.data.label == label]))]
    whole, begun, skipped = None, time.monotonic(), []
    for label, program in pairs:
        mine = (e.data.label == label) & (e.program == program)
        rest = sorted(set(e.program[e.data.label == label]) - {program})
        scored = mine & test & ~e.wrapped
        if scored.sum() < 20:
            continue
        cipher = e.data.column("cipher")
        common = scored & np.isin(cipher, cipher[(e.where == "train") & (e.data.label == label) & ~mine & ~e.wrapped])

        def one(mine=mine, scored=scored, common=common, label=label, rest=rest):
            nonlocal whole
            where = np.where(mine, "", e.where)
            classes = [k for k in e.labels[1:] if rest or k != label]
            model = e.train(f"without {label}: {mine.sum()} flows", where, classes=classes)
            whole = whole or e.train("with all programs", e.where)
            ordinary = np.flatnonzero(test & e.ordinary)
            return {"without": verdict(model, scored, label), "with": verdict(whole, scored, label),
                    "common": verdict(model, common, label)["taken"] if common.any() else None,
                    "ordinary without": share((fit.wanted_sum(model.p(ordinary)) >= model.any_threshold).sum(), len(ordinary)),
                    # Trees take as long as the network; for the classes of the bars only.
                    "trees": trees_verdict(where, scored) if label in PAPER_CLASSES and not e.args.no_trees else None}

        options = e.options(label=label, program=program, **without_trees(e))
        if e.args.max_minutes and time.monotonic() - begun > 60 * e.args.max_minutes and not e.store.has("implementations", options):
            skipped.append(f"{label} {program}")
            continue
        r = e.store.get("implementations", options, one)
        same = common.sum() == scored.sum()
        rows.append([label, program, ", ".join(rest) or "none", text(r["with"]["taken"]), text(r["without"]["taken"]),
                     "all" if same else "none" if r["common"] is None else text(r["common"]),
                     text(r["without"]["named"]) if rest else "-", text(r["ordinary without"]),
                     *(() if e.args.no_trees else (text(r["trees"]),))])
    e.store.show("implementations", f"Each implementation left out of training and validation; scored on its flows in test groups "
                 f"(new networks). {e.trained_text()}, thresholds of a budget of "
                 f"{e.args.budget:g} on validation groups. Data {e.store.digest}. Where no other program of the class is in training, "
                 "the class itself is new.\n\n" +
                 table(["class", "left out", "other programs in training", "taken, it was in training", "taken, it was not",
                        "the same, variants that the others have as well", "of these named rightly",
                        "ordinary taken", *(() if e.args.no_trees else ("boosted trees: taken, it was not",))], rows) +
                 (f"\n\nNot run, the time was over: {', '.join(skipped)}." if skipped else ""))


def groups(e):
    """Each network and each source left out once: folds of whole groups."""
    count = e.args.folds
    fold = fold_flows(e, np.arange(len(e.data)), count, True, e.args.seed)
    merged = {}
    for method in ("compact", *(() if e.args.no_trees else ("boosted trees",)), "exemption rules"):
        taken, named = np.zeros(len(e.data), bool), np.zeros(len(e.data), bool)
        for k in range(count):
            test = np.flatnonzero(fold == k)

            def of_fold(k=k, test=test):
                where = parts_of(fold, k, count)
                if method == "exemption rules":
                    hit, likelier = flagged(e, test), np.zeros(len(test), int)
                elif method == "boosted trees":
                    p, threshold = tree_model(e, where, f"groups fold {k + 1} trees")
                    hit, likelier = verdicts(p(test), threshold)
                else:
                    model = e.train(f"groups fold {k + 1}", where, classes=e.labels[1:])
                    hit, likelier = verdicts(model.p(test), model.any_threshold)
                return {"taken": np.flatnonzero(hit).tolist(),
                        "named": np.flatnonzero(np.array(e.labels)[likelier] == e.data.label[test]).tolist()}

            r = e.store.get("groups", e.options(method=method, fold=k, folds=count), of_fold)
            taken[test[r["taken"]]], named[test[r["named"]]] = True, True
        merged[method] = (taken, named)
    every = np.arange(len(e.data))
    counts = {m: counted(e, every, taken) for m, (taken, _) in merged.items()}
    lines = [("ordinary, all", lambda c: c["ordinary"]), ("ordinary, third-party captures", lambda c: c["captures"]),
             ("ordinary, lab", lambda c: c["lab ordinary"]), ("random-like", lambda c: c["random-like"])]
    lines += [(f"recall of {k}", lambda c, k=k: c["recall"].get(k)) for k in e.labels[1:]]
    body = [[what, *(text(value(c)) for c in counts.values())] for what, value in lines]
    body.append(["taken tunnels named rightly", *("-" if m == "exemption rules" else text(among(n, t & e.wanted))
                                                  for m, (t, n) in merged.items())])
    networks = sorted(set(e.data.group[e.lab]))
    worst = []
    for what, where in (("recall of all tunnels", e.wanted), ("ordinary taken", e.ordinary)):
        for method, (taken, _) in merged.items():
            by = {g: among(taken, where & ~e.wrapped & (e.data.group == g)) for g in networks}
            pick = min if what.startswith("recall") else max
            g = pick(by, key=lambda g: rate(by[g]))
            values = np.array([rate(s) for s in by.values()])
            worst.append([what, method, f"{g}: {text(by[g])}", *(f"{100 * v:.2f} %" for v in np.percentile(values, (5, 50, 95)))])
    e.store.show("groups", f"Every group is left out once: {count} folds of whole groups ({len(networks)} networks, "
                 f"{len(set(e.data.group)) - len(networks)} sources of captures), one fold tested, one for the thresholds (budget "
                 f"{e.args.budget:g}), the others for training. {e.trained_text()}. "
                 f"Data {e.store.digest}.\n\n" +
                 table(["", *merged], body) + "\n\nSources of captures, ordinary taken:\n\n" +
                 table(["source", *merged], [[g, *(text(c["sources"][g]) for c in counts.values())] for g in next(iter(counts.values()))["sources"]]) +
                 "\n\nNetworks of the lab:\n\n" +
                 table(["", "", "worst network", "5th percentile", "median", "95th percentile"], worst))


def transfer(e):
    """Trained on the lab, thresholds from the lab, tested on third-party captures."""
    where = np.where(e.lab, e.where, "captures")
    test = np.flatnonzero(~e.lab)

    def both():
        model = e.train("transfer", where, classes=e.labels[1:])
        new = np.flatnonzero((where == "test"))
        methods = {"compact": (model.p, model.any_threshold)}
        if not e.args.no_trees:
            methods["boosted trees"] = tree_model(e, where)
        return {name + at: counted(e, flows, fit.wanted_sum(p(flows)) >= threshold)
                for name, (p, threshold) in methods.items() for at, flows in (("", test), (", lab", new))}

    r = e.store.get("transfer", e.options(**without_trees(e)), both)
    methods = [name for name in r if not name.endswith(", lab")]
    row = lambda what, at, value: [what, *(text(value(r[name + at])) for name in methods)]
    rows = [row("third-party captures, all", "", lambda c: c["ordinary"])]
    rows += [row(g, "", lambda c, g=g: c["sources"][g]) for g in r["compact"]["sources"]]
    rows += [row(f"lab, test networks: {k}", ", lab", lambda c, k=k: c[k]) for k in ("ordinary", "random-like")]
    rows += [row(f"lab, test networks: recall of {k}", ", lab", lambda c, k=k: c["recall"][k]) for k in r["compact, lab"]["recall"]]
    e.store.show("transfer", f"Trained on networks of the lab only, thresholds as well, tested on third-party captures: flows detected. "
                 f"{e.trained_text()}. Data {e.store.digest}.\n\n" +
                 table(["", *methods], rows))


def masks(e):
    """The network of the paper with both recipes; compact sees no header."""
    a = e.args
    chosen = np.zeros(len(e.data), bool)
    chosen[draw_flows(e, a.flows, a.seed)] = True
    where = np.where((e.where == "train") & ~chosen, "", e.where)
    test = np.flatnonzero((e.where == "test") & np.isin(e.data.label, [dataset.BACKGROUND, *PAPER_CLASSES]) & ~e.wrapped)
    rows = []
    for recipe in dataset.RECIPES:
        def one(recipe=recipe):
            model = e.train(f"masks {recipe}", where, network="paper", classes=PAPER_CLASSES, mask=recipe,
                            epoch_samples=a.flows, batch=32)
            p = model.p(test)
            truth = np.maximum(0, e.truth(test, model.labels))
            return counted(e, test, *verdicts(p, model.any_threshold), model.labels) | {
                "classes": share((p.argmax(axis=1) == truth).sum(), len(test)), "epoch": model.predictor.epoch,
                "loss": model.predictor.losses[model.predictor.epoch - 1],
                "mean": float(np.mean([np.mean(p.argmax(axis=1)[truth == k] == k) for k in range(3)]))}

        r = e.store.get("masks", e.options("paper", recipe=recipe, flows=a.flows), one)
        rows.append([recipe, f"{r['loss']['train']:.3f}", f"{r['loss']['validation']:.3f}", text(r["classes"]), f"{100 * r['mean']:.1f} %",
                     text(r["ordinary"]), text(r["random-like"]), *(text(r["recall"][k]) for k in PAPER_CLASSES)])
    e.store.show("masks", f"The network of the paper with either recipe: trained on {(where == 'train').sum()} flows, {e.length('paper')[0]} epochs of "
                 f"{a.flows} samples; thresholds of a budget of {a.budget:g}. Data {e.store.digest}. compact has no headers in its planes, "
                 "so the recipe does not matter to it.\n\n" +
                 table(["recipe", "loss, training", "loss, validation", "most probable class is right", "mean of the classes' recalls",
                        "ordinary taken", "random-like taken", *PAPER_CLASSES], rows))


def bytes_seen(e):
    """The models on captures that end early."""
    test = np.flatnonzero((e.where == "test") & ~e.wrapped)
    some = e.data.part(test)
    curves, out = {}, []
    for m in e.models:
        def one(m=m):
            known = np.isin(e.data.label[test], m.labels)
            truth = np.maximum(0, e.truth(test, m.labels))
            found = {}
            for n in BYTES_SEEN:
                p = m.p(np.arange(len(test)), cut_captures(some, n))
                taken, likelier = verdicts(p, m.any_threshold)
                found[str(n)] = {"classes": share((p.argmax(axis=1) == truth)[known].sum(), known.sum()),
                                 "mean": float(np.mean([np.mean(p.argmax(axis=1)[known & (truth == k)] == k)
                                                        for k in range(len(m.labels)) if (known & (truth == k)).any()])),
                                 "wanted": among(taken, known & (truth > 0)), **counted(e, test, taken)}
            return found

        r = e.store.get("bytes", e.options(model=m.key()), one)
        rows = [[n, text(s["classes"]), f"{100 * s['mean']:.1f} %", text(s["wanted"]), text(s["ordinary"]), text(s["random-like"])]
                for n, s in r.items()]
        out += [f"{m.name}, captures cut after so many bytes (the model and its thresholds are those of 1024):", "",
                table(["bytes", "most probable class is right", "mean of the classes' recalls", "tunnels taken", "ordinary taken",
                       "random-like taken"], rows), ""]
        curves[m.name] = r
    if not out:
        raise ValueError("bytes measures model files: name one with --model")

    def draw(axes):
        for name, r in curves.items():
            axes.plot([int(n) for n in r], [s["mean"] for s in r.values()], marker="o", label=f"{name}, mean of the classes' recalls")
            axes.plot([int(n) for n in r], [rate(s["wanted"]) for s in r.values()], marker="x", linestyle="--", label=f"{name}, tunnels taken")
        axes.set_xlabel("bytes seen")
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)

    e.store.show("bytes", "\n".join(out).rstrip())
    e.store.picture("bytes", draw)
