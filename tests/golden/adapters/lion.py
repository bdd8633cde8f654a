"""Lion of lion-pytorch."""

from optlab import optimizers
from tests.golden.comparing import Trajectory
from tests.golden.reading import Case
from tests.golden.settings import Settings


def lion_pytorch(values: Settings, case: Case) -> Trajectory:
    del case
    learning_rate = values.take("lr", 1e-4)
    b1, b2 = values.take("betas", (0.9, 0.99))
    weight_decay = values.take("weight_decay", 0.0)
    if values.take("decoupled_weight_decay", False):
        # "Decoupled" from the rate: the decay is divided by it beforehand.
        weight_decay /= learning_rate
    values.idle("use_triton", because="it chooses the code that does the same sums")
    return Trajectory(
        optimizers.lion(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay)
    )


ADAPTERS = {"lion_pytorch.Lion": lion_pytorch}
