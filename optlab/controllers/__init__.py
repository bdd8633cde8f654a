"""Observations -> decision: pure `init` and `step`, run by a loop on the host."""

from optlab.controllers._autolrs import AutoLRSState as AutoLRSState
from optlab.controllers._autolrs import Controller as Controller
from optlab.controllers._autolrs import autolrs as autolrs
from optlab.controllers._batch_size import BATCH_TESTS as BATCH_TESTS
from optlab.controllers._batch_size import BatchSizeController as BatchSizeController
from optlab.controllers._batch_size import BatchSizeState as BatchSizeState
from optlab.controllers._batch_size import batch_size as batch_size
from optlab.controllers._batch_tests import augmented_test as augmented_test
from optlab.controllers._batch_tests import inner_product_test as inner_product_test
from optlab.controllers._batch_tests import norm_test as norm_test
from optlab.controllers._forecast import forecast_loss as forecast_loss
from optlab.controllers._heavy_ball import HeavyBall as HeavyBall
from optlab.controllers._heavy_ball import heavy_ball as heavy_ball
from optlab.controllers._next_rate import next_rate as next_rate
