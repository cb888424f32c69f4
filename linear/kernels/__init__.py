"""
Products that torch does not have, each beside a plain path that computes the same.

    attend.py   attention of one new token to a cache, as a model writes (a Triton kernel)
    blocks.py   batched products without a copy: block-diagonal, and two block-diagonal factors around a permutation
    chip.py     Triton kernels: two such factors with what lies between them on chip
    grouped.py  rows sorted by group, each group with a matrix of its own: mixtures of experts
    mixture.py  products of a mixture that leave every row where it lies (Triton kernels)
    routing.py  which experts a token is sent to, and how evenly (Triton kernels)
    fused.py    Triton kernels: an MLP's activation inside the products of its layers (Hopper and later)
    activations.py  GELU and its like with their derivatives, inside Triton kernels and on whole arrays
    head.py     the head and cross-entropy as one step (a Triton kernel)
    norms.py    a branch added to the residuals and the norm of the sum in one pass (Triton kernels)
    rotary.py   queries and keys normalized and turned in one pass (Triton kernels)
    vector.py   a matrix times one vector, as a model writes one text (a Triton kernel)
    symmetric.py  a Triton kernel: the product of a matrix with its own transpose, half of it (Hopper and later)
"""

try:
    import triton
    import triton.language as tl
except ImportError:  # comes with torch's builds for GPUs only
    triton = tl = None
