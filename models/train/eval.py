#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Measures models and other methods on a dataset: the paper's two experiments,
what the paper did not test, and the bars that a model has to reach.

  eval.py STUDY... --data DIR [--captures DIR...] [--model FILE...] [--out DIR]

Studies:
  bars             each bar with counts and intervals, for the models, the boosted
                   trees and the exemption rules
  experiment1      approximate completeness: R = 0, 1/9, 2/8, 3/7
  experiment2      all methods on the same flows, with the time per flow
  implementations  each program of a tunnel left out of training
  groups           each network of the lab and each source of captures left out
  transfer         trained on the lab alone, tested on third-party captures
  masks            the network of the paper with the recipes paper and strict
  bytes            accuracy against the number of bytes seen
  base-rates       precision where tunnels are rare
  shortcuts        what the verdict depends on: fields replaced by random values
  limits           what the first 1024 bytes can't tell, and more packets would
  all              all of them

A study whose result is in the output folder for the same data and options
is not computed again. Tables go to standard output and to STUDY.md, figures to
results/ as JSON, curves to STUDY.png. No threshold is chosen on flows that it
is scored on: training, validation and test are different groups (a network of
the lab, or a source of captures).

Debian packages, which `sudo make eval` installs: python3-torch python3-onnx
python3-sklearn python3-matplotlib libndpi-bin netbase.
"""
import argparse
import os
import sys

import settings

MISSING = None
try:
    import torch

    import dataset
    import eval_bars  # noqa: F401 (STUDIES names it)
    import eval_base
    import eval_beyond  # noqa: F401
    import eval_limits  # noqa: F401
    import eval_paper
    import eval_report
    import eval_shortcuts  # noqa: F401
except ModuleNotFoundError as error:
    MISSING = error  # --help works all the same

# Name of a study: module and function.
STUDIES = {
    "bars": "eval_bars.bars", "experiment1": "eval_paper.experiment1", "experiment2": "eval_paper.experiment2",
    "implementations": "eval_beyond.implementations", "groups": "eval_beyond.groups", "transfer": "eval_beyond.transfer",
    "masks": "eval_beyond.masks", "bytes": "eval_beyond.bytes_seen", "base-rates": "eval_bars.base_rates",
    "shortcuts": "eval_shortcuts.shortcuts", "limits": "eval_limits.limits",
}

# Inside TLS, in the first 1024 bytes, these look like any TLS.
WRAPPED = ["v2ray/*tls", "vless/*tls"]

# This class is TLS as well, in what is captured of it. It is learnt, as some of its
# programs can be known by their TLS, but it may cost no ordinary flow.
EXPERIMENTAL = ["trojan"]


def arguments(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("study", nargs="+", choices=[*STUDIES, "all"], metavar="STUDY", help="see above")
    p.add_argument("--data", action="append", required=True, metavar="DIR", help="dataset folder (may be repeated)")
    p.add_argument("--captures", action="append", default=[], metavar="DIR",
                   help="folder that the dataset's file names are relative to, for nDPI in experiment2 (may be repeated)")
    p.add_argument("--model", action="append", default=[], metavar="FILE", help="model file to measure (may be repeated)")
    p.add_argument("--out", default=".cache/eval", metavar="DIR", help="folder for results (default %(default)s)")
    p.add_argument("--network", action="append", default=[], choices=sorted(settings.DEFAULTS),
                   help="network that experiment1 trains (may be repeated; default compact), others train compact")
    p.add_argument("--flows", type=int, default=6000, metavar="N", help="flows of experiment1 and masks (default %(default)s)")
    p.add_argument("--epochs", type=int, default=8, metavar="N",
                   help="epochs of each training (default %(default)s; 0: as many as the network's own default)")
    p.add_argument("--epoch-samples", type=int, default=20000, metavar="N",
                   help="samples per epoch where all flows are trained on (default %(default)s; 0: likewise)")
    p.add_argument("--bf16", action="store_true",
                   help="experiment1: compute in bfloat16 while training, half the time on processors that have it")
    p.add_argument("--fold-kind", choices=["random", "groups", "both"], default="both",
                   help="experiment1: folds of random flows, of whole groups, or both (default %(default)s)")
    p.add_argument("--no-trees", action="store_true", help="implementations, groups, transfer: without the boosted trees")
    p.add_argument("--run-folds", type=int, default=10, metavar="N",
                   help="how many of experiment1's ten folds are run (default %(default)s)")
    p.add_argument("--folds", type=int, default=5, metavar="N", help="folds of the study groups (default %(default)s)")
    p.add_argument("--max-minutes", type=float, default=0, metavar="M",
                   help="implementations: leave out no further program after M minutes (0: no limit)")
    p.add_argument("--budget", type=float, default=0.0005, metavar="P",
                   help="share of ordinary validation background that a threshold may let through (default %(default)s)")
    p.add_argument("--left-out", action="append", default=[], metavar="PROGRAM",
                   help="bars: a program that the models were not trained on (may be repeated; patterns)")
    p.add_argument("--skip", action="append", metavar="LABEL/CIPHER",
                   help="variants, as patterns, that are not trained on and are counted by themselves, because only what they are wrapped "
                        f"in shows (may be repeated; default {' '.join(WRAPPED)})")
    p.add_argument("--experimental", action="append", metavar="LABEL",
                   help="class that may take no ordinary validation flow, see train.py (may be repeated; default "
                        f"{' '.join(EXPERIMENTAL)})")
    p.add_argument("--holdout-group", action="append", default=[], metavar="PATTERN",
                   help="test groups (may be repeated; default: those of the first model, else drawn)")
    p.add_argument("--validation-group", action="append", default=[], metavar="PATTERN", help="likewise")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    args = p.parse_args(argv)
    settings.need(MISSING, "sudo make eval")
    for name, least in (("flows", 1), ("epochs", 0), ("epoch_samples", 0), ("run_folds", 1), ("folds", 1)):
        if getattr(args, name) < least:
            p.error(f"--{name.replace('_', '-')} is {getattr(args, name)}: give {least} or more")
    if args.folds < 3:
        p.error(f"--folds is {args.folds}: training, validation and test need 3 or more")
    args.run_folds = min(args.run_folds, eval_paper.TEN)
    if not 0 <= args.budget < 1:
        p.error(f"--budget is {args.budget:g}: give a share of 0 or more and less than 1")
    args.skip = WRAPPED if args.skip is None else args.skip
    args.experimental = EXPERIMENTAL if args.experimental is None else args.experimental
    if "all" in args.study:
        args.study = list(STUDIES)
    return args


def main(argv):
    args = arguments(argv)
    torch.set_num_threads(args.threads or os.cpu_count() or 1)
    data = dataset.Data(args.data)
    models = [eval_base.Model.load(path, data) for path in args.model]
    if args.holdout_group or not models:
        test, validation = args.holdout_group, args.validation_group
    else:
        test, validation = models[0].groups("test"), args.validation_group or models[0].groups("validation")
    part = dataset.split_groups(data, test, validation, args.seed)
    e = eval_base.Evaluation(args, data, models, part, eval_report.Store(args.out, data.digest))
    for name in args.study:
        module, _, function = STUDIES[name].partition(".")
        getattr(sys.modules[module], function)(e)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"eval.py: {error}", file=sys.stderr)
        sys.exit(2)
