# SPDX-License-Identifier: Apache-2.0
"""Folders that `earlydrop dataset` writes: reading, masking, splitting."""
import csv
import fnmatch
import hashlib
import json
import os

import numpy as np

FORMAT = 1
BYTES = 1024
BACKGROUND = "background"

# Bits of mask.npy's values: a byte is replaced where its value has the bit.
RECIPES = {"paper": 1, "strict": 2}


class Data:
    """One or more dataset folders, one behind the other.

    capture, mask: uint8 [N, 1024]; captured: int64 [N], bytes that are in;
    label, group: arrays of str [N]; rows: one dict per sample, all columns of
    samples.tsv; digest: "sha256:..." over the folders' own digests.
    """

    def __init__(self, folders):
        captures, masks, rows, digests = [], [], [], []
        for folder in folders:
            with open(os.path.join(folder, "dataset.json"), encoding="utf-8") as f:
                info = json.load(f)
            if info.get("format") != FORMAT:
                raise ValueError(f"{folder}: dataset format is {info.get('format')!r}, expected {FORMAT}")
            capture = np.load(os.path.join(folder, "capture.npy"), mmap_mode="r")
            mask = np.load(os.path.join(folder, "mask.npy"), mmap_mode="r")
            with open(os.path.join(folder, "samples.tsv"), encoding="utf-8", newline="") as f:
                part = list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))
            for name, array in (("capture.npy", capture), ("mask.npy", mask)):
                if array.dtype != np.uint8 or array.shape != (len(part), BYTES):
                    raise ValueError(f"{folder}: {name} is {array.dtype} {array.shape}, "
                                     f"expected uint8 {(len(part), BYTES)} as samples.tsv has {len(part)} rows")
            captures.append(capture)
            masks.append(mask)
            rows += part
            digests.append(info["digest"])
        self.capture = np.concatenate(captures)
        self.mask = np.concatenate(masks)
        self.rows = rows
        self.label = np.array([r["label"] for r in rows])
        self.group = np.array([r["group"] for r in rows])
        self.captured = np.array([int(r["captured"]) for r in rows])
        self.digest = digests[0]
        if len(digests) > 1:
            self.digest = "sha256:" + hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()

    def __len__(self):
        return len(self.rows)

    def labels(self):
        """The classes, background first, the others by name."""
        return [BACKGROUND] + sorted(set(self.label) - {BACKGROUND})

    def column(self, name):
        """A column of samples.tsv as an array of str, "" where it has none."""
        return np.array([r.get(name) or "" for r in self.rows])


