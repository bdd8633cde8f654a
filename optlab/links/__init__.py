"""What optimizers of every family share: links for rate, decay, precision and rest."""

from optlab.links._arrays import in_float32 as in_float32
from optlab.links._arrays import inner_product as inner_product
from optlab.links._arrays import norm_over as norm_over
from optlab.links._arrays import settled as settled
from optlab.links._arrays import widen as widen
from optlab.links._channels import channel_axes as channel_axes
from optlab.links._channels import reduce_alike as reduce_alike
from optlab.links._descend import DECAY_ORDERS as DECAY_ORDERS
from optlab.links._descend import add_decayed_weights as add_decayed_weights
from optlab.links._descend import descend as descend
from optlab.links._leaves import each_leaf as each_leaf
from optlab.links._momentum import AddDampenedState as AddDampenedState
from optlab.links._momentum import add_dampened as add_dampened
from optlab.links._ranges import require_decays as require_decays
from optlab.links._ranges import require_nonnegative as require_nonnegative
from optlab.links._rate import ScaleByLearningRateState as ScaleByLearningRateState
from optlab.links._rate import scale_by_learning_rate as scale_by_learning_rate
from optlab.links._rectification import rectification as rectification
from optlab.links._rest import matrices_and_rest as matrices_and_rest
from optlab.links._stacks import on_each as on_each
from optlab.links._stacks import on_stacks as on_stacks
from optlab.links._stacks import spread_rows as spread_rows
from optlab.links._still import hold_still as hold_still
from optlab.links._tangent import tangent as tangent
