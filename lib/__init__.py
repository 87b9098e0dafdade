"""Five roads from noise to data, over one softmax.

    check          what a valid argument is; every module's door
    kernels        one pass over the data: log-normaliser, posterior mean, posterior spread
    ranks          several processes as one, for data and training on several devices
    path           Gaussian probability paths  x_t = a(t) x_1 + m(t) x_0
    posterior      a data set seen through a path: score, velocity, exact divergence
    transport      couplings, Sinkhorn, the Gaussian Schrödinger bridge in closed form
    solve          ordinary and stochastic differential equations, log-likelihood
    nets, fit      small time-conditioned networks and the one training loop
    data, metrics  densities and data sets; what the chapters measure

`check`, `ranks`, `kernels` and `path` import nothing of this package but the first two; the methods of the five
chapters stand on the others and never on each other; only notebooks import `plot` and `claims`, and
only the pipeline imports `notebook`.  This file imports nothing, so a pipeline stage can depend on
exactly the modules its notebook uses.
"""
