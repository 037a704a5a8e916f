# SPDX-License-Identifier: Apache-2.0
"""Why bars are missed: what the first 1024 bytes can't tell, and how many more
packets would."""
import functools
import sys

import numpy as np

import baselines
import dataset
import eval_packets
import fit
from counts import among, rate, share, table, text
from eval_bars import AIMS
from eval_base import BASELINE_LIMIT, PAPER_CLASSES

# How many of a session's first packets with payload are told to the trees.
PACKETS = (2, 4, 8, 16, 32)

# What the capture of a flow holds, in payload.
SITUATIONS = ("one packet only, 1200 bytes or more", "one packet only, 600 to 1199 bytes", "one packet only, less",
              "several packets, all of the initiator", "the responder's first message is cut by the capture's end",
              "the responder's first message is whole", "none, or the responder's only")
ONE_PACKET = (0, 1, 2)

# A program that the lab wrote to look like tunnels: encrypted protocols of its
# own that carry what tunnels carry.
IMITATION = "custom"


def situations(payloads):
    """Numbers of SITUATIONS, int64 [N]. A message, the run of packets of one
    side, is cut where its last packet in the capture was not captured whole."""
    present = payloads.captured > 0
    mine, other = present & payloads.initiator, present & ~payloads.initiator
    count, first = present.sum(axis=1), np.argmax(present, axis=1)
    length = payloads.length[np.arange(len(present)), first]
    cut = (other & (payloads.captured < payloads.length)).any(axis=1)
    # Only the last packet of a capture can be cut: it is one of the first answer
    # where the initiator says nothing behind that began.
    slot = np.arange(present.shape[1])
    begun = np.where(other.any(axis=1), np.argmax(other, axis=1), present.shape[1])
    again = (mine & (slot > begun[:, None])).any(axis=1)
    one = (count == 1) & mine.any(axis=1)
    return np.select([one & (length >= 1200), one & (length >= 600), one, mine.any(axis=1) & ~other.any(axis=1),
                      mine.any(axis=1) & cut & ~again, mine.any(axis=1)], range(6), 6)


def threshold_of_aims(score, label):
    """The greatest threshold that as many of each class reach as its bar says."""
    cuts = []
    for k in PAPER_CLASSES:
        mine = np.sort(score[label == k])
        cuts.append(mine[int((1 - AIMS[k]) * len(mine) + 1e-9)])
    return float(min(cuts))


def packet_features(lengths):
    """float32 [N, 3 n] of signed lengths [N, n]: the lengths, and the sum of
    each side up to each packet."""
    sums = [np.cumsum(np.maximum(sign * lengths, 0), axis=1) for sign in (1, -1)]
    return np.concatenate([lengths, *sums], axis=1).astype(np.float32)


def by_observation(observed, truth, trained, trained_truth):
    """What one can know of a flow whose observation is all there is to see.

    observed, trained: keys of the flows to name and of those learnt from; truth,
    trained_truth: bool. Returns (bool [N] whether the commoner class of the same
    key among those learnt from is right, the commoner of all for a new key; how
    many are right by the best answer to each key in hindsight, which no function
    of the key can exceed).
    """
    votes, hindsight = {}, {}
    for counts, keys, of in ((votes, trained, trained_truth), (hindsight, observed, truth)):
        for key, v in zip(keys, of):
            counts.setdefault(key, [0, 0])[int(v)] += 1
    common = np.mean(trained_truth) > 0.5
    named = np.array([votes[k][1] > votes[k][0] if k in votes and votes[k][0] != votes[k][1] else common for k in observed], bool)
    return named == truth, sum(max(v) for v in hindsight.values())


