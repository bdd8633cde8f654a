"""Hyperparameters -> GradientTransformation.

`scale_by_x` has no learning rate and no sign; `x(learning_rate, ...)` has both.
"""

from optlab.optimizers._adamw import adamw as adamw
from optlab.optimizers._fedhyper import ScaleByFedhyperState as ScaleByFedhyperState
from optlab.optimizers._fedhyper import fedhyper as fedhyper
from optlab.optimizers._fedhyper import fedhyper_client_factor as fedhyper_client_factor
from optlab.optimizers._fedhyper import fedhyper_server_rate as fedhyper_server_rate
from optlab.optimizers._fedhyper import scale_by_fedhyper as scale_by_fedhyper
from optlab.optimizers._lion import lion as lion
from optlab.optimizers._mfac import ScaleByMfacState as ScaleByMfacState
from optlab.optimizers._mfac import mfac as mfac
from optlab.optimizers._mfac import scale_by_mfac as scale_by_mfac
from optlab.optimizers._muon import ScaleByMuonState as ScaleByMuonState
from optlab.optimizers._muon import muon as muon
from optlab.optimizers._muon import scale_by_muon as scale_by_muon
from optlab.optimizers._nadamw import nadamw as nadamw
from optlab.optimizers._normuon import ScaleByNormuonState as ScaleByNormuonState
from optlab.optimizers._normuon import normuon as normuon
from optlab.optimizers._normuon import scale_by_normuon as scale_by_normuon
from optlab.optimizers._qk_clip import qk_clip as qk_clip
from optlab.optimizers._scale import ScaleByScaleState as ScaleByScaleState
from optlab.optimizers._scale import column_views as column_views
from optlab.optimizers._scale import scale as scale
from optlab.optimizers._scale import scale_by_scale as scale_by_scale
from optlab.optimizers._sgd import sgd as sgd
