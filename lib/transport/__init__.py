"""Couplings of two clouds, and the Schrödinger bridges that are known exactly."""
from lib.transport.bridges import (
    CloudBridge,
    GaussianBridge,
    MixtureBridge,
    cloud_bridge,
    conditional_uvp,
    covariance,
    gaussian_bridge,
    marginal_kl,
    power,
)
from lib.transport.couplings import Sinkhorn, couple, coupled, sinkhorn

__all__ = ["CloudBridge", "GaussianBridge", "MixtureBridge", "Sinkhorn", "cloud_bridge", "conditional_uvp", "couple",
           "coupled", "covariance", "gaussian_bridge", "marginal_kl", "power", "sinkhorn"]