def limits(e):
    """What the bars that are missed would need."""
    d, a = e.data, e.args
    labels = [dataset.BACKGROUND, *PAPER_CLASSES]
    if set(PAPER_CLASSES) - set(e.labels):
        raise ValueError(f"limits needs flows of {' and '.join(PAPER_CLASSES)}; the data has {', '.join(e.labels)}")
    mine = e.lab & np.isin(d.label, labels) & ~e.wrapped
    at = {part: np.flatnonzero(mine & (e.where == part)) for part in ("validation", "test")}
    at["train"] = baselines.thin(d, np.flatnonzero(mine & (e.where == "train")), BASELINE_LIMIT, np.random.default_rng(a.seed))
    test = at["test"]
    label, truth = d.label[test], e.truth(test, labels)
    tunnel = truth > 0
    custom = e.program == IMITATION
    cases = situations(type(d.payloads())(*(v[test] for v in d.payloads())))

    @functools.lru_cache(None)
    def first_bytes(part):
        return np.concatenate([baselines.tree_features(eval_packets.Flows.of(d, at[part][i:i + 8192]))
                               for i in range(0, len(at[part]), 8192)])

    @functools.lru_cache(None)
    def lengths(part):
        return np.concatenate([eval_packets.signed_lengths(d.sessions(at[part][i:i + 8192]), max(PACKETS))
                               for i in range(0, len(at[part]), 8192)])

    def verdict(p, known):
        """p(part): probabilities of known, background first."""
        threshold = threshold_of_aims(fit.wanted_sum(p["validation"]), d.label[at["validation"]])
        second = p["test"][:, known.index(PAPER_CLASSES[1])] > p["test"][:, known.index(PAPER_CLASSES[0])]
        return {"threshold": threshold, "taken": np.flatnonzero(fit.wanted_sum(p["test"]) >= threshold).tolist(),
                "second": np.flatnonzero(second).tolist()}

    def of_model(m):
        p = {part: m.p(at[part]) for part in ("validation", "test")}
        return verdict(p, m.labels) | {"own": np.flatnonzero(fit.wanted_sum(p["test"]) >= m.any_threshold).tolist()}

    def of_trees(count):
        features = lambda part: np.concatenate([first_bytes(part), packet_features(lengths(part)[:, :count])], axis=1) if count else first_bytes(part)
        print(f"limits: trees with {count} packets, training on {len(at['train'])} flows", file=sys.stderr, flush=True)
        model = baselines.fit_trees(features("train"), e.truth(at["train"], labels), a.seed)
        return verdict({part: baselines.probabilities(model, features(part), labels) for part in ("validation", "test")}, labels)

    found = {}
    for m in e.models:
        if set(PAPER_CLASSES) - set(m.labels):
            raise ValueError(f"model {m.name} does not know {' and '.join(PAPER_CLASSES)}")
        found[m.name] = e.store.get("limits", e.options(model=m.key()), lambda m=m: of_model(m))
    tree_names = {0: "trees, first 1024 bytes"} | {n: f"trees, and first {n} packets" for n in PACKETS}
    for n, name in tree_names.items():
        found[name] = e.store.get("limits", e.options(packets=n), lambda n=n: of_trees(n))

    def among_test(positions):
        out = np.zeros(len(test), bool)
        out[positions] = True
        return out

    taken = {name: among_test(r["taken"]) for name, r in found.items()}
    apart = {name: among_test(r["second"]) == (label == PAPER_CLASSES[1]) for name, r in found.items()}
    flows = {"random-like": e.random_like[test], f"random-like: {IMITATION}": (e.random_like & custom)[test],
             "random-like: others": (e.random_like & ~custom)[test], "ordinary": e.ordinary[test]}
    classes = {k: label == k for k in PAPER_CLASSES}

    rows = [[name, text(among(apart[name], tunnel)), *(text(among(taken[name], v)) for v in (*flows.values(), *classes.values()))]
            for name in found]
    out = [f"Limits of the first 1024 bytes: {len(test)} flows of the lab's test networks "
           f"({', '.join(f'{(truth == k).sum()} {v}' for k, v in enumerate(labels))}); "
           f"the trees learnt from {len(at['train'])} flows of training networks, with classes {', '.join(labels)}. Data {e.store.digest}. "
           "The trees with packets know the lengths on the wire and the directions of the session's first packets with payload (among its first "
           f"{dataset.SESSION} packets), wherever the capture of the first bytes ended (what was sent again counts again). "
           "Told apart: the likelier of the two classes is right, all "
           "flows of both. Taken: the wanted classes' sum reaches the greatest threshold at which "
           f"{' and '.join(f'{100 * AIMS[k]:g} % of {k}' for k in PAPER_CLASSES)} on validation networks are taken. "
           "In brackets: counts and 95 % Wilson interval.", "",
           table(["", "told apart", *(f"{k} taken" for k in flows), *(f"{k} taken" for k in classes)], rows), "",
           f"{IMITATION}: encrypted protocols made for this, which carry what tunnels carry.", ""]

    present = [k for k in range(len(SITUATIONS)) if (cases == k).any()]
    columns = {k: v for k, v in (*classes.items(), *list(flows.items())[1:])}
    for m in e.models:
        own = among_test(found[m.name]["own"])
        out += [f"{m.name}, by what the capture holds: flows taken at its own threshold {m.any_threshold:g}", "",
                table(["the capture holds", *columns, "told apart"],
                      [[SITUATIONS[k], *(text(among(own, v & (cases == k))) for v in columns.values()),
                        text(among(apart[m.name], tunnel & (cases == k)))] for k in present]), ""]
    for what, hits, where in (("Told apart", apart, tunnel), ("Random-like taken, at the thresholds of the first table", taken, flows["random-like"])):
        out += [f"{what}, by what the capture holds:", "",
                table(["the capture holds", *found], [[SITUATIONS[k], *(text(among(hits[name], where & (cases == k))) for name in found)]
                                                      for k in present]), ""]
    out += bound_text(e, at, cases, apart, tunnel)
    out += sorts_text(e, test, {name: (apart[name], taken[name]) for name in (*(m.name for m in e.models), tree_names[0],
                                                                              tree_names[PACKETS[-1]])})
    e.store.show("limits", "\n".join(out).rstrip())

    def draw(axes):
        for what, hits, where, colour in (("told apart", apart, tunnel, "tab:blue"), ("random-like taken", taken, flows["random-like"], "tab:red")):
            axes.plot(range(len(tree_names)), [rate(among(hits[name], where)) for name in tree_names.values()], marker="o", color=colour,
                      label=f"trees, {what}")
            for m in e.models:
                axes.axhline(rate(among(hits[m.name], where)), color=colour, linestyle="--", linewidth=1, label=f"{m.name}, {what}")
        axes.set_xticks(range(len(tree_names)), ["none", *map(str, PACKETS)])
        axes.set_xlabel("packets of the session known besides the first 1024 bytes")
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)

    e.store.picture("limits", draw)


