"""The race that `optlab race` runs when it is given no flags.

Learning rates come from `tuned`; decay rates of the averages were chosen as carefully
for the baseline as for the challenger. Sized for four minutes on two processors.
"""

WORKLOAD = "shakespeare"
BASELINE = "adamw:b1=0.7,b2=0.99+linear:warmup_steps=40"
CHALLENGER = "muon:b1=0.85,rest.b1=0.7,rest.b2=0.99+linear:warmup_steps=0"

# Steps of the baseline; the challenger gets this fraction of them.
STEPS = 300
CHALLENGER_FRACTION = 0.4

SEEDS = 3
EVAL_EVERY = 10
