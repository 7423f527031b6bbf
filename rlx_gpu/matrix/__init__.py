"""Whole matrices: what the elementwise driver cannot do, in batched products and factorisations.

bucket         gathers gradients into batches of equal shape, has a routine compute directions, applies them
blocks         where the matrices lie in a parameter's memory
batches        matrices of one shape, and their state
wave           matrices of any shapes that share a workspace
step           what a routine is told of a step
muon, soap, kron   the routines: `direction(grad, state, step)`, and MOST_ELEMENTS of one call
newton_schulz, orthogonal, cholesky, products, tiled   what they are made of
"""
