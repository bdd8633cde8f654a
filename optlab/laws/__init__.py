"""(Schedule, constants) -> predicted loss: laws of loss curves, fitted and applied."""

from optlab.laws._annealing_law import annealing_law as annealing_law
from optlab.laws._annealing_law import power_law as power_law
from optlab.laws._annealing_law import progress_law as progress_law
from optlab.laws._curve import Curve as Curve
from optlab.laws._design import design as design
from optlab.laws._fit import fit as fit
from optlab.laws._fitted import Fitted as Fitted
from optlab.laws._known import LAWS as LAWS
from optlab.laws._known import from_json as from_json
from optlab.laws._known import to_json as to_json
from optlab.laws._law import Form as Form
from optlab.laws._law import Law as Law
from optlab.laws._law import Parameter as Parameter
from optlab.laws._multi_power_law import multi_power_law as multi_power_law
from optlab.laws._predict import ExtrapolationWarning as ExtrapolationWarning
from optlab.laws._predict import Prediction as Prediction
from optlab.laws._predict import compare as compare
from optlab.laws._predict import errors as errors
from optlab.laws._predict import predict as predict
from optlab.laws._rank import Choice as Choice
from optlab.laws._rank import Ranked as Ranked
from optlab.laws._rank import choose as choose
from optlab.laws._rank import rank as rank
from optlab.laws._sums import annealing_area as annealing_area
from optlab.laws._sums import forward_area as forward_area
from optlab.laws._sums import warmup_of as warmup_of