def mix(x):
    """The finishing step of SplitMix64 on uint64 arrays (classifier/mask.go)."""
    x = x ^ (x >> np.uint64(30))
    x = x * np.uint64(0xBF58476D1CE4E5B9)
    x = x ^ (x >> np.uint64(27))
    x = x * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def mask_as_deployed(capture, mask, captured, recipe):
    """Images [N, 1024] with exactly the replacement bytes of the Go program.

    They depend on the capture alone, so an evaluation gives the verdicts that
    `earlydrop replay` gives.
    """
    words = np.ascontiguousarray(capture).view("<u8")
    state = captured.astype(np.uint64) ^ np.uint64(0x243F6A8885A308D3)
    # Whole words first, then always one more, which holds what is left over.
    for w in range(BYTES // 8 + 1):
        word = words[:, w] if w < BYTES // 8 else np.zeros(len(capture), np.uint64)
        state = np.where(w <= captured // 8, mix(state ^ word), state)
    replaced = (mask & RECIPES[recipe]) != 0
    nth = np.cumsum(replaced, axis=1) - 1
    step = (nth // 8 + 1).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    random = mix(state[:, None] + step) >> (nth % 8 * 8).astype(np.uint64)
    return np.where(replaced, random.astype(np.uint8), capture)


def mask_at_random(capture, mask, recipe, rng):
    """Images [N, 1024] with fresh random bytes where the recipe replaces."""
    random = rng.integers(0, 256, capture.shape, dtype=np.uint8)
    return np.where((mask & RECIPES[recipe]) != 0, random, capture)


def matches(group, patterns):
    return any(fnmatch.fnmatchcase(group, p) for p in patterns)


def split_groups(data, test_patterns, validation_patterns, seed, test_share=0.2, validation_share=0.15):
    """Assigns whole groups to train, validation and test.

    Returns {group: "train" | "validation" | "test"}. Patterns decide where
    they match, test before validation. Without a pattern for a part, its share
    of the remaining groups is drawn: among the groups with wanted classes and
    among those with background only, each by themselves, so that every part
    has both.
    """
    groups = sorted(set(data.group))
    wanted = set(data.group[data.label != BACKGROUND])
    part = {}
    for g in groups:
        if matches(g, test_patterns):
            part[g] = "test"
        elif matches(g, validation_patterns):
            part[g] = "validation"
    rng = np.random.default_rng(seed)
    for pool in ([g for g in groups if g in wanted], [g for g in groups if g not in wanted]):
        free = [g for g in pool if g not in part]
        rng.shuffle(free)
        for name, patterns, share in (("test", test_patterns, test_share),
                                      ("validation", validation_patterns, validation_share)):
            if patterns or not free:
                continue
            n = min(max(1, round(share * len(pool))), len(free))
            for g in free[:n]:
                part[g] = name
            free = free[n:]
        for g in free:
            part[g] = "train"
    return part


class Sampler:
    """Draws the training samples of an epoch.

    Half of them are background, the other classes share the other half. Of
    the background, random : real is random_ratio, where the random part is
    images of uniformly random bytes (the paper's approximate completeness).
    Of the real background, captures_share comes from groups that hold nothing
    else, the rest from groups that hold wanted classes too. Among the groups of
    a kind each is drawn with the square root of its size, counted up to limit:
    a large source must not drown the small ones.
    """

    def __init__(self, data, indices, labels, size, random_ratio, captures_share, limit, rng):
        self.data, self.rng = data, rng
        background = size // 2
        self.random = round(background * random_ratio / (1 + random_ratio))
        self.pools = []   # (class number, indices, draws per epoch)
        index = {g: indices[(data.group[indices] == g) & (data.label[indices] == BACKGROUND)]
                 for g in sorted(set(data.group[indices]))}
        index = {g: i for g, i in index.items() if len(i)}
        wanted = set(data.group[indices[data.label[indices] != BACKGROUND]])
        kinds = [[g for g in index if g not in wanted], [g for g in index if g in wanted]]
        shares = [captures_share, 1 - captures_share] if all(kinds) else [1, 1]
        for groups, share in zip(kinds, shares):
            weight = {g: np.sqrt(min(len(index[g]), limit)) for g in groups}
            for g in groups:
                self.pools.append((0, index[g], (background - self.random) * share * weight[g] / sum(weight.values())))
        for k, label in enumerate(labels[1:], 1):
            i = indices[data.label[indices] == label]
            if len(i) == 0:
                raise ValueError(f"no training sample of class {label}: its groups are all held out")
            self.pools.append((k, i, (size - background) / (len(labels) - 1)))
        self.decks = [np.empty(0, np.int64) for _ in self.pools]

    def draw(self, pool, n):
        """n indices of a pool; all of it is dealt before any comes again."""
        out = []
        while n > 0:
            if len(self.decks[pool]) == 0:
                self.decks[pool] = self.rng.permutation(self.pools[pool][1])
            out.append(self.decks[pool][:n])
            self.decks[pool] = self.decks[pool][n:]
            n -= len(out[-1])
        return np.concatenate(out) if out else np.empty(0, np.int64)

    def epoch(self):
        """(indices, classes) of one epoch in random order; index -1 stands for
        a random image."""
        indices, classes = [np.full(self.random, -1)], [np.zeros(self.random, np.int64)]
        for p, (k, _, share) in enumerate(self.pools):
            n = int(share) + (self.rng.random() < share % 1)
            indices.append(self.draw(p, n))
            classes.append(np.full(n, k))
        indices, classes = np.concatenate(indices), np.concatenate(classes)
        order = self.rng.permutation(len(indices))
        return indices[order], classes[order]


def training_images(data, indices, recipe, cut_share, rng):
    """Images uint8 [n, 1024] of a batch: fresh random bytes under the mask,
    random images for index -1, and a share of captures cut at a random place,
    so that no class is told by how much of it was captured."""
    real = np.maximum(indices, 0)
    images = mask_at_random(data.capture[real], data.mask[real], recipe, rng)
    cut = rng.random(len(indices)) < cut_share
    if cut.any():
        end = rng.integers(200, BYTES, len(indices))
        images[cut[:, None] & (np.arange(BYTES) >= end[:, None])] = 0
    noise = indices < 0
    if noise.any():
        images[noise] = rng.integers(0, 256, (int(noise.sum()), BYTES), dtype=np.uint8)
    return images
