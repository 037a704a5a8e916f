# SPDX-License-Identifier: Apache-2.0
"""What the commands of this folder can be told. It needs nothing but Python itself,
so that --help works without the rest."""
import dataclasses
import sys

# Bits of mask.npy's values: a byte is replaced where its value has the bit.
RECIPES = {"paper": 1, "strict": 2}


def need(missing, target):
    """Ends the program, if an import has failed, with what to install."""
    if missing is not None:
        print(f"{sys.argv[0].rpartition('/')[2]}: {missing}; {target} installs what is needed, for /usr/bin/python3",
              file=sys.stderr)
        sys.exit(2)


@dataclasses.dataclass
class Options:
    """How a network is trained; None: the network's own value, see DEFAULTS."""
    network: str = "compact"
    seed: int = 1
    epochs: int = None
    epoch_samples: int = None        # drawn per epoch
    batch: int = None
    lr: float = None
    decay: float = None              # weight decay, of matrices
    falling: bool = None             # the learning rate falls to 0 along a cosine
    average: float = None            # decay per step of the averaged weights; 0: the last weights
    prudent: bool = None             # the last layer's bias is chosen as well: PRIOR and cautious
    any_weight: float = None         # of the loss that knows only "any wanted class"
    captures_share: float = None     # of the real background: from groups with background only
    random_like_share: float = None  # of the lab's background: of that kind; None: as many as there are
    random_ratio: float = None       # made-up background : real background
    cut_share: float = 0.25
    segment_share: float = None      # of the messages: in other packets, see dataset.resegment
    limit_per_group: int = 2000
    skip: tuple = ()                 # patterns LABEL/CIPHER: variants that are neither learnt nor chosen by
    experimental: tuple = ()         # classes that may take no ordinary flow of the validation part
    mask: str = "strict"
    false_positives: float = 0.0005  # budget of the thresholds
    device: str = "cpu"
    bf16: bool = False
    threads: int = 0                 # 0: as PyTorch has been told
    max_minutes: float = 0
    checkpoint: str = None           # file for the state after each epoch
    resume: bool = False

    def __post_init__(self):
        if self.network not in DEFAULTS:
            raise ValueError(f"unknown network {self.network!r} (known: {', '.join(sorted(DEFAULTS))})")
        for name, value in DEFAULTS[self.network].items():
            if getattr(self, name) is None:
                setattr(self, name, value)


DEFAULTS = {
    # The paper's optimizer.
    "paper": {"epochs": 20, "epoch_samples": 20000, "batch": 128, "lr": 1e-4, "decay": 0.0, "falling": False,
              "average": 0.998, "any_weight": 0.0, "random_ratio": 1 / 9, "captures_share": 0.4, "segment_share": 0.0,
              "prudent": False},
    "compact": {"epochs": 6, "epoch_samples": 100000, "batch": 256, "lr": 2e-3, "decay": 0.01, "falling": True,
                "average": 0.998, "any_weight": 0.5, "random_like_share": 0.6, "random_ratio": 0.4,
                "captures_share": 0.3, "segment_share": 0.3, "prudent": True},
}