def bound_text(e, at, cases, apart, tunnel):
    """How well flows can be told apart of which the capture holds one packet of
    random bytes, so that its transport and lengths are all there is to see."""
    d, payloads, random = e.data, e.data.payloads(), e.data.all_random()

    def keys(indices):
        first = np.argmax(payloads.captured[indices] > 0, axis=1)
        of = lambda values: values[indices, first].tolist()
        return list(zip(of(payloads.udp), of(payloads.length), of(payloads.captured)))

    second = d.label == PAPER_CLASSES[1]
    train = at["train"][d.label[at["train"]] != dataset.BACKGROUND]
    train_cases = situations(type(payloads)(*(v[train] for v in payloads)))
    body = []
    for k in ONE_PACKET:
        train_k, test_k = train[(train_cases == k) & random[train]], (cases == k) & tunnel & random[at["test"]]
        here = at["test"][test_k]
        if len(here) == 0 or len(train_k) == 0:
            continue
        seen = keys(here)
        right, best = by_observation(seen, second[here], keys(train_k), second[train_k])
        body.append([SITUATIONS[k], len(set(seen)), text(share(max(second[here].sum(), (~second[here]).sum()), len(here))),
                     text(share(right.sum(), len(here))), text(share(best, len(here))), *(text(among(hits, test_k)) for hits in apart.values())])
    if not body:
        return []
    return [f"{' and '.join(PAPER_CLASSES)} told apart where the capture holds one packet and its payload is random by the way the protocol is "
            "made: transport, length on the wire and how much of it was captured are then all there is to see besides the headers. By counts: "
            "the commoner class of the same three values in the training networks. In hindsight: the commoner class among these very test "
            "flows, which no function of the three values can exceed (where nearly every flow has values of its own this says nothing).", "",
            table(["the capture holds", "different values", "always the commoner class", "by counts", "in hindsight", *apart], body), ""]


# Sorts of random-like background with fewer flows are not listed, nor those of
# which no method takes more.
SORT_FLOWS, SORT_TAKEN = 20, 0.02


def sorts_text(e, test, hits):
    """Which programs are mixed up and which background is taken. hits: {method:
    (told apart rightly, taken)}."""
    label, program, random_like = e.data.label[test], e.program[test], e.random_like[test]
    sort = np.char.add(np.char.add(program, ": "), e.data.column("cipher")[test])
    rows = [[f"{k}: {v}", *(text(among(apart, (label == k) & (program == v))) for apart, _ in hits.values())]
            for k in PAPER_CLASSES for v in sorted(set(program[label == k]))]
    body = []
    for v in sorted(set(sort[random_like])):
        shares = [among(taken, random_like & (sort == v)) for _, taken in hits.values()]
        if shares[0]["total"] >= SORT_FLOWS and max(map(rate, shares)) > SORT_TAKEN:
            body.append([v, *map(text, shares)])
    return ["Told apart, by program:", "", table(["program", *hits], rows), "",
            f"Random-like taken, at the thresholds of the first table, by sort (those with {SORT_FLOWS} flows or more of which a method takes "
            f"more than {100 * SORT_TAKEN:g} %):", "", table(["sort", *hits], body)]
