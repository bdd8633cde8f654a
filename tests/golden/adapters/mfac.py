"""M-FAC: every parameter in one window, as its authors flatten them."""

import re

from optlab import optimizers
from tests.golden.comparing import FLOAT64, Trajectory
from tests.golden.reading import Case
from tests.golden.settings import Settings


def mfac(values: Settings, case: Case) -> Trajectory:
    for name in ("moddev", "optdev", "gpus"):
        values.idle(name, because="devices do not change the numbers")
    values.take("sparse", False, among=(False,))
    # Beside a zero weight 1 - momentum stands the direction itself.
    momentum = values.take("momentum", 0)
    tx = optimizers.mfac(
        values.take("lr", 1e-3),
        window=values.take("ngrads", 1024),
        damping=values.take("damp", 1e-5),
        b1=momentum or None,
        l2=values.take("weight_decay", 0),
    )
    hint = re.search(r"relative (1e-\d+)", case.meta.get("tolerance_hint", ""))
    if hint is None:
        return Trajectory(tx, FLOAT64)
    return Trajectory(
        tx, float(hint[1]), reason="its LU has no pivots: two routes differ by this"
    )


ADAPTERS = {"MFAC (with HInvFastUpMulti)": mfac}
