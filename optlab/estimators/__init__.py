"""(Loss, params, key) -> tree shaped like the parameters."""

from optlab.estimators._accountant import privacy_spent as privacy_spent
from optlab.estimators._clipped import PerExampleEstimate as PerExampleEstimate
from optlab.estimators._clipped import clipped_gradient_sum as clipped_gradient_sum
from optlab.estimators._coordinatewise import (
    CoordinatewiseEstimate as CoordinatewiseEstimate,
)
from optlab.estimators._coordinatewise import (
    coordinatewise_value_and_grad as coordinatewise_value_and_grad,
)
from optlab.estimators._coordinatewise import (
    staged_coordinatewise_value_and_grad as staged_coordinatewise_value_and_grad,
)
from optlab.estimators._gradient_spread import GradientMoments as GradientMoments
from optlab.estimators._gradient_spread import GradientStatistics as GradientStatistics
from optlab.estimators._gradient_spread import add_gradients as add_gradients
from optlab.estimators._gradient_spread import (
    gradient_statistics as gradient_statistics,
)
from optlab.estimators._gradient_spread import no_gradients as no_gradients
from optlab.estimators._hessian import HessianEstimate as HessianEstimate
from optlab.estimators._hessian import (
    given_or_estimated_diagonal as given_or_estimated_diagonal,
)
from optlab.estimators._hessian import hessian_vector_product as hessian_vector_product
from optlab.estimators._hessian import hutchinson as hutchinson
from optlab.estimators._hessian import rademacher_like as rademacher_like
from optlab.estimators._hypergradient import (
    HypergradientEstimate as HypergradientEstimate,
)
from optlab.estimators._hypergradient import (
    implicit_hypergradient as implicit_hypergradient,
)
from optlab.estimators._hypergradient import (
    penalty_hypergradient as penalty_hypergradient,
)
from optlab.estimators._inverse_product import InverseProduct as InverseProduct
from optlab.estimators._inverse_product import inverse_product as inverse_product
from optlab.estimators._logistic import LogisticEstimate as LogisticEstimate
from optlab.estimators._logistic import (
    logistic_value_and_grad as logistic_value_and_grad,
)
from optlab.estimators._perturbed import PerturbedEstimate as PerturbedEstimate
from optlab.estimators._perturbed import SharpnessEstimate as SharpnessEstimate
from optlab.estimators._perturbed import perturbation_along as perturbation_along
from optlab.estimators._perturbed import perturbation_by_rows as perturbation_by_rows
from optlab.estimators._perturbed import (
    perturbed_value_and_grad as perturbed_value_and_grad,
)
from optlab.estimators._perturbed import (
    sharpness_aware_value_and_grad as sharpness_aware_value_and_grad,
)
from optlab.estimators._private import noised_mean as noised_mean
from optlab.estimators._private import private_gradient as private_gradient
from optlab.estimators._products import Product as Product
from optlab.estimators._products import gauss_newton_product as gauss_newton_product
from optlab.estimators._products import hessian_product as hessian_product
from optlab.estimators._products import preconditioned_product as preconditioned_product
from optlab.estimators._sampling import PoissonBatch as PoissonBatch
from optlab.estimators._sampling import poisson_batch as poisson_batch
from optlab.estimators._spsa import SpsaEstimate as SpsaEstimate
from optlab.estimators._spsa import direction_like as direction_like
from optlab.estimators._spsa import shifted as shifted
from optlab.estimators._spsa import spsa_gradient as spsa_gradient
from optlab.estimators._spsa import spsa_value_and_grad as spsa_value_and_grad
from optlab.estimators._tract import tract_conv as tract_conv
from optlab.estimators._tract import tract_dense as tract_dense
from optlab.estimators._trajectory import TrajectoryBuffer as TrajectoryBuffer
from optlab.estimators._trajectory import averaged_weights as averaged_weights
from optlab.estimators._trajectory import recall as recall
from optlab.estimators._trajectory import remember as remember
from optlab.estimators._trajectory import saf_loss as saf_loss
from optlab.estimators._trajectory import trajectory_buffer as trajectory_buffer
from optlab.estimators._zo_grasp import layerwise_sparsity as layerwise_sparsity
from optlab.estimators._zo_grasp import random_masks as random_masks
from optlab.estimators._zo_grasp import zo_grasp_scores as zo_grasp_scores
