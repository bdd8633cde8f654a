"""Observations -> decision: pure `init` and `step`, run by a loop on the host."""

from optlab.controllers._autolrs import AutoLRSState as AutoLRSState
from optlab.controllers._autolrs import Controller as Controller
from optlab.controllers._autolrs import autolrs as autolrs
from optlab.controllers._forecast import forecast_loss as forecast_loss
from optlab.controllers._next_rate import next_rate as next_rate
