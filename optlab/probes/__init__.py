"""Instruments: they measure a run and never change it.

A chain link here passes every update through as it came and keeps numbers in its state.
"""

from optlab.probes._curvature import CurvatureHistory as CurvatureHistory
from optlab.probes._curvature import RecordCurvatureState as RecordCurvatureState
from optlab.probes._curvature import curvature_history as curvature_history
from optlab.probes._curvature import record_curvature as record_curvature
from optlab.probes._curvature import stability_threshold as stability_threshold
from optlab.probes._eigenpairs import Eigenpairs as Eigenpairs
from optlab.probes._eigenpairs import top_eigenpairs as top_eigenpairs
from optlab.probes._example_changes import ExampleChanges as ExampleChanges
from optlab.probes._example_changes import example_changes as example_changes
from optlab.probes._gradient_norms import (
    RecordGradientNormsState as RecordGradientNormsState,
)
from optlab.probes._gradient_norms import gradient_norms as gradient_norms
from optlab.probes._gradient_norms import record_gradient_norms as record_gradient_norms
from optlab.probes._noise_scale import MicrobatchGradient as MicrobatchGradient
from optlab.probes._noise_scale import NoiseScale as NoiseScale
from optlab.probes._noise_scale import RecordNoiseScaleState as RecordNoiseScaleState
from optlab.probes._noise_scale import gradient_noise_scale as gradient_noise_scale
from optlab.probes._noise_scale import microbatch_gradient as microbatch_gradient
from optlab.probes._noise_scale import record_noise_scale as record_noise_scale
from optlab.probes._spectral_density import SpectralDensity as SpectralDensity
from optlab.probes._spectral_density import spectral_density as spectral_density
from optlab.probes._trace import TraceEstimate as TraceEstimate
from optlab.probes._trace import directional_sharpness as directional_sharpness
from optlab.probes._trace import trace as trace
from optlab.probes._track_law import TrackLawState as TrackLawState
from optlab.probes._track_law import track_law as track_law
