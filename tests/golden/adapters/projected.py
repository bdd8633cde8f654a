"""AdamP and SGDP of the package adamp: weights are (out, in), a leaf is a layer."""

from optlab import optimizers
from tests.golden.comparing import Trajectory
from tests.golden.reading import Case
from tests.golden.settings import Settings


def adamp(values: Settings, case: Case) -> Trajectory:
    del case
    b1, b2 = values.take("betas", (0.9, 0.999))
    tx = optimizers.adamp(
        values.take("lr", 1e-3),
        b1=b1,
        b2=b2,
        eps=values.take("eps", 1e-8),
        weight_decay=values.take("weight_decay", 0.0),
        delta=values.take("delta", 0.1),
        wd_ratio=values.take("wd_ratio", 0.1),
        nesterov=values.take("nesterov", False),
        channel_axis=0,
    )
    return Trajectory(tx)


def sgdp(values: Settings, case: Case) -> Trajectory:
    del case
    nesterov = values.take("nesterov", False)
    tx = optimizers.sgdp(
        values.take("lr"),
        momentum=values.take("momentum", 0.0),
        dampening=values.take("dampening", 0.0),
        eps=values.take("eps", 1e-8),
        weight_decay=values.take("weight_decay", 0.0),
        delta=values.take("delta", 0.1),
        wd_ratio=values.take("wd_ratio", 0.1),
        nesterov=nesterov,
        # It projects in place, which reaches the sum unless nesterov makes a new array.
        project_momentum=not nesterov,
        channel_axis=0,
    )
    return Trajectory(tx)


ADAPTERS = {"adamp.AdamP": adamp, "adamp.SGDP": sgdp}
