r"""The one reduction: a single pass over the data carries all five papers.

For points y_j with log-weights w_j seen from x through Gaussian noise of standard deviation σ,

    ℓ_j(x)   = w_j − ‖x − y_j‖² / 2σ²
    log_z(x) = log Σ_j exp ℓ_j                          log-normaliser
    p_j(x)   = exp(ℓ_j − log_z)                         posterior weights, a softmax over the data
    mean(x)  = Σ_j p_j y_j                              E[y | x]
    spread(x)= Σ_j p_j ‖y_j − mean‖²                    tr Cov[y | x]

The density of the noised data set is log_z − (D/2) log 2πσ², its score (mean − x)/σ² (Tweedie), and
the Jacobian of the mean is Cov[y | x]/σ², with trace spread/σ².

Four ways to compute it, with one meaning:

    "definition"  forms the B × N matrix of ℓ in float64: differentiable in every mode, and what the others are
                  tested against.
    "cpu"         never forms it.  With q = [x/σ², −1/2σ², 1] and k = [y, ‖y‖², w], q·k_j = ℓ_j + ‖x‖²/2σ²: torch's
                  fused attention streams the softmax, and with values [y, ‖y‖²] returns mean and E‖y‖²; O(B + N).
    "blocks"      the same by matrix products over blocks of bounded size, on any device: for a GPU without Triton,
                  and where D is large and the products are all the work.
    "triton"      `lib.kernels.launch`, for tensors on an NVIDIA GPU, of up to 64 columns.

Expanding the square cancels when σ is small against the data: in arithmetic of precision ε, ℓ is off
by about δ = ε · max(‖x‖R + R²/2)/σ² + ε·max|w|, R = max‖y‖ after centring, so the mean by 2δR: an estimate, no
proof, for rounding has both signs; the tests hold errors to a half of what is allowed.  The attention runs in
float32 where the estimate keeps the mean within 10⁻³σ and log_z within 10⁻⁴, and in float64 everywhere else.

What depends on the data alone is made once by `prepare`, whose `Cloud` stands wherever a data set does.  Backward
passes stream as well: they recompute p_j from log_z, in the arithmetic of the forward pass.
"""
from lib.kernels.cloud import Cloud, prepare
from lib.kernels.reduction import BACKENDS, gaussian_posterior, reduce
from lib.kernels.terms import GaussianPosterior, merge

__all__ = ["BACKENDS", "Cloud", "GaussianPosterior", "gaussian_posterior", "merge", "prepare", "reduce"]
