"""Methods of their authors that set their own rate, or need no schedule."""

from optlab import optimizers
from tests.golden.comparing import Trajectory
from tests.golden.reading import Case
from tests.golden.settings import Settings


def prodigy(values: Settings, case: Case) -> Trajectory:
    """Prodigy of prodigyopt."""
    del case
    values.idle("fsdp_in_use", because="one device holds everything")
    b1, b2, *others = values.take("betas", (0.9, 0.999))
    b3 = values.take("beta3", others[0] if others else None)
    return Trajectory(
        optimizers.prodigy(
            values.take("lr", 1.0),
            b1=b1,
            b2=b2,
            b3=b3,
            eps=values.take("eps", 1e-8),
            weight_decay=values.take("weight_decay", 0.0),
            decoupled=values.take("decouple", True),
            bias_correction=values.take("use_bias_correction", False),
            safeguard_warmup=values.take("safeguard_warmup", False),
            d0=values.take("d0", 1e-6),
            d_coef=values.take("d_coef", 1.0),
            growth_rate=float(values.take("growth_rate", "inf")),
            slice_p=values.take("slice_p", 1),
        )
    )


ADAPTERS = {"prodigyopt.Prodigy": prodigy}
