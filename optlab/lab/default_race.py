"""The race that `optlab race` runs when it is given no flags.

Sized for four minutes on two processors: evaluations cost about as much as training.
"""

WORKLOAD = "shakespeare"
BASELINE = "adamw+cosine"
CHALLENGER = "muon+wsd"

# Steps of the baseline; the challenger gets this fraction of them.
STEPS = 400
CHALLENGER_FRACTION = 0.4

SEEDS = 3
EVAL_EVERY = 20
