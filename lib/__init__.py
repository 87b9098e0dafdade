"""Five roads from noise to data, over one softmax.  Four floors, each standing on those before it:

    base        check (what a valid argument is) · ranks (several processes as one) · shapes · stage (progress)
    core        kernels (one pass over the data) · path · solve · nets · fit · metrics · affine · data · judge
                (what a classifier sees in pictures) · latents (MNIST in 32 numbers)
    models      posterior (a data set through a path) · toys · transport (couplings, exact bridges) and the five
                methods: kinetic · interpolant · bridge · markov · difference, never on each other
    notebooks   chapter: plot · claims, which the mathematics never imports

This file imports nothing, so a pipeline stage can depend on exactly the modules its notebook uses.
"""
