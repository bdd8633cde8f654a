"""Hyperparameters -> GradientTransformation.

`scale_by_x` has no learning rate and no sign; `x(learning_rate, ...)` has both.
"""

from optlab.optimizers._adabelief import ScaleByAdabeliefState as ScaleByAdabeliefState
from optlab.optimizers._adabelief import adabelief as adabelief
from optlab.optimizers._adabelief import scale_by_adabelief as scale_by_adabelief
from optlab.optimizers._adafactor import (
    ScaleByAdafactorState as ScaleByAdafactorState,
)
from optlab.optimizers._adafactor import adafactor as adafactor
from optlab.optimizers._adafactor import scale_by_adafactor as scale_by_adafactor
from optlab.optimizers._adagrad import adagrad as adagrad
from optlab.optimizers._adagrad_norm import (
    ScaleByAdagradNormState as ScaleByAdagradNormState,
)
from optlab.optimizers._adagrad_norm import adagrad_norm as adagrad_norm
from optlab.optimizers._adagrad_norm import (
    scale_by_adagrad_norm as scale_by_adagrad_norm,
)
from optlab.optimizers._adahessian import (
    ScaleByAdahessianState as ScaleByAdahessianState,
)
from optlab.optimizers._adahessian import adahessian as adahessian
from optlab.optimizers._adahessian import scale_by_adahessian as scale_by_adahessian
from optlab.optimizers._adamax import adamax as adamax
from optlab.optimizers._adamp import ScaleByAdampState as ScaleByAdampState
from optlab.optimizers._adamp import adamp as adamp
from optlab.optimizers._adamp import scale_by_adamp as scale_by_adamp
from optlab.optimizers._adamw import adamw as adamw
from optlab.optimizers._adan import ScaleByAdanState as ScaleByAdanState
from optlab.optimizers._adan import adan as adan
from optlab.optimizers._adan import restart_adan as restart_adan
from optlab.optimizers._adan import scale_by_adan as scale_by_adan
from optlab.optimizers._ademamix import ademamix as ademamix
from optlab.optimizers._adopt import adopt as adopt
from optlab.optimizers._amsgrad import amsgrad as amsgrad
from optlab.optimizers._apollo import ScaleByApolloState as ScaleByApolloState
from optlab.optimizers._apollo import apollo as apollo
from optlab.optimizers._apollo import scale_by_apollo as scale_by_apollo
from optlab.optimizers._centralize_gradients import (
    centralize_gradients as centralize_gradients,
)
from optlab.optimizers._clip_coordinates import clip_coordinates as clip_coordinates
from optlab.optimizers._dadapt_adam import DadaptAdamState as DadaptAdamState
from optlab.optimizers._dadapt_adam import dadapt_adam as dadapt_adam
from optlab.optimizers._dadapt_adan import DadaptAdanState as DadaptAdanState
from optlab.optimizers._dadapt_adan import dadapt_adan as dadapt_adan
from optlab.optimizers._dadapt_lion import DadaptLionState as DadaptLionState
from optlab.optimizers._dadapt_lion import dadapt_lion as dadapt_lion
from optlab.optimizers._dadapt_sgd import DadaptSgdState as DadaptSgdState
from optlab.optimizers._dadapt_sgd import dadapt_sgd as dadapt_sgd
from optlab.optimizers._denoise_subspace import (
    DenoiseSubspaceState as DenoiseSubspaceState,
)
from optlab.optimizers._denoise_subspace import denoise_subspace as denoise_subspace
from optlab.optimizers._diffgrad import ScaleByDiffgradState as ScaleByDiffgradState
from optlab.optimizers._diffgrad import diffgrad as diffgrad
from optlab.optimizers._diffgrad import scale_by_diffgrad as scale_by_diffgrad
from optlab.optimizers._dion import ScaleByDionState as ScaleByDionState
from optlab.optimizers._dion import dion as dion
from optlab.optimizers._dion import scale_by_dion as scale_by_dion
from optlab.optimizers._dion2 import ScaleByDion2State as ScaleByDion2State
from optlab.optimizers._dion2 import dion2 as dion2
from optlab.optimizers._dion2 import scale_by_dion2 as scale_by_dion2
from optlab.optimizers._dog import DogState as DogState
from optlab.optimizers._dog import dog as dog
from optlab.optimizers._dog import dog_params as dog_params
from optlab.optimizers._dog import dowg as dowg
from optlab.optimizers._dog import ldog as ldog
from optlab.optimizers._exponentiated_gradient import (
    exponentiated_adamw as exponentiated_adamw,
)
from optlab.optimizers._exponentiated_gradient import (
    exponentiated_gradient as exponentiated_gradient,
)
from optlab.optimizers._fedhyper import ScaleByFedhyperState as ScaleByFedhyperState
from optlab.optimizers._fedhyper import fedhyper as fedhyper
from optlab.optimizers._fedhyper import fedhyper_client_factor as fedhyper_client_factor
from optlab.optimizers._fedhyper import fedhyper_server_rate as fedhyper_server_rate
from optlab.optimizers._fedhyper import scale_by_fedhyper as scale_by_fedhyper
from optlab.optimizers._fira import ScaleByFiraState as ScaleByFiraState
from optlab.optimizers._fira import fira as fira
from optlab.optimizers._fira import scale_by_fira as scale_by_fira
from optlab.optimizers._frugal import ScaleByFrugalState as ScaleByFrugalState
from optlab.optimizers._frugal import draw_lines as draw_lines
from optlab.optimizers._frugal import frugal as frugal
from optlab.optimizers._frugal import scale_by_frugal as scale_by_frugal
from optlab.optimizers._galore import ScaleByGaloreState as ScaleByGaloreState
from optlab.optimizers._galore import galore as galore
from optlab.optimizers._galore import scale_by_galore as scale_by_galore
from optlab.optimizers._kfac import ScaleByKfacState as ScaleByKfacState
from optlab.optimizers._kfac import kfac as kfac
from optlab.optimizers._kfac import scale_by_kfac as scale_by_kfac
from optlab.optimizers._lamb import lamb as lamb
from optlab.optimizers._lanton import ScaleByLantonState as ScaleByLantonState
from optlab.optimizers._lanton import lanton as lanton
from optlab.optimizers._lanton import scale_by_lanton as scale_by_lanton
from optlab.optimizers._lars import lars as lars
from optlab.optimizers._lion import lion as lion
from optlab.optimizers._mfac import ScaleByMfacState as ScaleByMfacState
from optlab.optimizers._mfac import mfac as mfac
from optlab.optimizers._mfac import scale_by_mfac as scale_by_mfac
from optlab.optimizers._mkor import ScaleByMkorState as ScaleByMkorState
from optlab.optimizers._mkor import mkor as mkor
from optlab.optimizers._mkor import scale_by_mkor as scale_by_mkor
from optlab.optimizers._mkor_h import ScaleByMkorHState as ScaleByMkorHState
from optlab.optimizers._mkor_h import mkor_h as mkor_h
from optlab.optimizers._mkor_h import scale_by_mkor_h as scale_by_mkor_h
from optlab.optimizers._momo import MomoState as MomoState
from optlab.optimizers._momo import momo as momo
from optlab.optimizers._momo import momo_adam as momo_adam
from optlab.optimizers._muon import ScaleByMuonState as ScaleByMuonState
from optlab.optimizers._muon import muon as muon
from optlab.optimizers._muon import scale_by_muon as scale_by_muon
from optlab.optimizers._muon_bp import ScaleByMuonBpState as ScaleByMuonBpState
from optlab.optimizers._muon_bp import muon_bp as muon_bp
from optlab.optimizers._muon_bp import scale_by_muon_bp as scale_by_muon_bp
from optlab.optimizers._nadamw import nadamw as nadamw
from optlab.optimizers._natural_galore import (
    ScaleByNaturalGaloreState as ScaleByNaturalGaloreState,
)
from optlab.optimizers._natural_galore import natural_galore as natural_galore
from optlab.optimizers._natural_galore import (
    scale_by_natural_galore as scale_by_natural_galore,
)
from optlab.optimizers._normalize_and_project import (
    NormalizeAndProjectState as NormalizeAndProjectState,
)
from optlab.optimizers._normalize_and_project import (
    normalize_and_project as normalize_and_project,
)
from optlab.optimizers._normalized_logistic import (
    normalize_by_logit_gradient as normalize_by_logit_gradient,
)
from optlab.optimizers._normalized_logistic import (
    normalized_logistic as normalized_logistic,
)
from optlab.optimizers._normuon import ScaleByNormuonState as ScaleByNormuonState
from optlab.optimizers._normuon import normuon as normuon
from optlab.optimizers._normuon import scale_by_normuon as scale_by_normuon
from optlab.optimizers._novograd import ScaleByNovogradState as ScaleByNovogradState
from optlab.optimizers._novograd import novograd as novograd
from optlab.optimizers._novograd import scale_by_novograd as scale_by_novograd
from optlab.optimizers._optimistic_mirror_descent import (
    OptimisticMirrorDescentState as OptimisticMirrorDescentState,
)
from optlab.optimizers._optimistic_mirror_descent import (
    optimistic_mirror_descent as optimistic_mirror_descent,
)
from optlab.optimizers._prodigy import ProdigyState as ProdigyState
from optlab.optimizers._prodigy import prodigy as prodigy
from optlab.optimizers._psgd_kron import (
    ScaleByPsgdKronState as ScaleByPsgdKronState,
)
from optlab.optimizers._psgd_kron import annealed_probability as annealed_probability
from optlab.optimizers._psgd_kron import psgd_kron as psgd_kron
from optlab.optimizers._psgd_kron import scale_by_psgd_kron as scale_by_psgd_kron
from optlab.optimizers._qk_clip import qk_clip as qk_clip
from optlab.optimizers._radam import ScaleByRadamState as ScaleByRadamState
from optlab.optimizers._radam import radam as radam
from optlab.optimizers._radam import scale_by_radam as scale_by_radam
from optlab.optimizers._riemannian_sgd import RiemannianSgdState as RiemannianSgdState
from optlab.optimizers._riemannian_sgd import riemannian_sgd as riemannian_sgd
from optlab.optimizers._rmsprop import ScaleByRmspropState as ScaleByRmspropState
from optlab.optimizers._rmsprop import rmsprop as rmsprop
from optlab.optimizers._rmsprop import scale_by_rmsprop as scale_by_rmsprop
from optlab.optimizers._scale import ScaleByScaleState as ScaleByScaleState
from optlab.optimizers._scale import column_views as column_views
from optlab.optimizers._scale import scale as scale
from optlab.optimizers._scale import scale_by_scale as scale_by_scale
from optlab.optimizers._schedule_free import ScheduleFreeState as ScheduleFreeState
from optlab.optimizers._schedule_free import schedule_free as schedule_free
from optlab.optimizers._schedule_free import schedule_free_adamw as schedule_free_adamw
from optlab.optimizers._schedule_free import (
    schedule_free_params as schedule_free_params,
)
from optlab.optimizers._schedule_free import schedule_free_sgd as schedule_free_sgd
from optlab.optimizers._scion import ScaleByScionState as ScaleByScionState
from optlab.optimizers._scion import scale_by_scion as scale_by_scion
from optlab.optimizers._scion import scion as scion
from optlab.optimizers._scion import scion_norms as scion_norms
from optlab.optimizers._sgd import sgd as sgd
from optlab.optimizers._sgd_sai import ScaleBySgdSaiState as ScaleBySgdSaiState
from optlab.optimizers._sgd_sai import scale_by_sgd_sai as scale_by_sgd_sai
from optlab.optimizers._sgd_sai import sgd_sai as sgd_sai
from optlab.optimizers._sgdp import ScaleBySgdpState as ScaleBySgdpState
from optlab.optimizers._sgdp import scale_by_sgdp as scale_by_sgdp
from optlab.optimizers._sgdp import sgdp as sgdp
from optlab.optimizers._shampoo import ScaleByShampooState as ScaleByShampooState
from optlab.optimizers._shampoo import scale_by_shampoo as scale_by_shampoo
from optlab.optimizers._shampoo import shampoo as shampoo
from optlab.optimizers._signum import signum as signum
from optlab.optimizers._simplified_ademamix import (
    ScaleBySimplifiedAdemamixState as ScaleBySimplifiedAdemamixState,
)
from optlab.optimizers._simplified_ademamix import (
    scale_by_simplified_ademamix as scale_by_simplified_ademamix,
)
from optlab.optimizers._simplified_ademamix import (
    simplified_ademamix as simplified_ademamix,
)
from optlab.optimizers._soap import ScaleBySoapState as ScaleBySoapState
from optlab.optimizers._soap import scale_by_soap as scale_by_soap
from optlab.optimizers._soap import soap as soap
from optlab.optimizers._sophia import sophia as sophia
from optlab.optimizers._triple_momentum import MomentumConstants as MomentumConstants
from optlab.optimizers._triple_momentum import (
    ScaleByTripleMomentumState as ScaleByTripleMomentumState,
)
from optlab.optimizers._triple_momentum import momentum_constants as momentum_constants
from optlab.optimizers._triple_momentum import (
    scale_by_triple_momentum as scale_by_triple_momentum,
)
from optlab.optimizers._triple_momentum import triple_momentum as triple_momentum
from optlab.optimizers._triple_momentum import (
    triple_momentum_eval_params as triple_momentum_eval_params,
)
from optlab.optimizers._turbo_muon import turbo_muon as turbo_muon
from optlab.optimizers._yogi import ScaleByYogiState as ScaleByYogiState
from optlab.optimizers._yogi import scale_by_yogi as scale_by_yogi
from optlab.optimizers._yogi import yogi as yogi
