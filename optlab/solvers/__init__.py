"""(Objective, state) -> state: whole methods that are no link of a chain."""

from optlab.solvers._mezo import Mezo as Mezo
from optlab.solvers._mezo import MezoState as MezoState
from optlab.solvers._mezo import mezo as mezo
from optlab.solvers._penalty import PenaltyBilevel as PenaltyBilevel
from optlab.solvers._penalty import PenaltyBilevelState as PenaltyBilevelState
from optlab.solvers._penalty import PenaltyStep as PenaltyStep
from optlab.solvers._penalty import penalty_bilevel as penalty_bilevel
from optlab.solvers._stacked import StackedLoss as StackedLoss
from optlab.solvers._stacked import TwoPoints as TwoPoints
from optlab.solvers._zo2 import Zo2 as Zo2
from optlab.solvers._zo2 import Zo2State as Zo2State
from optlab.solvers._zo2 import zo2 as zo2
