"""Scores of noised data without a network, and networks on top of them.

    process     two Markov processes with known spectra
    oism        operator-informed score matching: linear algebra in an eigenbasis
    smoothing   kernel smoothing: the exact score of the noised data set, and local metrics
    network     `ScoreNet` adds a network to a score, `score_loss` trains it
"""
from lib.markov.network import ScoreNet, score_loss
from lib.markov.oism import OISM, fit_oism
from lib.markov.process import OrnsteinUhlenbeck, Process, ReflectedBrownian, house_path, house_time, into_box
from lib.markov.smoothing import (
    gaussian_mixture,
    kernel_score,
    local_covariances,
    noised_gaussians,
    riemannian_kernel_score,
)

__all__ = ["OISM", "OrnsteinUhlenbeck", "Process", "ReflectedBrownian", "ScoreNet", "fit_oism", "gaussian_mixture",
           "house_path", "house_time", "into_box", "kernel_score", "local_covariances", "noised_gaussians",
           "riemannian_kernel_score", "score_loss"]
